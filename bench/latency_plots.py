"""Pictures of what `bench.run_latency` found: latency by bandwidth, stages, accuracy by bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.latency_cell import ADAPTIVE
from bench.latency_verdicts import measured, shares

_STAGES = {
    "preprocess": "#bbbbbb",
    "head": "#4477aa",
    "encode": "#66ccee",
    "uplink": "#ee6677",
    "queue": "#dddddd",
    "decode": "#ccbb44",
    "tail": "#228833",
    "postprocess": "#aa3377",
    "downlink": "#ffaabb",
    "other": "#999999",
}
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb", "#999933", "#882255")


def plot_latency(result: dict[str, Any], share: float, path: Path) -> None:
    """Median latency over bandwidth, both settings, the winner's envelope behind."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(result["memory"]), sharey=True)
    for axis, (setting, memory) in zip(axes, result["memory"].items(), strict=True):
        by_mbit = measured(result, share, setting)
        mbits = sorted(by_mbit)
        names = list(dict.fromkeys(r["strategy"] for rows in by_mbit.values() for r in rows))
        for number, name in enumerate(names):
            points = [
                (mbit, row["p50_ms"]["value"])
                for mbit in mbits
                for row in by_mbit[mbit]
                if row["strategy"] == name
            ]
            mine = name == ADAPTIVE
            axis.plot(
                *zip(*points, strict=True),
                label=name,
                color="#ee6677" if mine else _COLOURS[number % len(_COLOURS)],
                lw=2.5 if mine else 1.0,
                ls="-" if mine else ("-", "--", ":")[number // len(_COLOURS) % 3],
                zorder=3 if mine else 2,
            )
        best = [min(r["p50_ms"]["value"] for r in by_mbit[mbit]) for mbit in mbits]
        axis.plot(mbits, best, color="#dddddd", lw=8, zorder=1, label="the fastest")
        limit = "no limit" if memory is None else f"{memory / 2**20:g} MiB"
        axis.set_title(f"{share:g} of a core, {limit} on the edge")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("uplink, Mbit/s")
    axes[0].set_ylabel("median latency, ms")
    axes[-1].legend(fontsize="x-small", frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)


def plot_stages(result: dict[str, Any], path: Path) -> None:
    """Where the time goes, strategy by strategy, in one cell of each share."""
    every = shares(result)
    figure = Figure(figsize=(11, 3.6 * len(every)), layout="constrained")
    axes = figure.subplots(len(every), 1, squeeze=False)[:, 0]
    for axis, share in zip(axes, every, strict=True):
        rows = [r for r in result["cells"] if r["share"] == share and r.get("stages_ms")]
        mbit = min({row["mbit"] for row in rows}, key=lambda each: abs(each - 3.0))
        rows = [row for row in rows if row["mbit"] == mbit]
        rows.sort(key=lambda row: -row["p50_ms"]["value"])
        labels = [f"{row['strategy']} ({row['settings']})" for row in rows]
        left = [0.0] * len(rows)
        for stage, colour in _STAGES.items():
            widths = [row["stages_ms"].get(stage, 0.0) for row in rows]
            axis.barh(labels, widths, left=left, color=colour, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_xlim(0, 3 * min(row["p50_ms"]["value"] for row in rows))
        axis.set_title(f"{share:g} of a core, {mbit:g} Mbit/s")
        axis.set_xlabel("ms")
    axes[0].legend(fontsize="x-small", frameon=False, ncols=2, loc="upper right")
    figure.savefig(path, dpi=110)


def plot_accuracy(result: dict[str, Any], path: Path) -> None:
    """Accuracy over bytes of every plan."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind, colour in (("cloud-only", "#4477aa"), ("split", "#ee6677"), ("edge-only", "#228833")):
        plans = [p for name, p in result["plans"].items() if result["kinds"][name] == kind]
        sent = [max(1.0, plan["uplink_bytes"]) for plan in plans]
        axis.scatter(sent, [plan["accuracy"] for plan in plans], color=colour, label=kind)
    axis.axhline(result["reference_accuracy"], color="#222222", lw=0.8, label="floating point")
    axis.set_xscale("log")
    axis.set_xlabel("bytes up for a frame")
    axis.set_ylabel("AP")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)
