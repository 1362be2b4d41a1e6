"""Collection: configurations quantized, run and timed, in one summary.

    widths -> quantized network -> head.onnx
           -> detections on the evaluation images -> accuracy  \
           -> times of head and tail, nominal bytes -> latency  > summary.csv, .json, .svg

Weights and accuracies are kept in the cache: a collection that is killed goes on where it was.
"""

import csv
import io
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.bundle.manifest import JudgedBy
from common.link.link import Link
from common.progress import Reporter
from search.measure.accuracy_evaluator import open_evaluator
from search.measure.held_out import Judging, judged_in_words
from search.measure.latency import MeasuredLatency
from search.network.cuts import Cut
from search.prediction.candidates import CostModel, predict
from search.prediction.devices import DeviceProfile
from search.prepare import Prepared
from search.quantization.export import head_model
from search.quantization.heads import Heads
from search.quantization.rounding import Rounder
from search.quantization.widths import Configuration
from search.reports.plot import Series, plot
from search.wire.formats import FormatTable
from search.wire.sampling import sample


@dataclass(frozen=True)
class Collected:
    """One configuration, measured.

    Attributes:
        name: Of the configuration.
        cut: Names of the tensors that travel.
        accuracy: As deployed, in the metric of the collection.
        drop: Against the floating-point network, in points.
        drop_upper: Upper end of the one-sided 90 % interval of the drop.
        images: How many the accuracy was measured on.
        payload_bytes: Codes packed at their widths.
        edge_memory_bytes: Weights as stored and the peak of activations.
        head_ms: On the device.
        uplink_ms: On the link.
        tail_ms: In the cloud.
        latency_ms: Of all stages.
    """

    name: str
    cut: str
    accuracy: float
    drop: float
    drop_upper: float
    images: int
    payload_bytes: float
    edge_memory_bytes: int
    head_ms: float
    uplink_ms: float
    tail_ms: float
    latency_ms: float


@dataclass(frozen=True)
class Setting:
    """Conditions under which configurations are evaluated: pictures, link and devices.

    Attributes:
        judging: The pictures that accuracy is measured on.
        annotations: COCO instances file of them; without, accuracy is agreement with the
            floating-point network.
        link: Between edge and cloud.
        device: The edge.
        cloud_threads: Threads of the cloud's runtime.
    """

    judging: Judging
    annotations: Path | None
    link: Link
    device: DeviceProfile
    cloud_threads: int = 1


@dataclass(frozen=True)
class Collection:
    """All measured configurations, fastest first, with the metric and the pictures used."""

    metric: str
    reference: float
    rows: tuple[Collected, ...]
    judged_by: JudgedBy
    images: int
    warning: str | None = None


def collect(
    prepared: Prepared,
    rounder: Rounder,
    configurations: Sequence[tuple[str, Cut, Configuration]],
    setting: Setting,
    out: Path,
    reporter: Reporter,
) -> Collection:
    """Quantize configurations, write their heads to `out`, and measure them.

    Args:
        prepared: The network.
        rounder: Quantizes it.
        configurations: (name, cut, widths) of each; names are unique.
        setting: Evaluation conditions.
        out: Folder for a head of each.
        reporter: Receives progress.
    """
    heads = Heads(rounder.nearest({}))
    cuts = {}
    for name, cut, widths in configurations:
        network = rounder.nearest(widths)
        network = rounder.reconstruct(network, cut.codes, reporter.stage(f"rounding {name}"))
        cuts[name] = heads.narrowed(cut, network, name)
        (out / f"{name}.onnx").write_bytes(head_model(network, cut.codes))
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        return _measured(prepared, heads, cuts, setting, Path(scratch), reporter)


