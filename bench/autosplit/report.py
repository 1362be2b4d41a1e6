"""Report of the simulated experiment: table of all plans, summary, plot."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.harness import Columns, Lines, Result, table

_SHOWN = ("U8", "U6", "U4", "U2", "Neurosurgeon", "DADS", "QDMP", "Auto-Split", "Splitpoint")
_OWN = ("Auto-Split", "Splitpoint")
_LEGEND = (
    "Latencies are over cloud-only, in 16 bits with the raw image sent. A star: more memory than "
    "the edge has. Brackets: a larger error than allowed. KiB are weights and the larger of the "
    "image and the largest output; W and A the mean widths of weights and outputs on the edge."
)


def section(result: Result) -> Lines:
    """Section of the page: who wins, and the published chart."""
    yield _LEGEND
    yield ""
    yield from _wins(_cells(result))
    yield "![Latency over cloud-only, network by network](autosplit.svg)"
    yield ""
    if result["published"]:
        yield from _chart(result["published"])
    if result["scale_sim"]:
        yield from _cycles(result["scale_sim"])


def whole_table(result: Result) -> Lines:
    """Lines of Markdown: every network on every uplink."""
    yield "# The original's experiment, simulated"
    yield ""
    yield " ".join([_LEGEND, *_judged(result)])
    yield ""
    columns: Columns = {
        "network": "{network}",
        "Mbit/s": "{mbit}",
        "cloud-only, ms": "{cloud_ms:.1f}",
        **{name: f"{{{name}}}" for name in _SHOWN},
        **{f"{name} takes:": f"{{{name} takes}}" for name in _OWN},
    }
    yield from table(_cells(result), columns)


def _judged(result: Result) -> Iterator[str]:
    """Sentences on accuracies: behind the latencies of networks whose weights are trained."""
    for network, of in result["accuracy"].items():
        yield (
            f"Behind a comma {of['metric']} of {network} as run in integers (--quantizer "
            f"{result['quantizer']}) on {of['images']} pictures, {of['reference']:.1f} in floating "
            "point."
        )
    yield "No accuracy: of networks whose weights are seeded, or without pictures to judge on."


def _cells(result: Result) -> list[Result]:
    """A row of the table for each network and uplink."""
    grouped: dict[tuple[str, float], dict[str, Result]] = {}
    for row in result["rows"]:
        grouped.setdefault((row["network"], row["mbit"]), {})[row["strategy"]] = row
    return [
        {
            "network": network,
            "mbit": mbit,
            "cloud_ms": rows["cloud-only"]["latency_ms"],
            "rows": rows,
            **{name: _ratio(rows[name]) for name in _SHOWN},
            **{f"{name} takes": _in_words(rows[name]) for name in _OWN},
        }
        for (network, mbit), rows in grouped.items()
    ]


def _ratio(row: Result) -> str:
    star = "" if row["fits"] else "\\*"
    ratio = f"{row['over_cloud']:.2f}"
    accuracy = "" if row["accuracy"] is None else f", {row['accuracy']:.1f}"
    return (ratio if row["allowed"] else f"({ratio})") + star + accuracy


def _in_words(row: Result) -> str:
    if row["cut"] == "cloud-only":
        return "cloud-only"
    widths = f"W{row['weight_bits']:.1f} " if row["weight_bits"] else ""
    return f"{row['cut']}, {widths}A{row['activation_bits']:.1f}, {row['edge_kib']:,.0f} KiB"


def _wins(cells: list[Result]) -> Iterator[str]:
    ratios = [
        cell["rows"]["Splitpoint"]["latency_ms"] / cell["rows"]["Auto-Split"]["latency_ms"]
        for cell in cells
    ]
    kinds = [cell["rows"]["Splitpoint"]["cut"] for cell in cells]
    splits = len([kind for kind in kinds if kind not in ("edge-only", "cloud-only")])
    yield (
        f"Of {len(cells)} cells, Splitpoint splits in {splits}, stays on the edge in "
        f"{kinds.count('edge-only')} and sends the image in {kinds.count('cloud-only')}. Its "
        f"latency is {min(ratios):.2f} to {max(ratios):.2f} of Auto-Split's, within the same "
        "memory and error. Every plan: [autosplit.md](../bench/results/autosplit.md)."
    )
    yield ""


def _chart(chart: Result) -> Iterator[str]:
    yield (
        "ResNet-50 at 3 Mbit/s, latency over cloud-only, beside the original's chart (its split: "
        "a top-1 accuracy of 75.9, against 76.1 in floating point). U8 is met by "
        f"an array that works for {chart['utilisation']:.2f} of its cycles (exactly "
        f"{chart['fitted_utilisation']:.4f}); the other rows follow. The original predicts the "
        "first row as if the shortcut beside the layer were not sent."
    )
    yield ""
    columns: Columns = {
        "plan": "{plan}",
        "published": "{published:.2f}",
        "simulated": "{simulated:.2f}",
        "array always busy": "{busy:.2f}",
        "tensors moved, too": "{moving:.2f}",
    }
    yield from table(chart["rows"], columns)
    yield ""


def _cycles(check: list[Result]) -> Iterator[str]:
    yield "Cycles of our formula over SCALE-Sim's, each shape of a layer once:"
    yield ""
    columns: Columns = {
        "array": "{array}",
        "layers": "{layers}",
        "least": "{least:.3f}",
        "median": "{median:.3f}",
        "most": "{most:.3f}",
        "too large to simulate": "{left_out}",
    }
    yield from table(check, columns)


def plot(result: Result, path: Path) -> None:
    """Plot the latency of every strategy over cloud-only, a panel for each uplink."""
    cells = _cells(result)
    uplinks = sorted({cell["mbit"] for cell in cells})
    figure = Figure(figsize=(11, 3.2 * len(uplinks)), layout="constrained")
    panels = figure.subplots(len(uplinks), squeeze=False, sharex=True)[:, 0]
    for axes, mbit in zip(panels, uplinks, strict=True):
        shown = [cell for cell in cells if cell["mbit"] == mbit]
        places = range(len(shown))
        for number, name in enumerate(_SHOWN):
            ratios = [cell["rows"][name]["over_cloud"] for cell in shown]
            own = {"s": 70, "zorder": 3} if name in _OWN else {"s": 22}
            axes.scatter(places, ratios, marker="o^vsXDPdh*"[number], label=name, **own)
        axes.axhline(1.0, color="grey", linestyle=":")
        axes.set_yscale("log")
        axes.set_ylabel(f"{mbit} Mbit/s")
        axes.set_xticks(places, [cell["network"] for cell in shown], rotation=30, ha="right")
        axes.grid(visible=True, alpha=0.25)
    panels[0].set_title("latency over cloud-only")
    panels[0].legend(ncols=5, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "splitpoint"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
