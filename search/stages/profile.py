"""Profile: statistics and times of a network, written to files.

layers.csv, layers.json   a row per layer (`search.quantization.layer_table`)
statistics.npz            low, high and 2048 counts of every tensor, before and after activation
samples.npz               values of every tensor on some images
cuts.csv                  median and 90th percentile of every cut's head and tail, in ms
"""

import csv
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.progress import Reporter
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tables.rows import LatencyRow, RuntimeTarget, head_segment, row_of, tail_segment
from search.measure.latency import MeasuredLatency
from search.network.cuts import enumerate_cuts
from search.prediction.cut_times import CutTimes
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.quantization.layer_table import layer_table, to_csv, to_json
from search.wire.formats import most_timed
from search.wire.sampling import sample_values

_HEAD_THREADS = 1


@dataclass(frozen=True)
class TimedCut:
    """One cut: its name, how many elements travel, and the times of its head and tail."""

    name: str
    elements: int
    times: CutTimes


def write_statistics(prepared: Prepared, out: Path) -> list[Path]:
    """Write the layer table, the histograms and samples; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    rows = layer_table(prepared.graph, prepared.statistics)
    files = [out / n for n in ("layers.csv", "layers.json", "statistics.npz", "samples.npz")]
    files[0].write_text(to_csv(rows), "utf-8")
    files[1].write_text(to_json(rows), "utf-8")
    np.savez_compressed(files[2], allow_pickle=False, **prepared.statistics.to_arrays())
    values = sample_values(prepared.graph, prepared.calibration.pixels)
    np.savez_compressed(files[3], allow_pickle=False, **values)
    return files


def write_times(
    prepared: Prepared, out: Path, cloud_threads: int, reporter: Reporter
) -> list[Path]:
    """Time every cut and write the table; returns the file."""
    return [write_cuts(time_cuts(prepared, cloud_threads, reporter), out)]


def time_cuts(
    prepared: Prepared,
    cloud_threads: int,
    reporter: Reporter,
    runtime: str = DEFAULT_RUNTIME,
) -> list[TimedCut]:
    """Time every cut, fewest elements to send first; as many as `most_timed` says."""
    heads = Heads(prepared.rounder().nearest({}))
    cuts = enumerate_cuts(prepared.graph)
    cuts = [c for c in cuts if not any(n.name in heads.network.refused for n in c.head)]
    sent = {c.name: sum(prepared.graph[name].elements for name in c.tensors) for c in cuts}
    cuts = sorted(cuts, key=lambda cut: sent[cut.name])[: most_timed(prepared.graph)]
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        source = MeasuredLatency(
            heads.network,
            Path(scratch),
            cache=prepared.cache,
            origin=prepared.origin,
            head_threads=_HEAD_THREADS,
            tail_threads=cloud_threads,
            runtime=runtime,
        )
        times = source.times(cuts, reporter.stage("timing heads and tails"))
    return [TimedCut(cut.name, sent[cut.name], times[cut.name]) for cut in cuts]


def write_cuts(timed: list[TimedCut], out: Path) -> Path:
    """Write the times of cuts as CSV; returns the file."""
    out.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = "cut", "elements_sent", "head_ms", "head_p90_ms", "tail_ms", "tail_p90_ms", "runs"
    writer.writerow(columns)
    for cut in timed:
        head, tail = cut.times.head, cut.times.tail
        numbers = (head.median_ms, head.p90_ms, tail.median_ms, tail.p90_ms)
        runs = max(head.n, tail.n)
        writer.writerow([cut.name, cut.elements, *(f"{ms:.3f}" for ms in numbers), runs])
    path = out / "cuts.csv"
    path.write_text(text.getvalue(), "utf-8")
    return path


def cut_rows(
    timed: list[TimedCut],
    network: str,
    device: str,
    cloud_threads: int,
    now_s: float,
    runtime: str = DEFAULT_RUNTIME,
) -> list[LatencyRow]:
    """Times of cuts as rows of a latency table, named as `common.tables.rows.segments` names them.

    Args:
        timed: The cuts.
        network: Digest of the network that they divide; see
            `common.bundle.manifest.network_digest`.
        device: Name of the device that both sides were timed on.
        cloud_threads: Threads of the tails.
        now_s: Time of measurement, in seconds since the epoch.
        runtime: Name of the runtime that they were timed in.
    """
    edge = RuntimeTarget(device, runtime_name(_HEAD_THREADS, runtime), _HEAD_THREADS)
    cloud = RuntimeTarget(device, runtime_name(cloud_threads, runtime), cloud_threads)
    rows = []
    for cut in timed:
        head, tail = head_segment(network, cut.name), tail_segment(network, cut.name)
        if cut.times.head.n:
            rows.append(row_of(cut.times.head, head, edge, "profiled", now_s))
        if cut.times.tail.n:
            rows.append(row_of(cut.times.tail, tail, cloud, "profiled", now_s))
    return rows
