"""Predictions: the expected latency of every plan for the next frame, corrected by observations.

    search's predictions x corrections + link estimate -> expected latency of every plan
    observation -> corrections, coverage

Predictions are memoised until an observation of a plan or of the link arrives, or for 1 s. A caller
that asks for them right after a frame was answered saves the next frame the computation.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from common.latency import PlanCost
from common.link.link import Link
from edge.link.estimate import Estimate, LinkEstimator
from edge.planning.correction import Correction, Coverage

_MOST_SEED = 10
_QUEUE_GAIN = 0.2
_FRESH_S = 1.0
"""Lifetime of memoised predictions: the uncertainty of the link grows with time."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Prediction for one plan at one moment; compared by identity.

    Attributes:
        cost: The plan and its uncorrected costs.
        latency_ms: From the picture to its detections.
        low_ms: Lower end of the 95 % prediction interval.
        high_ms: Its upper end.
        fixed_ms: The part that does not depend on the uplink's bandwidth.
        uplink_bytes: Of a frame.
        spread: Standard deviation of the logarithm of `latency_ms`.
    """

    cost: PlanCost
    latency_ms: float
    low_ms: float
    high_ms: float
    fixed_ms: float
    uplink_bytes: float
    spread: float

    @property
    def digest(self) -> bytes:
        """Digest of the plan."""
        return self.cost.digest


@dataclass(frozen=True)
class Served:
    """Observation of one frame: its latency, split by side, and the bytes sent.

    Attributes:
        edge_ms: Time on the edge, hand-overs between threads included.
        cloud_ms: Time in the cloud, without queueing; 0 for edge-only.
        queue_ms: Queueing time in the cloud; 0 for edge-only.
        uplink_bytes: Of the message; 0 for edge-only.
        latency_ms: End-to-end latency.
    """

    edge_ms: float
    cloud_ms: float
    queue_ms: float
    uplink_bytes: float
    latency_ms: float


@dataclass(frozen=True)
class _Reckoned:
    """Memoised predictions, with the version of the link estimate and the time they are from."""

    link_version: int
    since_s: float
    expected: dict[bytes, Expected]


class Expectations:
    """Predictions for every plan, by digest. Not thread-safe.

    Args:
        costs: Uncorrected costs of the plans, by digest.
        link: Link to assume until it was measured.
        estimator: Estimator of the link.
    """

    def __init__(
        self, costs: Mapping[bytes, PlanCost], link: Link, estimator: LinkEstimator
    ) -> None:
        self._costs = costs
        self._link = link
        self._estimator = estimator
        self._edge, self._cloud, self._bytes = Correction(), Correction(), Correction()
        self._coverage = Coverage()
        self._queue_ms = 0.0
        self._reckoned: _Reckoned | None = None

    def now(self, now_s: float) -> Mapping[bytes, Expected]:
        """Return the prediction for every plan at a time of the edge's monotonic clock."""
        known = self._reckoned
        version = self._estimator.version  # read first: the estimate may be newer by then
        if known is None or known.link_version != version or now_s - known.since_s > _FRESH_S:
            link = self._estimator.estimate(now_s)
            expected = {digest: self._one(cost, link) for digest, cost in self._costs.items()}
            known = self._reckoned = _Reckoned(version, now_s, expected)
        return known.expected

    def served(self, choice: Expected, frame: Served) -> None:
        """Update corrections and coverage from a frame that was answered."""
        self._reckoned = None
        cost = choice.cost
        for each in (self._edge, self._cloud, self._bytes):
            each.step()
        self._edge.update(cost.digest, frame.edge_ms, cost.edge_ms)
        if cost.needs_cloud:
            self._cloud.update(cost.digest, frame.cloud_ms, cost.cloud_ms)
            self._bytes.update(cost.digest, frame.uplink_bytes, cost.uplink_bytes)
            self.queued(frame.queue_ms)
        self._coverage.update(cost.digest, frame.latency_ms, choice.latency_ms)

    def queued(self, queue_ms: float) -> None:
        """Update the average queueing time of the cloud."""
        self._reckoned = None
        self._queue_ms += _QUEUE_GAIN * (queue_ms - self._queue_ms)

    def seed(self, digest: bytes, n: int, edge_ms: float, cloud_ms: float, size: float) -> None:
        """Initialise the corrections of a plan from the medians of n earlier frames."""
        cost = self._costs.get(digest)
        if cost is not None and n > 0:
            self._reckoned = None
            weight = min(n, _MOST_SEED)
            self._edge.seed(digest, edge_ms, cost.edge_ms, weight)
            self._cloud.seed(digest, cloud_ms, cost.cloud_ms, weight)
            self._bytes.seed(digest, size, cost.uplink_bytes, weight)

    @property
    def drifts(self) -> tuple[int, int]:
        """Number of drift alarms of the edge's and of the cloud's times."""
        return self._edge.drifts, self._cloud.drifts

    @property
    def coverage(self) -> float | None:
        """Share of the frames that lay in their 95 % interval; None at the beginning."""
        known = self._coverage.n
        return self._coverage.covered / known if known else None

    def _one(self, cost: PlanCost, link: Estimate) -> Expected:
        digest = cost.digest
        edge_ms = cost.edge_ms * self._edge.factor(digest)
        parts = [(edge_ms, self._edge.spread(digest))]
        size = transfer_ms = fixed_ms = 0.0
        if cost.needs_cloud:
            size = cost.uplink_bytes * self._bytes.factor(digest)
            transfer_ms = link.uplink_ms(size, self._link)
            rtt_ms = self._link.rtt_ms if link.rtt_ms is None else link.rtt_ms
            cloud_ms = cost.cloud_ms * self._cloud.factor(digest)
            fixed_ms = rtt_ms + self._queue_ms + cloud_ms
            parts += [(cloud_ms, self._cloud.spread(digest))]
            parts += [(transfer_ms, math.hypot(link.spread, self._bytes.spread(digest)))]
        fixed_ms += edge_ms
        latency_ms = fixed_ms + transfer_ms
        low, high = self._coverage.interval(digest)
        return Expected(
            cost=cost,
            latency_ms=latency_ms,
            low_ms=latency_ms * low,
            high_ms=latency_ms * high,
            fixed_ms=fixed_ms,
            uplink_bytes=size,
            spread=math.hypot(*(ms * spread for ms, spread in parts)) / max(latency_ms, 1e-9),
        )
