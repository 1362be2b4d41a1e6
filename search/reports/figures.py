"""Figures of the search's report, as SVG to stand inside an HTML page.

What matplotlib writes for a file of its own is fitted for that: ids get the figure's name in front,
since a page has one space of ids; text keeps the page's font; and what is drawn in `_INK` takes the
page's text colour, so that it can be read on a light and on a dark page.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.link.crossover import Stretch, rate_in_words
from search.prediction.candidates import RankedCandidate
from search.request import SearchResult

_INK = "#010203"
_GREY = "#8c8c8c"
_KINDS = {"cloud-only": ("#3d84c6", "s"), "split": ("#dc8428", "o"), "edge-only": ("#3c9d5f", "^")}
_STAGES = {
    "preprocess": "#9fd3ae",
    "head": "#3c9d5f",
    "encode": "#1f6b3b",
    "uplink": "#dc8428",
    "rtt": "#f0bd83",
    "decode": "#23527c",
    "tail": "#3d84c6",
    "postprocess": "#9cc4e6",
}
_LINK_BPS = (1e3, 1e12)
_NAME_LENGTH = 44
_LAYER_LENGTH = 24
_STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "svg.fonttype": "none",
    # Without it names in the file are random.
    "svg.hashsalt": "splitpoint",
    "text.parse_math": False,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.2,
    **dict.fromkeys(
        (
            "text.color",
            "axes.labelcolor",
            "axes.edgecolor",
            "xtick.color",
            "ytick.color",
            "grid.color",
        ),
        _INK,
    ),
}


@contextmanager
def page_style() -> Iterator[None]:
    """Apply the page's style to all figures drawn in the block."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The page's font may have what the font that text is measured in has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def front_figure(result: SearchResult, metric: str, reference: float) -> Figure:
    sent = [j.axes[1] for j in result.measured if j.axes[1]]
    nothing = min(sent, default=1.0) / 4
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    by_latency, by_bytes, by_memory = figure.subplots(1, 3, sharey=True)
    _scatter(by_latency, result, lambda j: j.latency_ms, "latency (ms)")
    _scatter(by_bytes, result, lambda j: j.axes[1] or nothing, "bytes a frame")
    _scatter(by_memory, result, lambda j: j.axes[2] / 2**20, "edge memory (MiB)")
    for axes in (by_latency, by_bytes, by_memory):
        axes.axhline(reference, color=_INK, linestyle=":", linewidth=1)
    by_latency.set_ylabel(metric)
    ticks = {tick: f"{tick:,.10g}" for tick in _log_ticks(sent or [nothing])}
    if any(not j.axes[1] for j in result.measured):
        ticks = {nothing: "none"} | {t: words for t, words in ticks.items() if t > nothing * 1.5}
    _log_axis(by_bytes, ticks, (nothing / 1.5, max(sent, default=1.0) * 1.5))
    figure.legend(*by_latency.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def _scatter(
    axes: Axes, result: SearchResult, cost: Callable[[RankedCandidate], float], label: str
) -> None:
    others = [j for j in result.measured if j not in result.kept]
    groups: list[tuple[str, str, str, list[RankedCandidate]]] = [("not kept", _GREY, ".", others)]
    groups += [
        (kind, colour, marker, [j for j in result.kept if j.candidate.cut.kind == kind])
        for kind, (colour, marker) in _KINDS.items()
    ]
    for name, colour, marker, group in groups:
        if group:
            points = [cost(j) for j in group], [j.accuracy or 0.0 for j in group]
            axes.scatter(*points, s=36, c=colour, marker=marker, label=name, zorder=3)
    best = result.kept[0]
    axes.scatter(cost(best), best.accuracy or 0.0, s=140, facecolors="none", edgecolors=_INK)
    axes.set_xlabel(label)
    axes.grid(visible=True)


def stages_figure(result: SearchResult) -> Figure:
    figure = Figure(figsize=(10, 1.1 + 0.36 * len(result.kept)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(result.kept))
    stages = [j.predicted.model_dump() for j in result.kept]
    ends = np.zeros(len(rows))
    for stage, colour in _STAGES.items():
        widths = np.array([each[f"{stage}_ms"] for each in stages])
        axes.barh(rows, widths, left=ends, color=colour, label=stage)
        ends += widths
    for row, end in zip(rows, ends, strict=True):
        axes.annotate(f"{end:.0f} ms", (end, row), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(rows, [_short(j.candidate.name, _NAME_LENGTH) for j in result.kept])
    axes.invert_yaxis()
    axes.set_xlim(0, max(1.0, *ends) * 1.1)
    axes.set_xlabel("ms")
    figure.legend(loc="outside upper center", ncols=len(_STAGES))
    return figure


def bandwidth_figure(result: SearchResult, stretches: Sequence[Stretch]) -> Figure:
    asked, (least, most) = result.cost_model.link.uplink_bps, _LINK_BPS
    marks = [asked, *(s.from_bps for s in stretches if least <= s.from_bps <= most)]
    low, high = min(marks) / 4, max(marks) * 4
    figure = Figure(figsize=(10, 1.5), layout="constrained")
    axes = figure.subplots()
    kinds = {j.candidate.name: j.candidate.cut.kind for j in result.kept}
    seen: set[str] = set()
    for number, stretch in enumerate(stretches, 1):
        start, end = max(low, stretch.from_bps), min(high, stretch.to_bps)
        if start >= end:
            continue
        kind = kinds[stretch.line.name]
        label = "" if kind in seen else kind
        seen.add(kind)
        axes.barh(
            0, end - start, left=start, color=_KINDS[kind][0], edgecolor=_INK, label=label or None
        )
        axes.text(math.sqrt(start * end), 0, str(number), ha="center", va="center")
    axes.axvline(asked, color=_INK, linestyle="--")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    _log_axis(axes, {t: rate_in_words(t) for t in _log_ticks([low, high])}, (low, high))
    figure.legend(loc="outside upper center", ncols=len(_KINDS))
    return figure


def bits_figure(widths: Mapping[str, tuple[int, int]]) -> Figure:
    weights, activations = np.array(list(widths.values())).T
    figure = Figure(figsize=(min(12.0, 2.5 + 0.3 * len(widths)), 3.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(widths))
    if (activations == 8).all():
        axes.bar(places, weights, 0.7, color=_KINDS["edge-only"][0])
        axes.set_ylabel("bits of weights")
    else:
        axes.bar(places - 0.2, weights, 0.4, color=_KINDS["edge-only"][0], label="weights")
        axes.bar(places + 0.2, activations, 0.4, color=_KINDS["split"][0], label="activations")
        axes.set_ylabel("bits")
        figure.legend(loc="outside upper center", ncols=2)
    axes.set_xticks(places, [_short(name, _LAYER_LENGTH) for name in widths], rotation=90)
    axes.set_yticks(range(0, max(8, *weights, *activations) + 1, 2))
    axes.grid(visible=True, axis="y")
    axes.set_axisbelow(True)
    return figure


def rates_figure(result: SearchResult) -> Figure:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for (cut, points), colour in zip(result.curves.items(), _line_colours(), strict=False):
        sizes = [point.payload_bytes for point in points]
        errors = [point.error for point in points]
        axes.plot(
            sizes, errors, marker="o", markersize=4, color=colour, label=_short(cut, _NAME_LENGTH)
        )
    sizes = [point.payload_bytes for points in result.curves.values() for point in points]
    ticks = {tick: f"{tick:,.10g}" for tick in _log_ticks(sizes)}
    _log_axis(axes, ticks, (min(sizes) / 1.5, max(sizes) * 1.5))
    axes.set_xlabel("bytes a frame")
    axes.set_ylabel("error")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True)
    axes.legend()
    return figure


def _line_colours() -> Iterable[str]:
    while True:
        yield from (colour for colour, _ in _KINDS.values())


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Round numbers around the values, few but at least three where there are as many."""
    low, high = min(values) / 1.5, max(values) * 1.5
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
        ticks = [digit * 10.0**decade for decade in decades for digit in digits]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 3:
            break
    return ticks


def _log_axis(axes: Axes, ticks: Mapping[float, str], limits: tuple[float, float]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.xaxis.set_tick_params(which="minor", bottom=False)
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(*limits)


def _short(name: str, length: int) -> str:
    """Shorten a name in its middle: it begins with the cut and ends with the wire format."""
    half = length // 2
    return name if len(name) <= length else f"{name[: half - 1]}…{name[-half:]}"


def drawn(name: str, figure: Figure, label: str, caption: str) -> Iterable[str]:
    yield "<figure>"
    yield _svg(figure, name, label)
    yield f"<figcaption>{escape(caption)}</figcaption>"
    yield "</figure>"


def _svg(figure: Figure, name: str, label: str) -> str:
    """Figure as an SVG element of the page; `name` prefixes its ids to make them unique."""
    text = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].rstrip()
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<[^>]*>", lambda tag: _fitted(tag[0], name), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _fitted(tag: str, name: str) -> str:
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r'font-family: [^;"]*;? ?', "", tag)
    return tag.replace(_INK, "currentColor")
