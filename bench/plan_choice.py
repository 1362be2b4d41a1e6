"""Plans of a bundle that represent their kind in benchmarks."""

from collections.abc import Collection, Mapping

from common.bundle.manifest import Plan, PlanKind

_WITHIN = 1.0
"""Points of accuracy that the cheapest plan may be behind the most accurate one."""
_QUALITY = 75


def cheapest_split(plans: Mapping[bytes, Plan], codecs: Collection[str]) -> bytes | None:
    """Split plan of fewest bytes with one of these codecs; None without any.

    Only plans at most a point less accurate than the most accurate of them count.
    """
    able = {digest: plan for digest, plan in plans.items() if _is(plan, "split", codecs)}
    if not able:
        return None
    least = max(plan.predicted.known_accuracy for plan in able.values()) - _WITHIN
    kept = [digest for digest, plan in able.items() if plan.predicted.known_accuracy >= least]
    return min(kept, key=lambda digest: able[digest].predicted.uplink_bytes)


def upload(plans: Mapping[bytes, Plan], codec: str) -> bytes | None:
    """Upload by an image codec whose quality is nearest to 75; None without any."""
    able = {digest: plan for digest, plan in plans.items() if _is(plan, "cloud-only", [codec])}
    return min(able, key=lambda digest: _off_usual(able[digest]), default=None)


def _is(plan: Plan, kind: PlanKind, codecs: Collection[str]) -> bool:
    return plan.kind == kind and plan.codec is not None and plan.codec.name in codecs


def _off_usual(plan: Plan) -> int:
    quality = None if plan.codec is None else plan.codec.quality
    return abs((quality or 0) - _QUALITY)
