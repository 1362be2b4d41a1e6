"""Explains the choice of a plan on a link, and the bandwidths at which the choice changes.

    costs of the plans + link + deadline -> LinkExplanation: plan, reason, stretches of bandwidth

Without a deadline the fastest plan is chosen; with one, the most accurate of those that meet it, or
the fastest if none does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise

from common.latency import PlanCost, lines
from common.link.crossover import Stretch, crossovers
from common.link.link import Link


@dataclass(frozen=True)
class LinkExplanation:
    """The choice among plans on a link, with its reason and the choice at other bandwidths.

    Attributes:
        chosen: The plan that is used.
        reason: Why, in one line.
        stretches: Plan used at each bandwidth, with the same round trip and deadline.
        fastest: All plans, fastest first.
    """

    chosen: PlanCost
    reason: str
    stretches: list[Stretch]
    fastest: list[PlanCost]


def explain(
    costs: Sequence[PlanCost], link: Link, deadline_ms: float | None = None
) -> LinkExplanation:
    """Choose a plan on a link and explain the choice.

    Args:
        costs: Costs of at least one plan; of equally good ones the first is chosen.
        link: Between edge and cloud.
        deadline_ms: Deadline of a frame; None for no deadline.
    """
    fastest = sorted(costs, key=lambda cost: cost.latency_ms(link))
    chosen = _chosen(costs, link.rtt_ms, link.uplink_bps, deadline_ms)
    return LinkExplanation(
        chosen,
        _reason(chosen, fastest, link, deadline_ms),
        _stretches(costs, link.rtt_ms, deadline_ms),
        fastest,
    )


def _chosen(
    costs: Sequence[PlanCost], rtt_ms: float, uplink_bps: float, deadline_ms: float | None
) -> PlanCost:
    def latency_ms(cost: PlanCost) -> float:
        return cost.line(rtt_ms).latency_ms(uplink_bps)

    if deadline_ms is not None:
        meeting = [cost for cost in costs if latency_ms(cost) <= deadline_ms]
        if meeting:
            return min(meeting, key=lambda c: (-c.plan.predicted.known_accuracy, latency_ms(c)))
    return min(costs, key=latency_ms)


def _reason(
    chosen: PlanCost, fastest: Sequence[PlanCost], link: Link, deadline_ms: float | None
) -> str:
    took = f"{chosen.latency_ms(link):.1f} ms"
    if deadline_ms is None:
        runner_up = next((cost for cost in fastest if cost is not chosen), None)
        if runner_up is None:
            return f"the only plan: {took} over {link}"
        more_ms = runner_up.latency_ms(link) - chosen.latency_ms(link)
        return (
            f"the fastest over {link}: {took}; {runner_up.plan.name} would take "
            f"{more_ms:.1f} ms more"
        )
    meeting = sum(cost.latency_ms(link) <= deadline_ms for cost in fastest)
    within = f"within {deadline_ms:g} ms over {link}"
    if not meeting:
        return f"no plan answers {within}; this is the fastest: {took}"
    accuracy = chosen.plan.predicted.accuracy
    which = "the only plan that answers"
    if meeting > 1:
        best = "the fastest" if accuracy is None else "the most accurate"
        which = f"{best} of {meeting} plans that answer"
    known = "" if accuracy is None else f", accuracy {accuracy:.1f}"
    return f"{which} {within}: {took}{known}"


def _stretches(
    costs: Sequence[PlanCost], rtt_ms: float, deadline_ms: float | None
) -> list[Stretch]:
    """Choices at all bandwidths: they change where a plan crosses another one or the deadline."""
    known = lines(costs, rtt_ms)
    if deadline_ms is None:
        return crossovers(known)
    borders = {0.0} | {_bps(line.uplink_bytes, deadline_ms - line.fixed_ms) for line in known}
    borders |= {
        _bps(one.uplink_bytes - other.uplink_bytes, other.fixed_ms - one.fixed_ms)
        for one, other in combinations(known, 2)
    }
    starts = sorted(border for border in borders if 0 <= border < math.inf)
    made: list[Stretch] = []
    for start_bps, end_bps in pairwise([*starts, math.inf]):
        inside_bps = (start_bps + end_bps) / 2 if end_bps < math.inf else 2 * start_bps or 1e6
        line = _chosen(costs, rtt_ms, inside_bps, deadline_ms).line(rtt_ms)
        if made and made[-1].line == line:
            made[-1] = replace(made[-1], to_bps=end_bps)
        else:
            made.append(Stretch(line, start_bps, end_bps))
    return made


def _bps(more_bytes: float, less_ms: float) -> float:
    """Bandwidth at which the transfer of `more_bytes` takes `less_ms`; 0 if there is none."""
    return max(0.0, 8e3 * more_bytes / less_ms) if less_ms else 0.0
