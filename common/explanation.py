"""Why a plan is in use, for people: on the edge that chose it, and in the cloud that was notified.

Switch (the edge's announcement) -> Explanation: plan, reason, link, what is expected of every
                                    plan, and at which bandwidths the choice changes
"""

from collections.abc import Mapping

from pydantic import BaseModel, Field

from common.bundle.manifest import Plan
from common.http.schemas import PlanKey, PlansResponse
from common.link.crossover import Line, crossovers, in_words
from common.rpc import splitpoint_pb2 as pb


class PlanExpectation(BaseModel):
    """Expected latency and upload of one plan on an edge."""

    plan: PlanKey
    latency_ms: float = Field(description="From the picture to its detections.")
    fixed_ms: float = Field(description="The part that no bandwidth changes.")
    uplink_bytes: int = Field(description="Sent for a frame.")


class Explanation(BaseModel):
    """Plan that an edge uses, and why."""

    edge: str
    plan: PlanKey
    reason: str
    uplink_bps: float | None = Field(description="Of the uplink, as estimated; null if unknown.")
    rtt_ms: float | None = Field(description="Of a small message; null if unknown.")
    expected: list[PlanExpectation] = Field(description="Fastest first.")
    crossovers: list[str] = Field(description="The fastest plan at every bandwidth, in words.")


class ExplainedPlans(PlansResponse):
    """The plans of a bundle, and which of them are in use."""

    in_use: list[Explanation] = Field(description="By edge; none for edges with a fixed plan.")


def explanation(edge: str, switch: pb.Switch, plans: Mapping[bytes, Plan]) -> Explanation:
    """Explain an announcement.

    Args:
        edge: Who announced it.
        switch: The announcement, checked.
        plans: Those of the bundle here, by digest; others have no name.
    """
    known = [each for each in switch.expected if each.plan_digest in plans]
    burst = float(switch.burst_bytes)
    lines = [
        Line(
            name=plans[each.plan_digest].name,
            uplink_bytes=max(0.0, each.uplink_bytes - burst),
            fixed_ms=each.fixed_us / 1e3,
            overhead_bytes=max(0.0, each.uplink_bytes - burst) - each.uplink_bytes,
        )
        for each in known
    ]
    return Explanation(
        edge=edge,
        plan=_key(switch.plan_digest, plans),
        reason=" ".join(switch.reason.split()),
        uplink_bps=switch.uplink_bps or None,
        rtt_ms=switch.rtt_us / 1e3 or None,
        expected=[
            PlanExpectation(
                plan=_key(each.plan_digest, plans),
                latency_ms=each.latency_us / 1e3,
                fixed_ms=each.fixed_us / 1e3,
                uplink_bytes=each.uplink_bytes,
            )
            for each in sorted(switch.expected, key=lambda e: e.latency_us)
        ],
        crossovers=in_words(crossovers(lines)),
    )


def _key(digest: bytes, plans: Mapping[bytes, Plan]) -> PlanKey:
    plan = plans.get(digest)
    return PlanKey(name="" if plan is None else plan.name, digest=digest.hex())
