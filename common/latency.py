"""Costs of a plan apart from the link: milliseconds on either side of it, bytes across it.

    latency(plan, link) = edge + bytes / uplink + round trip + cloud

A stage has the latency that the search predicted, until a latency table has a row for it: enough
served frames come before a profile, a profile before everything else. Edge-only has no cloud side,
sends nothing before it answers, and does not depend on the link.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from common.bundle.manifest import Plan, Prediction
from common.link.crossover import Line
from common.link.link import Link
from common.stages import PREDICTED
from common.tables.rows import LatencyRow, Segment, Side, Source, segments, trust


@dataclass(frozen=True)
class StageCost:
    """One stage of a plan.

    Attributes:
        stage: As `common.tables.rows.Segment` has it.
        side: Where it runs.
        ms: Its latency.
        source: Where that comes from.
        n: Runs or frames behind it; 0 of a prediction.
    """

    stage: str
    side: Side
    ms: float
    source: Source | Literal["predicted"]
    n: int = 0


@dataclass(frozen=True)
class PlanCost:
    """A plan and its costs.

    Attributes:
        digest: The plan's digest.
        plan: The plan.
        edge_ms: Preprocess, head and encode; of edge-only, postprocess too.
        cloud_ms: Decode, tail and postprocess; 0 for edge-only.
        uplink_bytes: Size of a frame's message; 0 for edge-only.
        stages: What `edge_ms` and `cloud_ms` are made of, in the order of the path.
    """

    digest: bytes
    plan: Plan
    edge_ms: float
    cloud_ms: float
    uplink_bytes: float
    stages: tuple[StageCost, ...] = ()

    @property
    def needs_cloud(self) -> bool:
        """Whether the plan has a tail."""
        return self.plan.tail is not None

    def latency_ms(self, link: Link) -> float:
        """Expected latency over a link, in milliseconds."""
        return self.line(link.rtt_ms).latency_ms(link.uplink_bps)

    def line(self, rtt_ms: float) -> Line:
        """Expected latency as a function of the bandwidth of the uplink."""
        if not self.needs_cloud:
            return Line(self.plan.name, 0.0, self.edge_ms)
        return Line(self.plan.name, self.uplink_bytes, self.edge_ms + rtt_ms + self.cloud_ms)


def predicted_line(name: str, predicted: Prediction, overhead_bytes: float = 0.0) -> Line:
    """Prediction as a function of the bandwidth, its round trip and device being what they are."""
    fixed = (getattr(predicted, f"{stage}_ms") for stage in PREDICTED if stage != "uplink")
    return Line(name, predicted.uplink_bytes, math.fsum(fixed), overhead_bytes)


def costs(
    plans: Mapping[bytes, Plan],
    rows: Iterable[LatencyRow] = (),
    device: str | None = None,
    runtime: str | None = None,
) -> list[PlanCost]:
    """The costs of a bundle's plans.

    Args:
        plans: By digest.
        rows: Of latency tables.
        device: Whose rows are meant on the edge; None takes those of any. The cloud's always count.
        runtime: Name of the runtime whose rows are meant on the edge; None takes those of any.
    """
    concerned = (row for row in rows if row.side == "cloud" or row.is_of(device, runtime))
    known = {_key(row): row for row in sorted(concerned, key=_worth)}
    return [_cost(digest, plan, known) for digest, plan in plans.items()]


def lines(costs: Iterable[PlanCost], rtt_ms: float) -> list[Line]:
    """Latencies over bandwidth, for `common.link.crossover`, in the same order."""
    return [cost.line(rtt_ms) for cost in costs]


_Key = tuple[str, str, str, str]


def _cost(digest: bytes, plan: Plan, known: Mapping[_Key, LatencyRow]) -> PlanCost:
    stages = tuple(_stage(segment, plan, known) for segment in segments(plan))
    return PlanCost(
        digest,
        plan,
        edge_ms=_sum(stages, "edge"),
        cloud_ms=_sum(stages, "cloud"),
        uplink_bytes=0.0 if plan.tail is None else plan.predicted.uplink_bytes,
        stages=stages,
    )


def _stage(segment: Segment, plan: Plan, known: Mapping[_Key, LatencyRow]) -> StageCost:
    row = known.get((segment.side, segment.network, segment.name, segment.bits))
    if row is not None:
        return StageCost(segment.stage, segment.side, row.median_ms, row.source, row.n)
    predicted_ms: float = getattr(plan.predicted, f"{segment.stage}_ms")
    return StageCost(segment.stage, segment.side, predicted_ms, "predicted")


def _sum(stages: Sequence[StageCost], side: Side) -> float:
    return sum(stage.ms for stage in stages if stage.side == side)


def _key(row: LatencyRow) -> _Key:
    return row.side, row.network, row.segment, row.bits


def _worth(row: LatencyRow) -> tuple[int, float]:
    """Sort key of a row: trust, then recency; the highest row is used."""
    return trust(row), row.last_seen_s
