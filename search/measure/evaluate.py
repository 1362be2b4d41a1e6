"""Evaluation: a candidate's results, computed as they will be when it is deployed.

The head runs in int8, symbols and payloads are made and read by the codecs of the wire, the tail
runs in ONNX Runtime, outputs are decoded by the task.
"""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.codec.quantizer import WireTable
from common.codec.spec import CodecSpec
from common.imaging.placement import Placement
from common.runtime.base import Session
from common.runtime.registry import open_model
from common.tasks.base import DEFAULTS, ResultSettings, Task, TaskResult
from search.cache import digest
from search.measure.accuracy import EVALUATION_SCORE
from search.network.cuts import Cut
from search.network.graph import IMAGE
from search.prediction.candidates import Candidate
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.heads import Heads
from search.wire.quantizers import image_tensor

Maps = list[NDArray[np.float32]]


class Evaluator:
    """Runs candidates over the evaluation images.

    Models of the last cut are kept: evaluate candidates of one cut one after the other.

    Args:
        heads: The integer networks.
        task: What the network is for.
        frames: (N, 3, H, W) letterboxed images.
        letterboxes: One per image.
        folder: For tails and their weights.
        workers: Images that are evaluated at once, one thread each.
        settings: What counts of a result; the score threshold is that of average precision.
    """

    def __init__(
        self,
        heads: Heads,
        task: Task,
        frames: NDArray[np.uint8],
        letterboxes: Sequence[Placement],
        folder: Path,
        *,
        workers: int,
        settings: ResultSettings = DEFAULTS,
    ) -> None:
        self._heads = heads
        self._network = network = heads.network
        self._task = task
        self._settings = replace(settings, score_threshold=EVALUATION_SCORE)
        self._frames = frames
        self._letterboxes = letterboxes
        self._folder = folder
        self._workers = workers
        self._weights = SharedWeights.of(network.graph.nodes)
        self._cut: Cut | None = None
        self._head: str | None = None
        self._runner: Session | None = None
        self._codes: dict[int, list[NDArray[np.uint8]]] = {}
        self._tail: Session | None = None
        write_weights(folder, self._weights)

    def detections(self, candidate: Candidate, images: range | None = None) -> list[TaskResult]:
        """Detections of a candidate on each image, or on some of them."""
        self._open(candidate.cut)
        indices = images if images is not None else range(len(self._frames))
        with ThreadPoolExecutor(self._workers) as workers:
            return list(workers.map(lambda index: self._detect(candidate, index), indices))

    def identity(self, candidate: Candidate) -> str:
        """Digest of everything that decides a candidate's detections.

        Codecs of images may lose something; those of tensors, context models and all, do not.
        """
        adapted = candidate.cut.tail if candidate.cut.adapted_to else ()
        return digest(
            self._heads.digest(candidate.cut),
            candidate.wire,
            None if candidate.cut.head else candidate.codec,
            [(node.weight, node.bias) for node in adapted],
        )

    def digest(self, candidate: Candidate) -> str:
        """Digest of everything that decides a candidate's detections and payloads."""
        models = candidate.contexts, candidate.contexts_after
        return digest(
            self.identity(candidate),
            candidate.codec,
            [[model.to_bytes() for model in each] for each in models],
        )

    def payload_bytes(self, candidate: Candidate) -> float:
        """Mean bytes of a frame's payloads over the images."""
        self._open(candidate.cut)
        tables = [WireTable(wire) for wire in candidate.wire]
        sizes = [
            len(codec.encode(table.symbols(each[0]), wire.bits))
            for codes in self._all_codes()
            for wire, table, codec, each in zip(
                candidate.wire, tables, candidate.codecs, codes, strict=True
            )
        ]
        return sum(sizes) / len(self._frames)

    def codes(self, candidate: Candidate) -> list[list[NDArray[np.uint8]]]:
        """Output codes of the candidate's head for each image, (C, H, W) per tensor."""
        self._open(candidate.cut)
        return [[each[0] for each in codes] for codes in self._all_codes()]

    def reference(self, cloud_only: Cut) -> tuple[list[TaskResult], float]:
        """Detections of the floating-point network, and the median postprocessing time in ms."""
        self._open(cloud_only)
        image = image_tensor(self._network.graph[IMAGE])
        raw = Candidate(cloud_only, (image,), CodecSpec(name="raw"), 0, 0, 0, 0, 0)
        found, times = [], []
        for codes, box in zip(self._all_codes(), self._letterboxes, strict=True):
            maps = self._cloud_maps(raw, codes)
            start = time.perf_counter()
            self._task.decode(maps, box)
            times.append(1e3 * (time.perf_counter() - start))
            found.append(self._task.decode(maps, box, self._settings))
        return found, float(np.median(times))

    def _detect(self, candidate: Candidate, index: int) -> TaskResult:
        codes, box = self._codes_of(index), self._letterboxes[index]
        if candidate.codec is None:
            maps = self._edge_maps(candidate.cut, codes)
        else:
            maps = self._cloud_maps(candidate, codes)
        return self._task.decode(maps, box, self._settings)

    def _open(self, cut: Cut) -> None:
        if self._cut is cut:
            return
        self._cut = cut
        if cut.label != self._head:
            self._head = cut.label
            self._codes = {}
            self._runner = None
            if cut.head:
                model = head_model(self._heads.of(cut), cut.codes)
                self._runner = open_model(model, threads=1)
        self._tail = None
        if cut.behind:
            weights = self._weights
            if cut.adapted_to:
                weights = SharedWeights.of(cut.tail, "adapted.bin")
                write_weights(self._folder, weights)
            path = self._folder / "evaluated.onnx"
            path.write_bytes(tail_model(self._network.graph, cut, weights))
            self._tail = open_model(path, threads=1)

    def _codes_of(self, index: int) -> list[NDArray[np.uint8]]:
        """Codes of the open cut's head for one image, cached for the next candidate of the cut."""
        frame = self._frames[index][None]
        if self._runner is None:
            return [frame]
        if index not in self._codes:
            self._codes[index] = self._runner.run({IMAGE: frame})
        return self._codes[index]

    def _all_codes(self) -> Iterator[list[NDArray[np.uint8]]]:
        return (self._codes_of(index) for index in range(len(self._frames)))

    def _edge_maps(self, cut: Cut, codes: list[NDArray[np.uint8]]) -> Maps:
        grids = self._heads.of(cut).grids
        values = {n: grids[n].dequantize(q) for n, q in zip(cut.codes, codes, strict=True)}
        if self._tail is None:
            return [value[0] for value in values.values()]
        return [output[0] for output in self._tail.run(values)]

    def _cloud_maps(self, candidate: Candidate, codes: list[NDArray[np.uint8]]) -> Maps:
        if self._tail is None or candidate.codec is None:
            raise RuntimeError("a candidate with a tail was expected")
        inputs = {}
        for wire, codec, each in zip(candidate.wire, candidate.codecs, codes, strict=True):
            table = WireTable(wire)
            data = codec.encode(table.symbols(each[0]), wire.bits)
            inputs[wire.name] = table.values(codec.decode(data, wire.shape, wire.bits))[None]
        return [output[0] for output in self._tail.run(inputs)]
