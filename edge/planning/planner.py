"""The online planner: chooses the plan of the next frame.

    Expectations -> expected latency of every plan -> choice
    observation -> Expectations

It runs on the edge, which detects a slower link, an unreachable cloud and the deadline of a request
before any message could cross the link. The cloud's observations from earlier streams of similar
edges initialise the corrections.

A switch of plans waits until the cumulative regret of staying reaches a set fraction of one frame's
latency: the rule of the ski rental problem. Large gains switch within two frames, small ones once
they have added up, noise about zero never; and no bandwidth makes two plans alternate.

For a deadline, the most accurate plan that is expected to meet it is chosen. Where recent frames
had one, the link is probed if a more accurate plan could meet it over a faster link.

A plan whose uncertainty leaves open that it is faster is tried for single frames, as long as the
cumulative cost of trials stays below a small share of the time spent.
"""

import math
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from common.latency import PlanCost
from common.link.link import Link
from edge.link.estimate import Estimate, LinkEstimator
from edge.planning.predictor import Expectations, Expected, Served

_FORGIVING = 0.9
_RECENT_S = 3.0
"""How long a frame's deadline is taken into account when probing."""
_MOST_DEADLINES = 16
_FAILED_PAUSES_S = 1.0, 30.0
"""Back-off of a plan that the cloud failed on: initial and maximum."""


@dataclass(frozen=True)
class PlannerSettings:
    """Parameters of switching between plans.

    Attributes:
        switch_cost: Cumulative regret (fractions of one frame's latency) required before switching.
        dwell_s: Minimum time between two switches, unless the current plan cannot serve.
        trial_share: Share of the total latency that trials of other plans may cost.
        least_gain: Minimum relative gain in latency that counts towards a switch.
    """

    switch_cost: float = 0.25
    dwell_s: float = 0.3
    trial_share: float = 0.01
    least_gain: float = 0.01


DEFAULT = PlannerSettings()


@dataclass(frozen=True)
class PlanChoice:
    """The plan chosen for one frame.

    Attributes:
        expected: The plan, with its prediction.
        switched: Whether this choice changes the plan in use.
        reason: Why, in one line.
    """

    expected: Expected
    switched: bool
    reason: str

    @property
    def digest(self) -> bytes:
        """Digest of the plan."""
        return self.expected.digest


@dataclass(frozen=True)
class _Failed:
    """Back-off of a plan that the cloud failed on: its end and its length."""

    until_s: float
    pause_s: float


@dataclass(frozen=True)
class State:
    """Snapshot of a planner: predictions, link estimate and plan in use.

    Attributes:
        expected: Prediction for every plan, fastest first.
        current: Digest of the plan in use.
        reason: Why it is in use.
        link: Estimate of the link.
        cloud_away: Whether the cloud was last found unreachable.
        drifts: Number of drift alarms of the edge's and of the cloud's times.
        coverage: Share of the frames that lay in their 95 % interval; None at the beginning.
    """

    expected: tuple[Expected, ...]
    current: bytes
    reason: str
    link: Estimate
    cloud_away: bool
    drifts: tuple[int, int]
    coverage: float | None


