"""Report of a search in Markdown and JSON: the chosen plan, its alternatives and the reasons."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from common.link.crossover import in_words
from common.stages import PREDICTED
from common.version import __version__
from search.constraints import find, stored
from search.constraints import in_words as limits_in_words
from search.constraints.feasibility import admits
from search.constraints.max_drop import MaxDrop, more_pictures
from search.measure.held_out import judged_in_words, overlap_in_words
from search.measure.intervals import KEEP_LEVEL
from search.prediction.candidates import RankedCandidate
from search.reports import time_sources as origins
from search.reports.crossover import fastest
from search.reports.split_pays import split_pays
from search.request import SearchResult

_JUDGED = {"accuracy", "accuracy_drop", "accuracy_drop_upper", "judged_images", "judged_by"}
_MORE_CUTS = " (there are more, of heads that send much)"
_TELL = "`splitpoint evaluate` and a search without --no-accuracy tell what plans lose"
_UNMEASURED = (
    f"Tensors travel as heads compute them, at 8 bits, and uploads have the usual quality; {_TELL}."
)
_KEPT = (
    "Not beaten by another one in latency, bytes, edge memory and accuracy at once; "
    "the fastest of each kind; and the usual upload."
)


def markdown(result: SearchResult) -> str:
    """The whole report."""
    lines = [
        f"# {result.request.model}: {result.kept[0].candidate.name}",
        "",
        summary(result),
        "",
        judgement(result),
        "",
        *_warnings(result),
        why(result),
        "",
        *_split(result),
        *_tuned(result),
        "## Plans",
        "",
        _KEPT,
        "",
        *_table(result, result.kept),
        "",
        *_given_up(result),
        "",
        "## Measured, but not kept",
        "",
        *_table(result, [j for j in result.measured if j not in result.kept]),
        "",
        *_undecided(result),
        "## Where the time of each plan should go (ms)",
        "",
        "| plan | " + " | ".join(PREDICTED) + " |",
        "|---" * (len(PREDICTED) + 1) + "|",
        *(_stages_row(ranked) for ranked in result.kept),
        "",
        *_origins(result),
        "## The fastest plan at other bandwidths",
        "",
        *(f"- {line}" for line in in_words(fastest(result.kept))),
        "",
        *_curve_tables(result),
    ]
    return "\n".join(lines)


def as_json(result: SearchResult) -> dict[str, Any]:
    """Everything in the report as JSON: the request, and all candidates, fastest first."""
    request = result.request
    measured = {j.candidate: j for j in result.measured}
    kept = {j.candidate for j in result.kept}
    return {
        "request": {
            "model": request.model,
            "link": str(result.cost_model.link),
            "device": request.device.name,
            "limits": stored(request.constraints),
            "strategy": request.strategy,
            "cloud_threads": request.cloud_threads,
            "software_version": __version__,
        },
        "accuracy_metric": result.metric,
        "reference_accuracy": result.reference_accuracy,
        "cuts": result.cuts,
        "times": None
        if result.cost_model.calibration is None
        else origins.as_json(result.cost_model.calibration),
        "fastest": [
            {
                "plan": stretch.line.name,
                "from_bps": stretch.from_bps,
                "to_bps": None if math.isinf(stretch.to_bps) else stretch.to_bps,
            }
            for stretch in fastest(result.kept)
        ],
        "calibration_images": result.calibration_images,
        "evaluation_images": list(result.evaluation_images),
        "judged_by": result.judged_by,
        "also_fitted": list(result.also_fitted),
        "confidence": KEEP_LEVEL,
        "curves": {
            cut: [
                {
                    "step": point.step,
                    "dead_zone": point.dead_zone,
                    "clip": None if math.isinf(point.clip) else point.clip,
                    "payload_bytes": point.payload_bytes,
                    "error": point.error,
                }
                for point in points
            ]
            for cut, points in result.curves.items()
        },
        "candidates": [
            {
                "name": j.candidate.name,
                "kind": j.candidate.cut.kind,
                "kept": j.candidate in kept,
                **_accuracy(result, measured.get(j.candidate)),
                "payload_bytes": j.candidate.payload_bytes,
                "predicted": j.predicted.model_dump(exclude=_JUDGED),
            }
            for j in result.ranked
        ],
    }


def _accuracy(result: SearchResult, ranked: RankedCandidate | None) -> dict[str, Any]:
    """Accuracy of a candidate with its confidence bound, as JSON; empty if not measured."""
    if ranked is None:
        return {
            "digest": None,
            "accuracy": None,
            "accuracy_drop": None,
            "accuracy_drop_upper": None,
            "judged_on": 0,
        }
    return {
        "digest": ranked.digest,
        "accuracy": ranked.accuracy,
        "accuracy_drop": result.drop(ranked),
        "accuracy_drop_upper": ranked.most_lost if math.isfinite(ranked.most_lost) else None,
        "judged_on": ranked.judged_on,
    }


def summary(result: SearchResult) -> str:
    """Summary of the request and of the number of measurements."""
    request = result.request
    limits = ", ".join(each.words for each in request.constraints) or "none"
    timed = len({j.candidate.cut.name for j in result.ranked})
    who = "" if request.strategy == "splitpoint" else f"Chosen by {request.strategy}. "
    return (
        f"{who}Link {result.cost_model.link}, device {request.device.name}. Limits: {limits}. "
        f"{_in_floating_point(result)}"
        f"{result.cuts} cuts{'' if result.every_cut else _MORE_CUTS}, {timed} timed, "
        f"{len(result.ranked)} candidates, {_judged(result)}{len(result.kept)} plans kept."
    )


def _in_floating_point(result: SearchResult) -> str:
    if result.reference_accuracy is None:
        return ""
    return f"Accuracy is {result.metric}, {result.reference_accuracy:.1f} in floating point. "


def _judged(result: SearchResult) -> str:
    return f"{len(result.measured)} with measured accuracy, " if result.metric else ""


def judgement(result: SearchResult) -> str:
    """Describe the pictures and the interval by which accuracy was judged."""
    if result.judged_by is None:
        return (
            f"Accuracy was not measured. {_UNMEASURED} Everything is fitted to "
            f"{result.calibration_images} calibration pictures, over which bytes are means."
        )
    max_drop, images = result.request.max_drop, len(result.evaluation_images)
    apart = "" if result.also_fitted else ", none of them among these"
    lines = [
        f"Judged on {judged_in_words(result.judged_by, images)}.",
        f"Everything is fitted to {result.calibration_images} calibration pictures{apart}.",
        f"A plan is kept if it loses no more than {max_drop:g} points even at the upper end of a",
        f"one-sided {100 * KEEP_LEVEL:.0f} % interval (bootstrap over the pictures that judge).",
        "They also chose among plans: what is kept looks a little better on them than it is.",
        "Bytes are means over calibration pictures.",
    ]
    if result.judged_by == "held-out":
        lines.append("More pictures narrow the interval; --evaluation gives others to judge on.")
    return " ".join(lines)


def sure(result: SearchResult) -> str:
    """One line on the chosen plan: its loss, the bound of it, and the evaluation pictures."""
    best, drop = result.kept[0], result.drop(result.kept[0])
    if result.judged_by is None or drop is None:
        return f"accuracy was not measured: {_TELL}"
    line = (
        f"{best.candidate.name} loses {drop:.1f} points of {result.metric}, at most "
        f"{best.most_lost:.1f} (90 %), on {judged_in_words(result.judged_by, best.judged_on)}"
    )
    if result.judged_by == "held-out":
        line += "; give pictures of their own to judge on by --evaluation"
    return line


def warnings(result: SearchResult) -> list[str]:
    """Sentences, without their stops, on what makes the result doubtful."""
    found = []
    overlap = overlap_in_words(result.also_fitted, len(result.evaluation_images))
    if overlap is not None:
        found.append(overlap)
    if result.sees_nothing:
        found.append(
            f"the network detects nothing on the {len(result.evaluation_images)} pictures that "
            "judge: check scaling, order of channels and decoder in its model card"
        )
    return found


def _warnings(result: SearchResult) -> Iterable[str]:
    for warning in warnings(result):
        yield f"**Warning:** {warning}."
        yield ""


def _undecided(result: SearchResult) -> Iterable[str]:
    """Note on plans that too few pictures leave undecided."""
    limit = find(MaxDrop, result.request.constraints)
    if limit is None or result.judged_by is None or result.reference_accuracy is None:
        return
    others = [each for each in result.request.constraints if each is not limit]
    needs = [
        (needed, ranked)
        for ranked in result.measured
        if ranked not in result.kept and admits(others, ranked)
        for needed in [limit.pictures_needed(ranked, result.reference_accuracy)]
        if needed is not None
    ]
    if needs:
        needed, ranked = min(needs, key=lambda need: need[0])
        yield (
            f"{len(needs)} of these lose at most {limit.limit:g} points on the pictures that "
            "judge, but these are too few to be sure of it. As an estimate, "
            f"{more_pictures(needed, result.judged_by)} would tell of {ranked.candidate.name}."
        )
        yield ""


def why(result: SearchResult) -> str:
    """Compare the chosen plan, in bold, with the best plans of the other kinds."""
    best = result.kept[0]
    answer = (
        f"**{best.candidate.name}** answers in {best.latency_ms:.0f} ms for "
        f"{best.candidate.payload_bytes:,.0f} bytes a frame"
    )
    return "; ".join((answer, *_other_kinds(result))) + "."


def _tuned(result: SearchResult) -> Iterable[str]:
    """Note on tails that are not fine-tuned to the network's outputs."""
    if result.tuned_to:
        yield (
            f"Tails are fine-tuned up to {', '.join(result.tuned_to)}: the operators behind are "
            "taken over from the file as they are."
        )
        yield ""


