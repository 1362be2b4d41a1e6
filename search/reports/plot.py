"""Plots of bytes per frame against accuracy for every way to send a frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from common.errors import SettingsError
from search.prediction.candidates import RankedCandidate
from search.request import SearchResult

FORMATS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Series:
    """One line of the plot: (bytes per frame, accuracy) in the order of bytes."""

    label: str
    points: tuple[tuple[float, float], ...]


def check_format(path: Path) -> None:
    """Require a file name whose ending is a supported plot format.

    Raises:
        SettingsError: If its ending is none of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise SettingsError(f"{path}: a plot ends in {', '.join(FORMATS)}")


def plot_result(result: SearchResult, path: Path) -> None:
    """Plot every candidate of a search whose accuracy was measured.

    Raises:
        SettingsError: If the search measured none.
    """
    if result.metric is None or result.reference_accuracy is None:
        raise SettingsError("the search measured no accuracy to plot")
    grouped: dict[str, list[RankedCandidate]] = {}
    for ranked in result.measured:
        if ranked.candidate.codec is not None:
            grouped.setdefault(_label(ranked), []).append(ranked)
    series = [
        Series(
            label,
            tuple(sorted((j.candidate.payload_bytes, j.accuracy or 0.0) for j in judgeds)),
        )
        for label, judgeds in sorted(grouped.items())
    ]
    plot(series, path, metric=result.metric, reference=result.reference_accuracy)


def plot(
    series: Sequence[Series],
    path: Path,
    *,
    metric: str,
    reference: float,
    cost: str = "bytes per frame",
    joined: bool = True,
) -> None:
    """Write a plot of a cost (logarithmic) against accuracy.

    Args:
        series: Its lines.
        path: The file; its ending is the format.
        metric: What accuracies are measured in.
        reference: Accuracy of the floating-point network.
        cost: Label of the cost axis, with its unit.
        joined: Whether points of a series are joined by a line.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for each in series:
        sizes, accuracies = zip(*each.points, strict=True)
        line = "-" if joined else ""
        axes.plot(sizes, accuracies, marker="o", markersize=4, linestyle=line, label=each.label)
    axes.axhline(reference, color="grey", linestyle=":", label="floating point")
    axes.set_xscale("log")
    axes.set_xlabel(cost)
    axes.set_ylabel(metric)
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a date or random names, so that the same figures always give the same file.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    with mpl.rc_context({"svg.hashsalt": "splitpoint"}):
        figure.savefig(path, metadata=metadata)


def _label(ranked: RankedCandidate) -> str:
    candidate = ranked.candidate
    if candidate.codec is None:
        return "edge-only"
    if not candidate.cut.head:
        return candidate.codec.name.upper()
    kind = "searched formats" if candidate.label else "uniform widths"
    return f"{candidate.cut.name}, {kind}"
