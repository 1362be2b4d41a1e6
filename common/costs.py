"""What a plan costs apart from the link: milliseconds on either side of it, bytes across it.

    latency(plan, link) = edge + bytes / uplink + round trip + cloud

Edge-only has no cloud side, sends nothing before it answers, and knows no link.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from common.link import Link
from common.manifest import Plan


@dataclass(frozen=True)
class PlanCost:
    """A plan and what it costs.

    Attributes:
        digest: The plan's digest.
        plan: The plan.
        edge_ms: Preprocess, head and encode; of edge-only, postprocess too.
        cloud_ms: Decode, tail and postprocess; 0 for edge-only.
        uplink_bytes: Size of a frame's message; 0 for edge-only.
    """

    digest: bytes
    plan: Plan
    edge_ms: float
    cloud_ms: float
    uplink_bytes: float

    @property
    def needs_cloud(self) -> bool:
        """Whether the plan has a tail."""
        return self.plan.tail is not None

    def latency_ms(self, link: Link) -> float:
        """Expected over a link."""
        if not self.needs_cloud:
            return self.edge_ms
        uplink_ms = self.uplink_bytes * 8e3 / link.uplink_bps
        return self.edge_ms + uplink_ms + link.rtt_ms + self.cloud_ms


def costs(plans: Mapping[bytes, Plan]) -> list[PlanCost]:
    """The costs of a bundle's plans, as the search predicted them."""
    return [_cost(digest, plan) for digest, plan in plans.items()]


def _cost(digest: bytes, plan: Plan) -> PlanCost:
    expected = plan.predicted
    edge_ms = expected.preprocess_ms + expected.head_ms
    if plan.tail is None:
        return PlanCost(digest, plan, edge_ms + expected.postprocess_ms, 0.0, 0.0)
    cloud_ms = expected.decode_ms + expected.tail_ms + expected.postprocess_ms
    return PlanCost(digest, plan, edge_ms + expected.encode_ms, cloud_ms, expected.uplink_bytes)