def _split(result: SearchResult) -> Iterable[str]:
    """Paragraph on what would make a split the fastest plan, if none is."""
    sentences = split_pays(result)
    if sentences:
        yield " ".join(sentences)
        yield ""


def _other_kinds(result: SearchResult) -> Iterable[str]:
    """Clauses on the best measured plan of each other kind, the baselines of our own search."""
    best = result.kept[0]
    if result.request.strategy != "splitpoint":
        return
    for kind in ("cloud-only", "split", "edge-only"):
        if best.candidate.cut.kind == kind:
            continue
        limits, measured = result.request.constraints, result.measured
        of_kind = [j for j in measured if j.candidate.cut.kind == kind]
        fastest_of_kind = next((j for j in of_kind if admits(limits, j)), None)
        if fastest_of_kind is None:
            broken = [c for c in limits if not any(c.admits(j) for j in of_kind)]
            yield f"{kind} is out by {limits_in_words(broken or limits)}"
        else:
            yield (
                f"{fastest_of_kind.candidate.name} would take {fastest_of_kind.latency_ms:.0f} ms "
                f"({fastest_of_kind.latency_ms / best.latency_ms:.2f} x)"
            )


def _origins(result: SearchResult) -> Iterable[str]:
    """Section on the sources of the times, if latency tables were used."""
    if result.cost_model.calibration is not None:
        yield "## Where these times come from"
        yield ""
        yield from (f"- {line}" for line in origins.in_words(result.cost_model.calibration))
        yield ""


