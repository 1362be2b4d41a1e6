"""`splitpoint explain`: show which plan of a bundle would be used on a link, and why."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.errors import SettingsError
from common.stages import PREDICTED

if TYPE_CHECKING:
    from rich.console import Console

    from common.latency import PlanCost
    from common.link.link import Link
    from common.tables.rows import LatencyRow
    from splitpoint.explain import LinkExplanation

_MARKS = {"predicted": "", "simulated": " m", "profiled": " p", "served": " s"}
_LEGEND = {
    "predicted": "unmarked: predicted by the search",
    "simulated": "m: simulated",
    "profiled": "p: profiled",
    "served": "s: of served frames",
}
_WIDTH = 160
_JUDGED = {"accuracy", "accuracy_drop", "accuracy_drop_upper", "judged_images", "judged_by"}


def run(
    bundle: Annotated[Path, typer.Option(help="The bundle: a folder or its zip file.")],
    tables: Annotated[
        Path | None, typer.Option(help="Latency tables: JSON, or a cloud's --store file.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Name of the edge in the tables, if they have several.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="Link, e.g. 3mbit/20ms; default: the link of the search.")
    ] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="MS", help="Deadline of a frame in milliseconds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show which plan would be used on a link, why, and at which bandwidths that changes."""
    from common.bundle.bundle import Bundle
    from common.latency import costs
    from common.link.link import Link, parse_link
    from common.tables.store_file import read_tables
    from splitpoint.explain import explain

    if deadline is not None and not 0 < deadline < math.inf:
        raise SettingsError(f"--deadline {deadline:g}: expected milliseconds above 0")
    if device is not None and tables is None:
        raise SettingsError("--device belongs to --tables FILE")
    rows = [] if tables is None else read_tables(tables)
    if tables is not None:
        device = _device(rows, device, tables)
    with Bundle.open(bundle) as opened:
        asked = opened.manifest.search
        place = Link(asked.uplink_bps, asked.uplink_bps, asked.rtt_ms)
        place = place if link is None else parse_link(link)
        found = explain(costs(opened.plans, rows, device), place, deadline)
        metric = asked.accuracy_metric
    if as_json:
        typer.echo(json.dumps(_document(found, place, device, deadline, metric), indent=1))
    else:
        _show(found, place, metric)


def _device(rows: "list[LatencyRow]", wanted: str | None, path: Path) -> str | None:
    """Select an edge of the tables; None if they have times of the cloud alone.

    Raises:
        SettingsError: If the tables do not have it, or have several and none is named.
    """
    known = sorted({row.device for row in rows if row.side == "edge"})
    names = ", ".join(known) or "no edge"
    if wanted is not None and wanted not in known:
        raise SettingsError(f"--device {wanted!r} is not in {path}: it has {names}")
    if wanted is None and len(known) > 1:
        raise SettingsError(f"{path} has times of several edges: give --device, one of {names}")
    return known[0] if wanted is None and known else wanted


def _stages_ms(cost: "PlanCost", link: "Link") -> dict[str, float]:
    """Time of each stage over a link, in milliseconds."""
    from common.link.link import transfer_ms

    times = {stage.stage: stage.ms for stage in cost.stages}
    if cost.needs_cloud:
        times |= {"uplink": transfer_ms(cost.uplink_bytes, link.uplink_bps), "rtt": link.rtt_ms}
    return {stage: times[stage] for stage in PREDICTED if stage in times}


def _document(
    found: "LinkExplanation",
    link: "Link",
    device: str | None,
    deadline_ms: float | None,
    metric: str | None,
) -> dict[str, Any]:
    from common.link.crossover import in_words

    return {
        "link": str(link),
        "device": device,
        "deadline_ms": deadline_ms,
        "plan": found.chosen.plan.name,
        "plan_digest": found.chosen.digest.hex(),
        "reason": found.reason,
        "bandwidths": [
            {
                "plan": stretch.line.name,
                "from_bps": stretch.from_bps,
                "to_bps": None if math.isinf(stretch.to_bps) else stretch.to_bps,
                "words": words,
            }
            for stretch, words in zip(found.stretches, in_words(found.stretches), strict=True)
        ],
        "accuracy_metric": metric,
        "plans": [
            {
                "plan": cost.plan.name,
                "plan_digest": cost.digest.hex(),
                "kind": cost.plan.kind,
                "latency_ms": cost.latency_ms(link),
                "edge_ms": cost.edge_ms,
                "cloud_ms": cost.cloud_ms,
                "uplink_bytes": cost.uplink_bytes,
                **cost.plan.predicted.model_dump(include=_JUDGED),
                "stages_ms": _stages_ms(cost, link),
                "sources": {stage.stage: stage.source for stage in cost.stages},
                "n": {stage.stage: stage.n for stage in cost.stages if stage.n},
            }
            for cost in found.fastest
        ],
    }


def _show(found: "LinkExplanation", link: "Link", metric: str | None) -> None:
    from rich.console import Console

    from common.link.crossover import in_words

    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    console.print(f"{found.chosen.plan.name}: {found.reason}.\n", highlight=False)
    _show_plans(console, found, link, metric)
    if metric is not None:
        console.print(f"Lost at most, in points of {metric}: {_judged(found)}.\n", highlight=False)
    seen = {stage.source for cost in found.fastest for stage in cost.stages}
    legend = "; ".join(words for source, words in _LEGEND.items() if source in seen)
    console.print(f"Times in ms; {legend}.\n", highlight=False)
    console.print("By bandwidth of the uplink, with the same round trip:")
    for words in in_words(found.stretches):
        console.print(f"  {words}", highlight=False)


def _show_plans(
    console: "Console", found: "LinkExplanation", link: "Link", metric: str | None
) -> None:
    from rich.table import Table

    table = Table("plan", title=f"Plans over {link}, fastest first", title_justify="left")
    heads = () if metric is None else (metric, "lost at most")
    for column in (*PREDICTED, "latency", "bytes", *heads):
        table.add_column(column, justify="right")
    for cost in found.fastest:
        marks = {stage.stage: _MARKS[stage.source] for stage in cost.stages}
        times = _stages_ms(cost, link)
        cells = [f"{times[s]:.1f}{marks.get(s, '')}" if s in times else "" for s in PREDICTED]
        latency = f"{cost.latency_ms(link):.1f}"
        predicted = cost.plan.predicted
        known = predicted.accuracy, predicted.accuracy_drop_upper
        judged = () if metric is None else tuple("" if x is None else f"{x:.1f}" for x in known)
        sent = f"{cost.uplink_bytes:,.0f}"
        style = "bold" if cost is found.chosen else None
        table.add_row(cost.plan.name, *cells, latency, sent, *judged, style=style)
    console.print(table)


def _judged(found: "LinkExplanation") -> str:
    """Describe the pictures and the confidence of the accuracy's upper bound."""
    predicted = found.chosen.plan.predicted
    where = {
        "held-out": "held-out calibration pictures",
        "evaluation": "pictures of an evaluation folder",
        None: "pictures",
    }[predicted.judged_by]
    return f"the end of a one-sided 90 % interval, on {predicted.judged_images} {where}"
