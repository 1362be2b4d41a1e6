"""Bytes on the wire against accuracy: split plans compared with JPEG and WebP.

    python -m bench.rate.wire_rate --images DIR --annotations FILE --calibration DIR --json OUT

For one cut of YOLOv3-tiny: wire formats along its rate curve, each with context models and an
adapted tail of its own, evaluated as deployed (8-bit head, real payloads, ONNX tail); JPEG and WebP
of the same letterboxed frames over their qualities; how the context coder compares with Zstandard
and with its own model's ideal code length; and the time of coding on one core. Everything is
fitted and adapted on the calibration images alone. The result names the machine and all images.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from bench.machine import machine
from bench.rate.rates import Curve, bd_rate, bytes_at
from common.codec import make_codec, seal
from common.codec.base import Symbols
from common.codec.quantizer import WireTable
from common.codec.spec import CodecSpec
from common.link.link import parse_link
from common.progress import Stages
from common.tables.timing import NO_TIME
from common.tasks.base import TaskResult
from common.version import __version__
from search.measure.accuracy import AgreementAccuracy, CocoAccuracy
from search.measure.evaluate import Evaluator
from search.measure.frames import load_frames
from search.network.cuts import enumerate_cuts
from search.network.importer import import_module
from search.network.losses import distillation_loss
from search.network.passes import optimise
from search.prediction.candidates import Candidate, CostModel
from search.prediction.cut_times import CutTimes
from search.prediction.devices import device_profile
from search.prepare import task_of
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.recipe import rounded
from search.refine.refine import Refiner
from search.reports.plot import Series, check_format, plot
from search.wire.context_fitting import ideal_bytes
from search.wire.formats import FormatTable
from search.wire.rate_curve import RatePoint
from search.wire.sampling import sample
from search.wire.training_data import collect, copies_of
from search.zoo.registry import load_model

JPEG_QUALITIES = (5, 10, 20, 30, 40, 50, 60, 75, 85, 90, 95)
WEBP_QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 75, 85, 90, 95)
TARGET_BYTES = (1300, 2000, 3200, 5400, 9500, 18000)
ZSTD_LEVELS = (1, 3, 9, 19)
_TIMED_FRAMES = 64
_ROUNDS = 5


def main() -> None:
    """Measure, print and write the result and its plot."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="images to evaluate on")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--cut", default="conv_8", help="name of the cut")
    parser.add_argument("--adapt-steps", type=int, default=300)
    parser.add_argument(
        "--max-images", type=int, default=1000, help="most images used of each folder"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    parser.add_argument("--plot", type=Path, help="where the plot goes (.svg, .png or .pdf)")
    arguments = parser.parse_args()
    if arguments.plot is not None:
        check_format(arguments.plot)
    with tempfile.TemporaryDirectory() as folder, Stages() as stages:
        bench = _Bench(arguments, Path(folder), stages)
        result = bench.run()
    if arguments.plot is not None:
        bench.plot(arguments.plot)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))  # noqa: T201 - a command's output