def _curve_tables(result: SearchResult) -> Iterable[str]:
    """The rate curve of each refined cut, in Markdown."""
    measured = {id(j.candidate.wire): j for j in result.measured}
    for cut, points in result.curves.items():
        yield f"## What {cut} costs, from the fewest bytes to the least error"
        yield ""
        yield (
            "Bytes by the context coder and loss of the unadapted tail, both on held-out "
            f"calibration images; {result.metric} of those that were tried, as deployed."
        )
        yield ""
        yield f"| step | dead zone | clip | levels | bytes | loss | {result.metric} |"
        yield "|--:|--:|--:|--:|--:|--:|--:|"
        for point in points:
            tried = measured.get(id(point.wire))
            accuracy = "" if tried is None else f"{tried.accuracy or 0.0:.1f}"
            levels = "+".join(str(max(tensor.to_symbol) + 1) for tensor in point.wire)
            clip = "none" if math.isinf(point.clip) else f"{point.clip:g}"
            yield (
                f"| {point.step:.2f} | {point.dead_zone:g} | {clip} | {levels} "
                f"| {point.payload_bytes:,.0f} | {point.error:.3f} | {accuracy} |"
            )
        yield ""


def _table(result: SearchResult, rows: Sequence[RankedCandidate]) -> Iterable[str]:
    heads = "plan", "latency ms", "bytes", "edge memory MiB", *accuracy_heads(result)
    yield f"| {' | '.join(heads)} |"
    yield f"|---{'|--:' * (len(heads) - 1)}|"
    for ranked in rows:
        candidate = ranked.candidate
        cells = (
            candidate.name,
            f"{ranked.latency_ms:.1f}",
            f"{candidate.payload_bytes:,.0f}",
            f"{candidate.edge_memory_bytes / 2**20:.2f}",
            *accuracy_cells(result, ranked),
        )
        yield f"| {' | '.join(cells)} |"


def accuracy_heads(result: SearchResult) -> tuple[str, ...]:
    """Column heads of `accuracy_cells`; none if no accuracy was measured."""
    return (result.metric, "drop", "at most (90 %)") if result.metric else ()


def accuracy_cells(result: SearchResult, ranked: RankedCandidate) -> tuple[str, ...]:
    """Accuracy of a plan, its drop and the upper bound of that, a dash if the plan was given up."""
    drop = result.drop(ranked)
    if drop is None or ranked.accuracy is None:
        return ()
    at_most = f"{ranked.most_lost:.1f}" if math.isfinite(ranked.most_lost) else "-"
    return f"{ranked.accuracy:.1f}", f"{drop:.1f}", at_most


def _given_up(result: SearchResult) -> Iterable[str]:
    """Note on plans that were not judged on all images."""
    few = [
        j for j in result.measured if result.metric and j.judged_on < len(result.evaluation_images)
    ]
    if few:
        yield (
            f"{len(few)} of those below lost too much after few images "
            f"({min(j.judged_on for j in few)} at the least) and were given up: their accuracy is "
            "the whole network's less what they lost by then."
        )
        yield ""


def _stages_row(ranked: RankedCandidate) -> str:
    stages = ranked.predicted.model_dump()
    cells = " | ".join(f"{stages[f'{stage}_ms']:.1f}" for stage in PREDICTED)
    return f"| {ranked.candidate.name} | {cells} |"
