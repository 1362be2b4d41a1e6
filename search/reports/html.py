"""Report of a search as one HTML page, to be opened from the bundle without a network.

    SearchResult -> sections of escaped text, tables and figures (figures.py) -> one page

There is no script, and nothing is loaded.
"""

from collections.abc import Iterable, Mapping
from html import escape
from types import MappingProxyType

from common.link.crossover import in_words
from search.prediction.candidates import RankedCandidate
from search.reports import time_sources as origins
from search.reports.crossover import fastest
from search.reports.figures import (
    bandwidth_figure,
    bits_figure,
    drawn,
    front_figure,
    page_style,
    rates_figure,
    stages_figure,
)
from search.reports.markdown import (
    accuracy_cells,
    accuracy_heads,
    judgement,
    summary,
    warnings,
    why,
)
from search.reports.split_pays import split_pays
from search.request import SearchResult

Bits = Mapping[str, Mapping[str, tuple[int, int]]]
"""Bit widths of weights and activations, by plan name and by layer of its head."""

_NO_BITS: Bits = MappingProxyType({})
_CSS = """
:root { color-scheme: light dark; --ink: #1c1e21; --page: #ffffff; --line: #d5d8dc;
  --chosen: #fdf0df; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e8; --page: #17191c; --line: #3a3e44; --chosen: #3d2d18; }
}
body { color: var(--ink); background: var(--page); font: 16px/1.5 system-ui, sans-serif;
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, td:first-child { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
.chosen { background: var(--chosen); font-weight: 600; }
figure { margin: 1rem 0; }
figcaption { font-size: .9rem; }
svg { display: block; max-width: 100%; height: auto; stroke-linejoin: round; }
""".strip()


def html(result: SearchResult, bits: Bits = _NO_BITS) -> str:
    """The whole page.

    Args:
        result: Result of the search.
        bits: Widths of the heads of plans, for a chart of each head of the kept plans in it.
    """
    title = escape(f"{result.request.model}: {result.kept[0].candidate.name}")
    name = escape(result.kept[0].candidate.name)
    reason = escape(why(result)).replace(f"**{name}**", f"<strong>{name}</strong>", 1)
    pays = split_pays(result)
    with page_style():
        sections = [
            *_plans_section(result),
            *_front_section(result),
            *_stages_section(result),
            *_origins_section(result),
            *_bandwidth_section(result),
            *_bits_section(result, bits),
            *_rates_section(result),
        ]
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>\n{_CSS}\n</style>",
        "</head>",
        "<body>",
        f"<h1>{title}</h1>",
        f"<p>{escape(summary(result))}</p>",
        f"<p>{escape(judgement(result))}</p>",
        *(f"<p><strong>Warning:</strong> {escape(each)}.</p>" for each in warnings(result)),
        f"<p>{reason}</p>",
        *([f"<p>{escape(' '.join(pays))}</p>"] if pays else []),
        *sections,
        "</body>",
        "</html>",
    ]
    return "\n".join(lines) + "\n"


def _plans_section(result: SearchResult) -> Iterable[str]:
    costs = "latency ms", "bytes", "edge memory MiB"
    heads = "plan", "kind", *costs, *accuracy_heads(result)
    yield "<h2>Plans</h2>"
    yield (
        "<p>What no other plan beats in everything; the fastest of each kind; "
        "and the usual upload.</p>"
    )
    yield '<div class="wide"><table>'
    yield "<thead><tr>"
    yield from (f'<th scope="col">{escape(head)}</th>' for head in heads)
    yield "</tr></thead>"
    yield "<tbody>"
    yield from (_plan_row(result, ranked) for ranked in result.kept)
    yield "</tbody>"
    yield "</table></div>"


def _plan_row(result: SearchResult, ranked: RankedCandidate) -> str:
    candidate = ranked.candidate
    chosen = ranked is result.kept[0]
    cells = (
        f"{candidate.name} (chosen)" if chosen else candidate.name,
        candidate.cut.kind,
        f"{ranked.latency_ms:.1f}",
        f"{ranked.axes[1]:,.0f}",
        f"{candidate.edge_memory_bytes / 2**20:.2f}",
        *accuracy_cells(result, ranked),
    )
    row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    return f'<tr class="chosen">{row}</tr>' if chosen else f"<tr>{row}</tr>"


def _front_section(result: SearchResult) -> Iterable[str]:
    if result.metric is None or result.reference_accuracy is None:
        return
    caption = (
        f"{result.metric} against latency, bytes and edge memory. Grey: measured, but not kept. "
        "Ring: the chosen plan. Dotted line: floating point."
    )
    if any(not j.axes[1] for j in result.measured):
        caption += ' Plans that send nothing before they answer stand at "none".'
    yield "<h2>Accuracy and cost</h2>"
    figure = front_figure(result, result.metric, result.reference_accuracy)
    yield from drawn("front", figure, "Accuracy and cost of all plans", caption)


def _stages_section(result: SearchResult) -> Iterable[str]:
    yield "<h2>Where the time goes</h2>"
    yield from drawn(
        "stages",
        stages_figure(result),
        "Predicted milliseconds of each stage of each plan",
        "Predicted time of each stage. Green: the edge. Orange: the link. Blue: the cloud, and the "
        "end of edge-only.",
    )


def _origins_section(result: SearchResult) -> Iterable[str]:
    if result.cost_model.calibration is None:
        return
    yield "<h2>Where these times come from</h2>"
    yield "<ul>"
    yield from (
        f"<li>{escape(line)}</li>" for line in origins.in_words(result.cost_model.calibration)
    )
    yield "</ul>"


def _bandwidth_section(result: SearchResult) -> Iterable[str]:
    stretches = fastest(result.kept)
    words = in_words(stretches)
    yield "<h2>The fastest plan at other bandwidths</h2>"
    yield from drawn(
        "bandwidth",
        bandwidth_figure(result, stretches),
        f"The fastest plan by bandwidth: {'; '.join(words)}",
        "Uplink bandwidth, with the same round trip. Numbers are those of the list. Dashed: the "
        "link asked for.",
    )
    yield "<ol>"
    yield from (f"<li>{escape(line)}</li>" for line in words)
    yield "</ol>"


def _bits_section(result: SearchResult, bits: Bits) -> Iterable[str]:
    charted: dict[tuple[tuple[str, tuple[int, int]], ...], list[str]] = {}
    for ranked in result.kept:
        name = ranked.candidate.name
        if bits.get(name):
            charted.setdefault(tuple(bits[name].items()), []).append(name)
    if not charted:
        return
    yield "<h2>Bits of the head's layers</h2>"
    for index, (widths, names) in enumerate(charted.items()):
        plans = "; ".join(names)
        label = f"Bits of each layer on the edge: {plans}"
        yield from drawn(f"bits-{index}", bits_figure(dict(widths)), label, plans)


def _rates_section(result: SearchResult) -> Iterable[str]:
    if not result.curves:
        return
    yield "<h2>Bytes and error of the searched wire formats</h2>"
    yield from drawn(
        "rates",
        rates_figure(result),
        f"Bytes against error of the cuts {', '.join(result.curves)}",
        "Bytes by the context coder, and loss of the unadapted tail, both on held-out calibration "
        "images.",
    )
