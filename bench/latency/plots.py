"""Plot of `bench.run_latency`: latency by bandwidth."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bench.latency.cell import ADAPTIVE
from bench.latency.strategies import MAX_DROP
from bench.latency.verdicts import Row, is_able, measured

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
