"""Plots of `bench.run_latency`: latency by bandwidth, stages, accuracy by bytes."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.latency.cell import ADAPTIVE
from bench.latency.strategies import MAX_DROP
from bench.latency.verdicts import Row, is_able, measured, shares

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
_INACCURATE = ":"
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb", "#999933", "#882255")


def plot_latency(result: dict[str, Any], share: float, path: Path) -> None:
    """Plot median latency over bandwidth in both settings, with the fastest accurate strategy."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(result["memory"]), sharey=True)
    by_setting = {setting: measured(result, share, setting) for setting in result["memory"]}
    styles = _styles(result, [rows for by_mbit in by_setting.values() for rows in by_mbit.values()])
    legend: dict[str, Line2D] = {}
    reference = result["reference_accuracy"]
    for axis, (setting, memory) in zip(axes, result["memory"].items(), strict=True):
        by_mbit = sorted(by_setting[setting].items())
        for name, style in styles.items():
            points = [(mbit, ms) for mbit, rows in by_mbit for ms in _fastest_ms(rows, {name})]
            if points:
                (legend[name],) = axis.plot(*zip(*points, strict=True), **style)
        able = [(mbit, [row for row in rows if is_able(row, reference)]) for mbit, rows in by_mbit]
        best = [(mbit, ms) for mbit, rows in able for ms in _fastest_ms(rows, styles)]
        label = f"the fastest within {MAX_DROP:g} AP"
        if best:
            (legend[label],) = axis.plot(
                *zip(*best, strict=True), color="#dddddd", lw=8, zorder=1, label=label
            )
        limit = "no limit" if memory is None else f"{memory / 2**20:g} MiB"
        axis.set_title(f"{share:g} of a core, {limit} on the edge")
        axis.set_xscale("log", base=2)
        axis.set_xticks([mbit for mbit, _ in by_mbit], [f"{mbit:g}" for mbit, _ in by_mbit])
        axis.set_yscale("log")
        axis.set_xlabel("uplink, Mbit/s")
    axes[0].set_ylabel("median latency, ms")
    handles = sorted(legend.values(), key=lambda line: line.get_zorder(), reverse=True)
    figure.legend(handles=handles, fontsize="small", frameon=False, loc="outside right upper")
    figure.savefig(path, dpi=110)


def _styles(result: dict[str, Any], cells: Sequence[Sequence[Row]]) -> dict[str, dict[str, Any]]:
    """Line style of each strategy: alike in all panels, dotted if it is inaccurate in any cell."""
    least: dict[str, float] = {}
    for row in (row for rows in cells for row in rows):
        name = row["strategy"]
        least[name] = min(least.get(name, math.inf), row["accuracy"])
    styles = {}
    for number, (name, accuracy) in enumerate(least.items()):
        round_, colour = divmod(number, len(_COLOURS))
        line = ("-", "--", "-.")[round_ % 3]
        if accuracy < result["reference_accuracy"] - MAX_DROP:
            line = _INACCURATE
        styles[name] = {"label": name, "color": _COLOURS[colour], "lw": 1.2, "ls": line}
        styles[name] |= {"zorder": 2.0 if line == _INACCURATE else 3.0}
    if ADAPTIVE in styles:
        styles[ADAPTIVE] |= {"color": "#ee6677", "lw": 2.5, "ls": "-", "zorder": 4.0}
    return styles


def _fastest_ms(rows: Sequence[Row], names: Collection[str]) -> list[float]:
    """Least median of some strategies in a cell; empty if none of them was measured."""
    return sorted(row["p50_ms"]["value"] for row in rows if row["strategy"] in names)[:1]


def plot_stages(result: dict[str, Any], path: Path) -> None:
    """Plot the median time of each stage by strategy, in one cell of each share."""
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
    """Plot accuracy over bytes of every plan."""
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
