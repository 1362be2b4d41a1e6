"""Difference between the served bundle and one searched with the latencies observed meanwhile.

    old plans --known segments, own times x pace--> prediction now --+
    new plans, predicted by the same times --------------------------+--> gain, stage by stage

Predictions of an old bundle are not compared as they stand: they were made for another link, by
other times. Each of its plans is predicted anew, in this order: segments that the tables know take
what was measured; cuts that this search has timed take their own time here, multiplied by the pace
of their side; and of what is left, the old prediction is freed of the old slowdown first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.bundle.manifest import Manifest, Plan, Prediction, Search, wire_digest
from common.link.link import Link
from common.stages import PREDICTED
from common.tables.rows import LatencyRow, Segment, segments, wire_of
from search.prediction.candidates import Candidate, CostModel, OwnCosts, predicted
from search.prediction.devices import DEVICES
from search.prediction.table_calibration import TableCalibration
from search.reports import time_sources as origins
from search.request import SearchResult

_MOST_ASSUMPTIONS = 10
_NEGLIGIBLE_MS = 0.05


@dataclass(frozen=True)
class RepredictedPlan:
    """A plan of the old bundle, predicted anew.

    Attributes:
        plan: The plan, with the prediction of its own search.
        now: Prediction by the present times.
    """

    plan: Plan
    now: Prediction


@dataclass(frozen=True)
class Assumption:
    """Time that an old search assumed for a segment, and the time expected now.

    Attributes:
        segment: Name of the segment.
        assumed_ms: Time assumed by the old search.
        now_ms: Time expected now.
        row: Measured row that it is based on; None if there is none.
    """

    segment: str
    assumed_ms: float
    now_ms: float
    row: LatencyRow | None

    def __str__(self) -> str:
        how = "expected" if self.row is None else f"{self.row.source} (n = {self.row.n})"
        return f"{self.segment}: {self.assumed_ms:.1f} ms assumed, {self.now_ms:.1f} ms {how}"


@dataclass(frozen=True)
class Difference:
    """Two bundles on one link.

    Attributes:
        old: Plans of the present bundle, the fastest now first.
        new: Plans of the new search, the fastest first.
        old_search: Search settings of the present bundle.
        new_search: Search settings of the new one.
        link: Link on which both are compared.
        calibration: Calibration of the latency tables that the times come from.
        first: Name of the plan that the present bundle's edges begin with.
    """

    old: tuple[RepredictedPlan, ...]
    new: tuple[Plan, ...]
    old_search: Search
    new_search: Search
    link: Link
    calibration: TableCalibration
    first: str

    @property
    def gain(self) -> float:
        """Share of the present bundle's latency that the new one's best plan saves."""
        present_ms = self.old[0].now.latency_ms
        return (present_ms - self.new[0].predicted.latency_ms) / present_ms

    def assumptions(self) -> list[Assumption]:
        """Assumed and expected times of the old plans' segments, largest difference first."""
        result: dict[tuple[str, str], Assumption] = {}
        for again in self.old:
            for segment in segments(again.plan):
                each = _assumption(again, segment, self.calibration)
                if abs(each.now_ms - each.assumed_ms) >= _NEGLIGIBLE_MS:
                    result.setdefault((segment.side, segment.name), each)
        return sorted(result.values(), key=lambda each: -abs(each.now_ms - each.assumed_ms))


def compare(present: Manifest, proposed: Manifest, result: SearchResult) -> Difference:
    """Compare a bundle with the result of a search with latency tables.

    Args:
        present: The bundle that is served.
        proposed: Manifest written by the search.
        result: Result of the search.

    Raises:
        ValueError: If the search had no tables.
    """
    if result.cost_model.calibration is None:
        raise ValueError("a search without tables has learnt nothing of the present bundle")
    known = {each.coding: each for each in reversed([j.candidate for j in result.ranked])}
    old = [
        RepredictedPlan(plan, predict_again(plan, present.search, result, known.get(_coding(plan))))
        for plan in present.plans
    ]
    return Difference(
        old=tuple(sorted(old, key=lambda again: again.now.latency_ms)),
        new=tuple(sorted(proposed.plans, key=lambda plan: plan.predicted.latency_ms)),
        old_search=present.search,
        new_search=proposed.search,
        link=result.cost_model.link,
        calibration=result.cost_model.calibration,
        first=present.plans[0].name,
    )


def predict_again(
    plan: Plan, old_search: Search, result: SearchResult, alike: Candidate | None = None
) -> Prediction:
    """Predict a plan's latency with the cost model of another search.

    Args:
        plan: Plan of an older bundle.
        old_search: Search settings of that bundle.
        result: Result of the other search.
        alike: The other search's candidate of the same wire format.
    """
    before, cut = plan.predicted, "+".join(plan.cut)
    edge, cloud = _old_slowdowns(old_search)
    times = result.times.get(cut)
    coded = (before.encode_ms / edge, before.decode_ms / cloud)
    costs = OwnCosts(
        coding=_coding(plan),
        cut=cut,
        codec=plan.codec,
        head_ms=before.head_ms / edge if times is None else times.head.median_ms,
        encode_ms=coded[0] if alike is None else alike.encode_ms,
        decode_ms=coded[1] if alike is None else alike.decode_ms,
        tail_ms=before.tail_ms / cloud if times is None else times.tail.median_ms,
        sent_bytes=before.uplink_bytes,
        edge_memory_bytes=before.edge_memory_bytes,
    )
    cost_model: CostModel = result.cost_model
    measured = ("accuracy", "accuracy_drop", "accuracy_drop_upper", "judged_images", "judged_by")
    kept = {name: getattr(before, name) for name in measured}
    return predicted(costs, cost_model).model_copy(update=kept)