class _Bench:
    """Measurements of one cut."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._arguments = arguments
        self._stages = stages
        module = load_model("yolov3-tiny")
        graph = optimise(import_module(module, module.input_size))
        task = task_of(module)
        limit, geometry = arguments.max_images, task.image
        self._calibration = load_frames(
            arguments.calibration, geometry, limit, stages.stage("reading calibration images")
        )
        self._images = load_frames(
            arguments.images, geometry, limit, stages.stage("reading evaluation images")
        )
        self._truth = CocoAccuracy(arguments.annotations, self._images.names)
        observed = observe(graph, self._calibration.pixels, stages.stage("observing activations"))
        network = rounded(graph, observed)
        heads, cuts = Heads(network), enumerate_cuts(graph)
        self._whole = cuts[0]
        self._cut = next(cut for cut in cuts if cut.name == arguments.cut)
        self._evaluator = Evaluator(
            heads,
            task,
            self._images.pixels,
            self._images.letterboxes,
            folder,
            workers=2,
        )
        reference, _ = self._evaluator.reference(self._whole)
        self._agreement = AgreementAccuracy(reference)
        self._reference = self._judge(reference)
        times = {cut.name: CutTimes(NO_TIME, NO_TIME) for cut in cuts}
        # The link is so slow that the codec with the fewest bytes is the fastest.
        world = CostModel(parse_link("1kbit/0ms"), device_profile("this-machine"), 0.0, 0.0)
        samples = sample(network, [], self._calibration.pixels, stages.stage("sampling the wire"))
        self._table = FormatTable(heads, samples, times, world)
        examples = collect(
            network,
            self._whole,
            self._cut.tensors,
            self._calibration.pixels,
            folder,
            copies=copies_of(len(self._calibration.names)),
            threads=2,
            progress=stages.stage("collecting examples"),
        )
        self._refiner = Refiner(
            heads,
            examples,
            distillation_loss(task),
            arguments.adapt_steps,
            stages,
        )
        self._uploads: dict[str, list[dict[str, Any]]] = {}
        self._formats: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Measure everything; returns the result as JSON."""
        self._measure_uploads()
        candidates = self._measure_formats()
        typical = candidates[len(candidates) // 2]
        return {
            "machine": machine(),
            "software_version": __version__,
            "calibration_images": list(self._calibration.names),
            "evaluation_images": list(self._images.names),
            "cut": self._cut.name,
            "adapt_steps": self._arguments.adapt_steps,
            "reference": self._reference,
            "uploads": self._uploads,
            "formats": self._formats,
            "coder": self._coder(typical),
            "summary": self._summary(),
        }

    def plot(self, path: Path) -> None:
        """Plot bytes against AP."""
        series = [
            Series("JPEG", tuple(self._curve("jpeg"))),
            Series("WebP", tuple(self._curve("webp"))),
            Series(f"{self._cut.name}, tail as it is", tuple(self._curve("unadapted"))),
            Series(f"{self._cut.name}, tail adapted", tuple(self._curve("adapted"))),
        ]
        plot(series, path, metric="COCO AP", reference=self._reference["ap"])

    def _judge(self, found: Sequence[TaskResult]) -> dict[str, float]:
        return {
            "ap": self._truth.accuracy(found),
            "agreement_ap50": self._agreement.accuracy(found),
        }

    def _measure(self, candidate: Candidate) -> dict[str, float]:
        accuracy = self._judge(self._evaluator.detections(candidate))
        return {"payload_bytes": self._evaluator.payload_bytes(candidate), **accuracy}

    def _measure_uploads(self) -> None:
        progress = self._stages.stage("measuring uploads")
        specs = [CodecSpec(name="jpeg", quality=q) for q in JPEG_QUALITIES]
        specs += [CodecSpec(name="webp", quality=q) for q in WEBP_QUALITIES]
        for done, spec in enumerate(specs, 1):
            upload = self._table.upload(self._whole, spec)
            row = {"quality": spec.quality, "encode_ms": upload.encode_ms, **self._measure(upload)}
            self._uploads.setdefault(spec.name, []).append(row)
            progress(done, len(specs))

    def _measure_formats(self) -> list[Candidate]:
        curve = self._refiner.curve(self._cut)
        candidates = []
        for point in reversed(_spread(curve.points)):  # a finer format's tail is a good start
            unadapted = self._refiner.options(self._cut, curve, point.wire)[0]  # in context
            adapted = self._refiner.adapted(self._cut, point.wire, unadapted.label)
            candidate = replace(unadapted, cut=adapted)
            self._formats.append(
                {
                    "step": point.step,
                    "dead_zone": point.dead_zone,
                    "levels": [max(tensor.to_symbol) + 1 for tensor in candidate.wire],
                    "codec": str(candidate.codec),
                    "held_out_loss": point.error,
                    "unadapted": self._measure(unadapted),
                    "adapted": self._measure(candidate),
                }
            )
            candidates.append(candidate)
        return candidates

    def _coder(self, candidate: Candidate) -> dict[str, Any]:
        """The context coder against Zstandard on the same symbols, and its time on one core."""
        (wire,), (model,) = candidate.wire, candidate.contexts
        codec, table = make_codec(CodecSpec(name="context"), model), WireTable(wire)
        codes = [each for (each,) in self._evaluator.codes(candidate)]
        symbols = [table.symbols(each) for each in codes]
        payloads = [codec.encode(each, wire.bits) for each in symbols]
        packed = make_codec(CodecSpec(name="packed"))
        contents = {
            "packed": [packed.encode(each, wire.bits) for each in symbols],
            "symbols": [each.tobytes() for each in symbols],
        }
        zstd = {
            f"{name}, level {level}": float(np.mean([_zstd(c, level) for c in content]))
            for name, content in contents.items()
            for level in ZSTD_LEVELS
        }
        coded = float(np.mean([len(payload) for payload in payloads]))
        ideal = float(np.mean([ideal_bytes(model, each) for each in symbols]))
        stages = _stage_times(table, codec, wire.shape, wire.bits, codes[:_TIMED_FRAMES])
        return {
            "wire_format": candidate.label,
            "context_bytes": coded,
            "ideal_bytes": ideal,
            "over_ideal_percent": 100 * (coded / ideal - 1),
            "zstd_bytes": zstd,
            "below_best_zstd_percent": 100 * (1 - coded / min(zstd.values())),
            "model_bytes": len(model.to_bytes()),
            "ms": stages,
        }

    def _curve(self, name: str) -> Curve:
        rows = self._uploads.get(name) or [row[name] for row in self._formats]
        return [(row["payload_bytes"], row["ap"]) for row in rows]

    def _summary(self) -> dict[str, Any]:
        ours = self._curve("adapted")
        rivals = {name: self._curve(name) for name in ("jpeg", "webp")}
        jpeg_30 = next(row for row in self._uploads["jpeg"] if row["quality"] == 30)
        equal = []
        for size, accuracy in ours:
            others = {name: bytes_at(curve, accuracy) for name, curve in rivals.items()}
            known = [each for each in others.values() if each is not None]
            share = size / min(known) if known else None
            equal.append({"ap": accuracy, "bytes": size, **others, "share_of_best": share})
        return {
            "reference_ap": self._reference["ap"],
            "most_ap_at_5500_bytes": max((a for s, a in ours if s <= 5500), default=None),
            "most_ap_at_2000_bytes": max((a for s, a in ours if s <= 2000), default=None),
            "jpeg_q30": {"bytes": jpeg_30["payload_bytes"], "ap": jpeg_30["ap"]},
            "bd_rate_percent": {
                f"{which} against {name}": bd_rate(curve, self._curve(which))
                for which in ("adapted", "unadapted")
                for name, curve in rivals.items()
            },
            "at_equal_ap": equal,
        }


def _spread(points: Sequence[RatePoint]) -> list[RatePoint]:
    """Points of the curve just below the target sizes."""
    chosen = []
    for target in TARGET_BYTES:
        fitting = [point for point in points if point.payload_bytes <= target]
        if fitting and fitting[-1] not in chosen:
            chosen.append(fitting[-1])
    return chosen


def _zstd(content: bytes, level: int) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(content))