class Planner:
    """Chooses plans by their predicted latency, updated from observations. Thread-safe.

    Args:
        costs: Of the plans to choose from; the first is used at the start.
        link: Link to assume until it was measured.
        estimator: Estimator of the link; updated by the client that sends messages.
        settings: Parameters of switching.
    """

    def __init__(
        self,
        costs: Sequence[PlanCost],
        link: Link,
        estimator: LinkEstimator,
        settings: PlannerSettings = DEFAULT,
    ) -> None:
        self._costs = {cost.digest: cost for cost in costs}
        self._expectations = Expectations(self._costs, link, estimator)
        self._settings = settings
        self._lock = threading.Lock()
        self._estimator = estimator
        self._away = False
        self._held: frozenset[bytes] | None = None
        self._failed: dict[bytes, _Failed] = {}
        self._deadlines: dict[float, float] = {}
        self._undated_s = -math.inf
        self._current = next(iter(self._costs))
        self._reason = "the first of the bundle"
        self._switched_s = -math.inf
        self._regret = 0.0
        self._spent_ms = self._trials_ms = 0.0

    def choose(self, now_s: float, deadline_ms: float | None = None) -> PlanChoice:
        """Choose the plan of the next frame.

        Args:
            now_s: By the edge's monotonic clock.
            deadline_ms: If given, the most accurate plan that is expected to meet it serves this
                frame, or the fastest if none is; the plan in use does not change.
        """
        with self._lock:
            expected = self._expectations.now(now_s)
            if deadline_ms is not None:
                self._remember(deadline_ms, now_s)
                return self._in_time(self._able(expected.values(), now_s), deadline_ms)
            self._undated_s = now_s
            return self._without_deadline(expected, now_s)

    def foresee(self, now_s: float) -> None:
        """Compute the next predictions ahead of `choose`, while no frame waits for them."""
        with self._lock:
            self._expectations.now(now_s)

    def served(self, choice: Expected, frame: Served) -> None:
        """Record the observation of a frame that was answered."""
        with self._lock:
            self._expectations.served(choice, frame)
            if choice.cost.needs_cloud:
                self._away = False
                self._failed.pop(choice.digest, None)
            self._spent_ms += frame.latency_ms

    def probed(self, queue_ms: float) -> None:
        """Record an answered probe: the cloud is reachable, and its queueing time."""
        with self._lock:
            self._away = False
            self._expectations.queued(queue_ms)

    def lost(self) -> None:
        """Mark the cloud as unreachable."""
        with self._lock:
            self._away = True

    def held(self, digests: Collection[bytes]) -> None:
        """Set the plans whose tails the cloud holds; no other plan with a tail can serve."""
        with self._lock:
            self._held = frozenset(digests)
            self._failed.clear()

    def missing(self, digest: bytes) -> None:
        """Mark a plan whose tail the cloud does not hold."""
        with self._lock:
            held = frozenset(self._costs) if self._held is None else self._held
            self._held = held - {digest}

    def failed(self, digest: bytes, now_s: float) -> None:
        """Record that the cloud failed on a frame of a plan, which starts the plan's back-off."""
        with self._lock:
            first_s, most_s = _FAILED_PAUSES_S
            before = self._failed.get(digest)
            if before is not None and now_s < before.until_s:
                return  # of frames that were under way together, one counts
            pause_s = first_s if before is None else min(2 * before.pause_s, most_s)
            self._failed[digest] = _Failed(now_s + pause_s, pause_s)

    def seed(self, digest: bytes, n: int, edge_ms: float, cloud_ms: float, size: float) -> None:
        """Initialise the corrections of a plan from the medians of n earlier frames."""
        with self._lock:
            self._expectations.seed(digest, n, edge_ms, cloud_ms, size)

    def resting(self, now_s: float) -> Expected:
        """Return the fastest plan that needs no cloud; there must be one."""
        with self._lock:
            able = [e for e in self._expectations.now(now_s).values() if not e.cost.needs_cloud]
            return min(able, key=lambda e: e.latency_ms)

    def instead(self, digest: bytes, now_s: float) -> Expected | None:
        """Return the fastest fallback for a frame that the cloud failed on, edge-only if possible.

        Returns:
            None if no other plan can serve.
        """
        if self.can_rest:
            return self.resting(now_s)
        with self._lock:
            if self._away:
                return None
            able = self._sound(self._expectations.now(now_s).values(), now_s)
            others = [e for e in able if e.digest != digest]
            return min(others, key=lambda e: e.latency_ms) if others else None

    def cost_of(self, digest: bytes) -> PlanCost | None:
        """Return the uncorrected costs of a plan; None if the planner does not have it."""
        return self._costs.get(digest)

    def expected(self, digest: bytes, now_s: float) -> Expected:
        """Return the prediction for one plan."""
        with self._lock:
            return self._expectations.now(now_s)[digest]

    def state(self, now_s: float) -> State:
        """Return a snapshot of predictions, link estimate and plan in use."""
        with self._lock:
            expected = sorted(self._expectations.now(now_s).values(), key=lambda e: e.latency_ms)
            return State(
                expected=tuple(expected),
                current=self._current,
                reason=self._reason,
                link=self._estimator.estimate(now_s),
                cloud_away=self._away,
                drifts=self._expectations.drifts,
                coverage=self._expectations.coverage,
            )

    def wants_probe(self, now_s: float) -> bool:
        """Whether a new measurement of the link could change the choice.

        It could not if no plan that needs the cloud would be chosen at infinite bandwidth: for
        being faster where frames have no deadline, for being more accurate within the deadline
        where recent frames had one.
        """
        with self._lock:
            if self._away:
                return True
            expected = self._expectations.now(now_s)
            able = self._able(expected.values(), now_s)
            deadlines = [ms for ms, at_s in self._deadlines.items() if now_s - at_s <= _RECENT_S]
            if any(_might_change(able, self._in_time(able, ms), ms) for ms in deadlines):
                return True
            if deadlines and now_s - self._undated_s > _RECENT_S:
                return False
            current = expected[self._current]
            return any(e.fixed_ms < current.latency_ms for e in able if e.cost.needs_cloud)

    @property
    def current(self) -> bytes:
        """Digest of the plan in use."""
        return self._current

    @property
    def cloud_away(self) -> bool:
        """Whether the cloud was last found unreachable."""
        return self._away

    @property
    def can_rest(self) -> bool:
        """Whether some plan serves without the cloud."""
        return any(not cost.needs_cloud for cost in self._costs.values())

    def _without_deadline(self, expected: Mapping[bytes, Expected], now_s: float) -> PlanChoice:
        able = self._able(expected.values(), now_s)
        best = min(able, key=lambda e: e.latency_ms)
        current = expected[self._current]
        if current not in able:
            why = self._why_unable(current)
            return self._switch(best, now_s, why)
        gain = 1 - best.latency_ms / current.latency_ms
        if gain < self._settings.least_gain:
            self._regret *= _FORGIVING
            return self._trial(current, able) or PlanChoice(current, False, self._reason)
        self._regret += gain
        rested = now_s - self._switched_s >= self._settings.dwell_s
        if self._regret < self._settings.switch_cost or not rested:
            return PlanChoice(current, False, self._reason)
        reason = (
            f"{best.latency_ms:.1f} ms expected, "
            f"{current.latency_ms:.1f} with {current.cost.plan.name}"
        )
        return self._switch(best, now_s, reason)

    def _switch(self, best: Expected, now_s: float, reason: str) -> PlanChoice:
        self._current, self._reason = best.digest, reason
        self._switched_s, self._regret = now_s, 0.0
        return PlanChoice(best, True, reason)

    def _trial(self, current: Expected, able: Sequence[Expected]) -> PlanChoice | None:
        """Return a plan that may be faster within its uncertainty, if the budget allows a trial."""
        hopeful = [
            e
            for e in able
            if e.digest != current.digest
            and e.latency_ms * math.exp(-e.spread) < current.latency_ms
        ]
        if not hopeful:
            return None
        tried = min(hopeful, key=lambda e: e.latency_ms * math.exp(-e.spread))
        price_ms = max(0.0, tried.latency_ms - current.latency_ms)
        if self._trials_ms + price_ms > self._settings.trial_share * self._spent_ms:
            return None
        self._trials_ms += price_ms
        return PlanChoice(tried, False, f"tried: it may be faster than {current.cost.plan.name}")

    def _remember(self, deadline_ms: float, now_s: float) -> None:
        """Record a deadline to two significant digits; only the latest few are kept."""
        deadline_ms = float(f"{deadline_ms:.2g}")
        self._deadlines.pop(deadline_ms, None)
        self._deadlines[deadline_ms] = now_s
        if len(self._deadlines) > _MOST_DEADLINES:
            del self._deadlines[next(iter(self._deadlines))]

    def _in_time(self, able: Sequence[Expected], deadline_ms: float) -> PlanChoice:
        in_time = [e for e in able if e.high_ms <= deadline_ms]
        if not in_time:
            fastest = min(able, key=lambda e: e.latency_ms)
            return PlanChoice(
                fastest, False, f"the fastest; none keeps {_in_ms(deadline_ms)} ms for sure"
            )
        best = min(in_time, key=_by_accuracy)
        return PlanChoice(best, False, f"the most accurate within {_in_ms(deadline_ms)} ms")

    def _able(self, expected: Collection[Expected], now_s: float) -> Sequence[Expected]:
        """Return the plans that can serve; if none can, those that a healthy cloud could serve."""
        sound = self._sound(expected, now_s)
        known = sound or [e for e in expected if self._is_held(e)] or list(expected)
        return [e for e in known if not (self._away and e.cost.needs_cloud)] or known

    def _sound(self, expected: Collection[Expected], now_s: float) -> list[Expected]:
        """Return the plans that are edge-only, or held by the cloud and not backing off."""
        failed = self._failed
        return [
            e
            for e in expected
            if self._is_held(e) and not (e.digest in failed and now_s < failed[e.digest].until_s)
        ]

    def _is_held(self, expected: Expected) -> bool:
        return not expected.cost.needs_cloud or self._held is None or expected.digest in self._held

    def _why_unable(self, current: Expected) -> str:
        if self._away:
            return "the cloud is away"
        if self._is_held(current):
            return "the cloud failed on frames of the plan before"
        return "the cloud does not hold the plan before"


def _in_ms(deadline_ms: float) -> str:
    return f"{deadline_ms:.0f}" if deadline_ms >= 100 else f"{deadline_ms:.3g}"


def _by_accuracy(expected: Expected) -> tuple[float, float]:
    """Sort key of plans that meet a deadline: most accurate first, then fastest."""
    return -expected.cost.plan.predicted.known_accuracy, expected.latency_ms


def _might_change(able: Sequence[Expected], choice: PlanChoice, deadline_ms: float) -> bool:
    """Whether another bandwidth could change the choice for a deadline."""
    chosen = choice.expected
    if chosen.cost.needs_cloud:
        return True  # a link that falls could end it
    kept = chosen.high_ms <= deadline_ms
    for each in able:
        if not each.cost.needs_cloud:
            continue
        best_ms = each.fixed_ms * each.high_ms / each.latency_ms  # over an infinite bandwidth
        if not kept and each.fixed_ms < chosen.latency_ms:
            return True
        if best_ms <= deadline_ms and (not kept or _by_accuracy(each)[0] < _by_accuracy(chosen)[0]):
            return True
    return False