def _coding(plan: Plan) -> str:
    """Name of a plan's coding in latency tables."""
    return wire_of("+".join(plan.cut), plan.codec, wire_digest(plan.wire, plan.codec))


def markdown(difference: Difference) -> str:
    """The difference in Markdown."""
    best, new = difference.old[0], difference.new[0]
    lines = [
        f"# {difference.new_search.model}: {new.name} instead of {best.plan.name}",
        "",
        verdict(difference),
        "",
        *(f"- {line}" for line in origins.in_words(difference.calibration)),
        "",
        *_metrics(difference),
        "## Stage by stage (ms)",
        "",
        f"Old is {best.plan.name}, as its search assumed and as it is now; new is {new.name}.",
        "",
        "| stage | old, assumed | old, now | new | gain |",
        "|---|--:|--:|--:|--:|",
        *_stage_rows(best, new),
        "",
        "## Plan by plan (ms)",
        "",
        "| present plan | assumed | now | change |",
        "|---|--:|--:|--:|",
        *(_plan_row(again) for again in difference.old),
        "",
        "| new plan | now | against the best present one |",
        "|---|--:|--:|",
        *(_new_row(plan, best.now.latency_ms) for plan in difference.new),
        "",
        "## What was assumed, and what is so",
        "",
        *_assumed(difference),
    ]
    return "\n".join(lines) + "\n"


def verdict(difference: Difference) -> str:
    """One sentence that compares the two best plans."""
    best, new = difference.old[0], difference.new[0]
    return (
        f"On {difference.link} {new.name} takes {new.predicted.latency_ms:.1f} ms; "
        f"{best.plan.name}, the best of the present bundle, takes {best.now.latency_ms:.1f} ms "
        f"({best.plan.predicted.latency_ms:.1f} ms were assumed): {_change(difference.gain)}."
    )


def _change(gain: float) -> str:
    """Latency gain in words."""
    return f"{gain:.1%} less" if gain >= 0 else f"{-gain:.1%} more"


def _assumption(
    again: RepredictedPlan, segment: Segment, calibration: TableCalibration
) -> Assumption:
    side = calibration.edge if segment.side == "edge" else calibration.cloud
    return Assumption(
        segment=segment.name,
        assumed_ms=_ms(again.plan.predicted, segment.stage),
        now_ms=_ms(again.now, segment.stage),
        row=side.rows.get(segment.name),
    )


def _old_slowdowns(old_search: Search) -> tuple[float, float]:
    """Slowdowns of edge and cloud in an old search; before they were stored, by device profile."""
    profile = DEVICES.get(old_search.device)
    usual = 1.0 if profile is None else profile.slowdown
    return old_search.edge_slowdown or usual, old_search.cloud_slowdown


def _ms(prediction: Prediction, stage: str) -> float:
    times: Mapping[str, float] = prediction.model_dump()
    return times[f"{stage}_ms"]


def _stage_rows(best: RepredictedPlan, new: Plan) -> Iterable[str]:
    for stage in (*PREDICTED, "latency"):
        assumed, now = _ms(best.plan.predicted, stage), _ms(best.now, stage)
        then = _ms(new.predicted, stage)
        yield f"| {stage} | {assumed:.1f} | {now:.1f} | {then:.1f} | {now - then:.1f} |"


def _plan_row(again: RepredictedPlan) -> str:
    assumed, now = again.plan.predicted.latency_ms, again.now.latency_ms
    return f"| {again.plan.name} | {assumed:.1f} | {now:.1f} | {now - assumed:+.1f} |"


def _new_row(plan: Plan, present_ms: float) -> str:
    now = plan.predicted.latency_ms
    return f"| {plan.name} | {now:.1f} | {now - present_ms:+.1f} |"


def _assumed(difference: Difference) -> Sequence[str]:
    lines = []
    old = Link(
        difference.old_search.uplink_bps,
        difference.old_search.uplink_bps,
        difference.old_search.rtt_ms,
    )
    if (old.uplink_bps, old.rtt_ms) != (difference.link.uplink_bps, difference.link.rtt_ms):
        lines.append(f"- link: {old} assumed, {difference.link} now")
    lines += [f"- {each}" for each in difference.assumptions()[:_MOST_ASSUMPTIONS]]
    return lines or ["Everything was as it was assumed."]


def _metrics(difference: Difference) -> Iterable[str]:
    """Warning if the accuracy metrics of both bundles differ."""
    old, new = difference.old_search.accuracy_metric, difference.new_search.accuracy_metric
    if old != new:
        yield (
            f"Accuracy was measured in {old} and is now measured in {new}: a limit on its drop "
            "does not mean the same."
        )
        yield ""