def write_summary(collection: Collection, out: Path) -> None:
    """Write the summary as CSV, JSON and a plot of latency against accuracy."""
    text = io.StringIO()
    columns = [field.name for field in fields(Collected)]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in collection.rows)
    (out / "summary.csv").write_text(text.getvalue(), "utf-8")
    summary = json.dumps(asdict(collection), indent=1) + "\n"
    (out / "summary.json").write_text(summary, "utf-8")
    series = [
        Series(cut, tuple((row.latency_ms, row.accuracy) for row in rows))
        for cut, rows in _by_cut(collection.rows).items()
    ]
    plot(
        series,
        out / "summary.svg",
        metric=collection.metric,
        reference=collection.reference,
        cost="predicted latency (ms)",
        joined=False,
    )


def as_markdown(collection: Collection) -> str:
    """Summary as a Markdown table."""
    where = judged_in_words(collection.judged_by, collection.images)
    columns = f"latency ms | bytes | edge memory MiB | {collection.metric} | drop | at most (90 %)"
    lines = [
        f"{collection.metric} on {where}, {collection.reference:.1f} in floating point",
        *(["", f"Warning: {collection.warning}."] if collection.warning else []),
        "",
        f"| configuration | {columns} |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row.name} | {row.latency_ms:.1f} | {row.payload_bytes:,.0f} "
        f"| {row.edge_memory_bytes / 2**20:.2f} | {row.accuracy:.1f} | {row.drop:.1f} "
        f"| {row.drop_upper:.1f} |"
        for row in collection.rows
    ]
    return "\n".join(lines)


def _measured(
    prepared: Prepared,
    heads: Heads,
    cuts: Mapping[str, Cut],
    setting: Setting,
    folder: Path,
    reporter: Reporter,
) -> Collection:
    evaluator, postprocess_ms = open_evaluator(
        heads,
        prepared.task,
        setting.judging.frames,
        setting.annotations,
        folder,
        max_drop=math.inf,
        cache=prepared.cache,
        origin=prepared.origin,
    )
    latency = MeasuredLatency(
        heads.network,
        folder,
        cache=prepared.cache,
        origin=prepared.origin,
        tail_threads=setting.cloud_threads,
    )
    divided = {cut.name: cut for cut in cuts.values()}
    times = latency.times(list(divided.values()), reporter.stage("timing heads and tails"))
    splits = [cut for cut in divided.values() if cut.kind == "split"]
    tensors = list(dict.fromkeys(name for cut in splits for name in cut.tensors))
    frames = prepared.calibration.pixels
    samples = sample(heads.network, tensors, frames, reporter.stage("sampling the wire"))
    letterbox_ms = prepared.calibration.letterbox_ms
    cost_model = CostModel(setting.link, setting.device, letterbox_ms, postprocess_ms)
    table = FormatTable(heads, samples, times, cost_model)
    candidates = {name: table.packed(cut) for name, cut in cuts.items()}
    progress = reporter.stage("measuring accuracy as deployed")
    evaluator.measure(list(candidates.values()), progress)
    rows = []
    for name, candidate in candidates.items():
        known = evaluator.measured(candidate)
        predicted = predict(candidate, times[candidate.cut.name], cost_model)
        rows.append(
            Collected(
                name=name,
                cut=candidate.cut.name,
                accuracy=known.accuracy,
                drop=evaluator.drop(candidate),
                drop_upper=known.most_lost,
                images=known.images,
                payload_bytes=candidate.payload_bytes,
                edge_memory_bytes=candidate.edge_memory_bytes,
                head_ms=predicted.head_ms,
                uplink_ms=predicted.uplink_ms,
                tail_ms=predicted.tail_ms,
                latency_ms=predicted.latency_ms,
            )
        )
    rows.sort(key=lambda row: row.latency_ms)
    judging = setting.judging
    return Collection(
        evaluator.metric,
        evaluator.best,
        tuple(rows),
        judging.judged_by,
        len(judging.frames.names),
        judging.warning,
    )


def _by_cut(rows: Sequence[Collected]) -> dict[str, list[Collected]]:
    grouped: dict[str, list[Collected]] = {}
    for row in rows:
        grouped.setdefault(row.cut, []).append(row)
    return grouped