def _stage_times(
    table: WireTable,
    codec: Any,
    shape: tuple[int, int, int],
    bits: int,
    codes: Sequence[NDArray[np.uint8]],
) -> dict[str, dict[str, float]]:
    """Median and quartiles in ms of every step between a head's codes and a tail's values."""
    samples: dict[str, list[float]] = {}

    def timed(name: str, started_s: float) -> None:
        samples.setdefault(name, []).append(1e3 * (time.perf_counter() - started_s))

    for _ in range(_ROUNDS):
        for each in codes:
            start = time.perf_counter()
            symbols: Symbols = table.symbols(each)
            timed("edge: codes to symbols", start)
            middle = time.perf_counter()
            data = codec.encode(symbols, bits)
            timed("edge: context coder", middle)
            middle = time.perf_counter()
            seal(data)
            timed("edge: checksum", middle)
            timed("edge: all", start)
            start = time.perf_counter()
            seal(data)
            decoded = codec.decode(data, shape, bits)
            timed("cloud: checksum and context decoder", start)
            middle = time.perf_counter()
            table.values(decoded)
            timed("cloud: symbols to values", middle)
            timed("cloud: all", start)
    both = np.add(samples["edge: all"], samples["cloud: all"])
    samples["edge and cloud"] = both.tolist()
    return {
        name: dict(
            zip(("q25", "median", "q75"), np.percentile(t, (25, 50, 75)).tolist(), strict=True)
        )
        for name, t in samples.items()
    }


if __name__ == "__main__":
    main()
