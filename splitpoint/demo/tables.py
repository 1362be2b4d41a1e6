"""The demo's tables, as rich renderables."""

from collections.abc import Sequence

from rich.table import Table

from splitpoint.demo.comparison import Comparison
from splitpoint.demo.ways import Way, same_boxes

_STAGES = {
    "preprocess": "letterbox (edge)",
    "head": "head, int8 (edge)",
    "encode": "encode (edge)",
    "uplink": "uplink",
    "queue": "queue (cloud)",
    "decode": "decode (cloud)",
    "tail": "tail, fp32 (cloud)",
    "postprocess": "boxes and NMS",
    "downlink": "downlink",
    "other": "hand-overs",
}


def detections_table(way: Way) -> Table:
    """What one way found, image by image."""
    table = Table(title=f"Detections ({way.title})", title_justify="left")
    table.add_column("image")
    table.add_column("class")
    table.add_column("score", justify="right")
    table.add_column("x, y, width, height", justify="right")
    for image, response in way.responses.items():
        for row, found in enumerate(response["detections"]):
            box = ", ".join(f"{value:.0f}" for value in found["bbox"])
            name = image.name if row == 0 else ""
            table.add_row(name, found["class_name"], f"{found['score']:.2f}", box)
    return table


def stages_table(ways: Sequence[Way]) -> Table:
    """Where each millisecond went: medians per stage."""
    table = Table(title="Where each millisecond went (medians)", title_justify="left")
    table.add_column("stage")
    for way in ways:
        table.add_column(way.title, justify="right")
    for stage, title in _STAGES.items():
        cells = [way.stage_ms(stage) if stage in way.stages_ms else None for way in ways]
        if any(cell is not None for cell in cells):
            table.add_row(title, *("" if cell is None else f"{cell:.1f}" for cell in cells))
    table.add_section()
    table.add_row("end to end", *(f"{way.latency_ms:.1f}" for way in ways))
    table.add_row("predicted", *(f"{way.plan.predicted.latency_ms:.1f}" for way in ways))
    return table


def ways_table(comparison: Comparison) -> Table:
    """The three ways side by side."""
    table = Table(title=f"Side by side over {comparison.link}", title_justify="left")
    table.add_column("way")
    for column in ("latency ms", "bytes up", "edge memory", "same boxes", "missing", "extra"):
        table.add_column(column, justify="right")
    for way in comparison.ways:
        agreed = same_boxes(way, comparison.truth)
        sent = sum(way.uplink_bytes) / len(way.uplink_bytes)
        table.add_row(
            way.title,
            f"{way.latency_ms:.0f}",
            f"{sent:,.0f}",
            f"{way.plan.predicted.edge_memory_bytes / 2**20:.1f} MiB",
            f"{agreed.matched} of {agreed.matched + agreed.missing}",
            str(agreed.missing),
            str(agreed.extra),
        )
    return table


def plan_lines(ways: Sequence[Way]) -> str:
    """The plan behind each way."""
    return "\n".join(f"{way.title}: {way.plan.name}" for way in ways)


def verdict(ways: Sequence[Way], memory_bytes: int) -> str:
    """Who won, with and without a limit on the edge's memory."""
    fastest = min(ways, key=lambda way: way.latency_ms)
    fitting = [w for w in ways if w.plan.predicted.edge_memory_bytes <= memory_bytes]
    best = min(fitting, key=lambda way: way.latency_ms)
    limit = f"{memory_bytes / 2**20:g} MiB"
    if best is fastest:
        return f"Fastest here: {fastest.title}, also with {limit} of edge memory."
    return (
        f"Fastest here: {fastest.title}, if the edge has "
        f"{fastest.plan.predicted.edge_memory_bytes / 2**20:.1f} MiB to spare. "
        f"With {limit} it does not fit, and the fastest is: {best.title}."
    )
