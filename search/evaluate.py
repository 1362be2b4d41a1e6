"""Evaluation: a candidate's detections, computed as they will be when it is deployed.

The head runs in int8, symbols and payloads are made and read by the codecs of the wire, the tail
runs in ONNX Runtime, boxes are decoded by the shared code.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.codec import make_codec
from common.detections import Detections, DetectorSpec, decode_yolo
from common.images import Letterbox
from common.manifest import CodecSpec
from common.quantizer import WireTable
from common.runtime import Model
from search.accuracy import EVALUATION_SCORE
from search.candidates import Candidate
from search.cuts import Cut
from search.graph import IMAGE
from search.onnx_models import SharedWeights, head_model, tail_model, write_weights
from search.quantize import QuantizedGraph
from search.wire import image_tensor

Maps = list[NDArray[np.float32]]


class Evaluator:
    """Runs candidates over the evaluation images.

    Models of the last cut are kept: evaluate candidates of one cut one after the other.

    Args:
        network: The quantized network.
        detector: How its maps become boxes.
        frames: (N, 3, H, W) letterboxed images.
        letterboxes: One per image.
        folder: For tails and their weights.
        threads: Threads of each runtime.
    """

    def __init__(
        self,
        network: QuantizedGraph,
        detector: DetectorSpec,
        frames: NDArray[np.uint8],
        letterboxes: Sequence[Letterbox],
        folder: Path,
        *,
        threads: int,
    ) -> None:
        self._network = network
        self._detector = detector
        self._frames = frames
        self._letterboxes = letterboxes
        self._folder = folder
        self._threads = threads
        self._weights = SharedWeights.of(network.graph)
        self._cut: Cut | None = None
        self._codes: list[list[NDArray[np.uint8]]] = []
        self._tail: Model | None = None
        write_weights(folder, self._weights)

    def detections(self, candidate: Candidate) -> list[Detections]:
        """What the candidate finds on each image."""
        self._open(candidate.cut)
        if candidate.codec is None:
            maps = [self._edge_maps(candidate.cut, codes) for codes in self._codes]
        else:
            maps = [self._cloud_maps(candidate, codes) for codes in self._codes]
        return [
            decode_yolo(each, self._detector, box, score_threshold=EVALUATION_SCORE)
            for each, box in zip(maps, self._letterboxes, strict=True)
        ]

    def reference(self, cloud_only: Cut) -> tuple[list[Detections], float]:
        """What the floating-point network finds, and the median time of postprocessing in ms."""
        self._open(cloud_only)
        image = image_tensor(self._network.graph[IMAGE])
        raw = Candidate(cloud_only, (image,), CodecSpec(name="raw"), 0, 0, 0, 0, 0)
        found, times = [], []
        for codes, box in zip(self._codes, self._letterboxes, strict=True):
            maps = self._cloud_maps(raw, codes)
            start = time.perf_counter()
            decode_yolo(maps, self._detector, box)
            times.append(1e3 * (time.perf_counter() - start))
            found.append(decode_yolo(maps, self._detector, box, score_threshold=EVALUATION_SCORE))
        return found, float(np.median(times))

    def _open(self, cut: Cut) -> None:
        if self._cut is cut:
            return
        self._cut = cut
        if cut.head:
            head = Model(head_model(self._network, cut.tensors), threads=self._threads)
            self._codes = [head.run({IMAGE: frame[None]}) for frame in self._frames]
        else:
            self._codes = [[frame[None]] for frame in self._frames]
        self._tail = None
        if cut.tail:
            path = self._folder / "evaluated.onnx"
            path.write_bytes(tail_model(self._network.graph, cut, self._weights))
            self._tail = Model(path, threads=self._threads)

    def _edge_maps(self, cut: Cut, codes: list[NDArray[np.uint8]]) -> Maps:
        grids = [self._network.grids[name] for name in cut.tensors]
        return [grid.dequantize(q)[0] for grid, q in zip(grids, codes, strict=True)]

    def _cloud_maps(self, candidate: Candidate, codes: list[NDArray[np.uint8]]) -> Maps:
        if self._tail is None or candidate.codec is None:
            raise RuntimeError("a candidate with a tail was expected")
        codec = make_codec(candidate.codec)
        inputs = {}
        for wire, each in zip(candidate.wire, codes, strict=True):
            table = WireTable(wire)
            data = codec.encode(table.symbols(each[0]), wire.bits)
            inputs[wire.name] = table.values(codec.decode(data, wire.shape, wire.bits))[None]
        return [output[0] for output in self._tail.run(inputs)]
