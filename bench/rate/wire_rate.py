"""Bytes on the wire against accuracy: split plans compared with JPEG and WebP.

    python -m bench.rate.wire_rate --images DIR --annotations FILE --calibration DIR

For one cut of YOLOv3-tiny: wire formats along its rate curve, each with context models and an
adapted tail of its own, evaluated as deployed (8-bit head, real payloads, ONNX tail); JPEG and WebP
of the same letterboxed frames over their qualities; and how the context coder compares with
Zstandard and with its own model's ideal code length. Everything is fitted and adapted on the
calibration images alone. The result names the machine and all images.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from bench.harness import Bench, Lines, Result, add_coco_options, record, table
from bench.rate.rates import Curve, bd_rate, bytes_at
from bench.rate.setup import CutSetup, Judge, add_cut_option
from common.codec import make_codec
from common.codec.quantizer import WireTable
from common.codec.spec import CodecSpec
from common.link.link import parse_link
from common.progress import Stages
from common.tables.timing import NO_TIME
from search.prediction.candidates import Candidate, CostModel
from search.prediction.cut_times import CutTimes
from search.prediction.devices import device_profile
from search.reports.plot import Series, check_format, plot
from search.wire.context_fitting import ideal_bytes
from search.wire.formats import FormatTable
from search.wire.rate_curve import RatePoint
from search.wire.sampling import sample

JPEG_QUALITIES = (5, 10, 20, 30, 40, 50, 60, 75, 85, 90, 95)
WEBP_QUALITIES = (1, 5, 10, 20, 30, 40, 50, 60, 75, 85, 90, 95)
TARGET_BYTES = (1300, 2000, 3200, 5400, 9500, 18000)
ZSTD_LEVELS = (1, 3, 9, 19)


class _WireBench:
    """Measurements of one cut."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stages: Stages) -> None:
        self._stages, self._adapt_steps = stages, arguments.adapt_steps
        self._setup = setup = CutSetup(arguments, folder, stages)
        self._judge = Judge(arguments, setup.prepared, folder, stages)
        self._evaluator = self._judge.evaluator(setup.network)
        self._cut, self._whole = setup.cut, setup.cuts[0]
        times = {cut.name: CutTimes(NO_TIME, NO_TIME) for cut in setup.cuts}
        # The link is so slow that the codec with the fewest bytes is the fastest.
        model = CostModel(parse_link("1kbit/0ms"), device_profile("this-machine"), 0.0, 0.0)
        pixels, progress = setup.prepared.calibration.pixels, stages.stage("sampling the wire")
        samples = sample(setup.network, [], pixels, progress)
        self._table = FormatTable(setup.heads, samples, times, model)
        self._refiner = setup.refiner(arguments.adapt_steps)

    def run(self) -> Result:
        """Measure everything."""
        uploads = self._uploads()
        candidates, formats = self._formats()
        result = record(
            calibration_images=list(self._setup.prepared.calibration.names),
            evaluation_images=list(self._judge.images.names),
            cut=self._cut.name,
            adapt_steps=self._adapt_steps,
            reference=self._judge.reference,
            uploads=uploads,
            formats=formats,
            coder=self._coder(candidates[len(candidates) // 2]),
        )
        return result | {"summary": _summary(result)}

    def _measure(self, candidate: Candidate) -> dict[str, float]:
        accuracy = self._judge.accuracy(self._evaluator.detections(candidate))
        return {"payload_bytes": self._evaluator.payload_bytes(candidate), **accuracy}

    def _uploads(self) -> dict[str, list[dict[str, Any]]]:
        progress = self._stages.stage("measuring uploads")
        specs = [CodecSpec(name="jpeg", quality=q) for q in JPEG_QUALITIES]
        specs += [CodecSpec(name="webp", quality=q) for q in WEBP_QUALITIES]
        found: dict[str, list[dict[str, Any]]] = {}
        for done, spec in enumerate(specs, 1):
            upload = self._table.upload(self._whole, spec)
            row = {"quality": spec.quality, "encode_ms": upload.encode_ms, **self._measure(upload)}
            found.setdefault(spec.name, []).append(row)
            progress(done, len(specs))
        return found

    def _formats(self) -> tuple[list[Candidate], list[dict[str, Any]]]:
        curve = self._refiner.curve(self._cut)
        candidates, rows = [], []
        for point in reversed(_spread(curve.points)):  # a finer format's tail is a good start
            unadapted = self._refiner.options(self._cut, curve, point.wire)[0]  # in context
            adapted = self._refiner.adapted(self._cut, point.wire, unadapted.label)
            candidate = replace(unadapted, cut=adapted)
            rows.append(
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
        return candidates, rows

    def _coder(self, candidate: Candidate) -> dict[str, Any]:
        """The context coder against Zstandard on the same symbols."""
        (wire,), (model,) = candidate.wire, candidate.contexts
        codec, table = make_codec(CodecSpec(name="context"), model), WireTable(wire)
        symbols = [table.symbols(each) for (each,) in self._evaluator.codes(candidate)]
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
        return {
            "wire_format": candidate.label,
            "context_bytes": coded,
            "ideal_bytes": ideal,
            "over_ideal_percent": 100 * (coded / ideal - 1),
            "zstd_bytes": zstd,
            "below_best_zstd_percent": 100 * (1 - coded / min(zstd.values())),
            "model_bytes": len(model.to_bytes()),
        }


def _curve(result: Result, name: str) -> Curve:
    rows = result["uploads"].get(name) or [row[name] for row in result["formats"]]
    return [(row["payload_bytes"], row["ap"]) for row in rows]


def _summary(result: Result) -> dict[str, Any]:
    ours = _curve(result, "adapted")
    baselines = {name: _curve(result, name) for name in ("jpeg", "webp")}
    equal = []
    for size, accuracy in ours:
        others = {name: bytes_at(curve, accuracy) for name, curve in baselines.items()}
        known = [each for each in others.values() if each is not None]
        share = size / min(known) if known else None
        equal.append({"ap": accuracy, "bytes": size, **others, "share_of_best": share})
    return {
        "reference_ap": result["reference"]["ap"],
        "bd_rate_percent": {
            f"{which} against {name}": bd_rate(curve, _curve(result, which))
            for which in ("adapted", "unadapted")
            for name, curve in baselines.items()
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


def draw(result: Result, path: Path) -> None:
    """Plot bytes against AP."""
    cut = result["cut"]
    names = {"jpeg": "JPEG", "webp": "WebP"}
    names |= {"unadapted": f"{cut}, tail as it is", "adapted": f"{cut}, tail adapted"}
    series = [Series(title, tuple(_curve(result, name))) for name, title in names.items()]
    plot(series, path, metric="COCO AP", reference=result["reference"]["ap"])


def section(result: Result) -> Lines:
    """Table of bytes at equal AP."""
    columns = {
        "AP": "{ap:.1f}",
        "bytes": "{bytes:,.0f}",
        "JPEG": "{jpeg:,.0f}",
        "WebP": "{webp:,.0f}",
        "share of the best": "{share_of_best:.2f}",
    }
    return table(result["summary"]["at_equal_ap"], columns)


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure uploads and wire formats of one cut."""
    if arguments.plot is not None:
        check_format(arguments.plot)
    with tempfile.TemporaryDirectory() as folder:
        return _WireBench(arguments, Path(folder), stages).run()


def _options(parser: argparse.ArgumentParser) -> None:
    add_coco_options(parser)
    add_cut_option(parser)
    parser.add_argument("--adapt-steps", type=int, default=300)


BENCH = Bench(__doc__, "wire_rate", _options, measure, section, draw)

if __name__ == "__main__":
    BENCH.main()
