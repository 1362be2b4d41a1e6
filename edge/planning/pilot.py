"""The pilot: who asks the planner before every frame, and tells it and the cloud what came of it.

    frame -> Pilot.choose -> Planner -> plan       (announced to the cloud when it changes)
    Outcome -> Pilot.served -> Planner
    no frames for the link -> Prober -> LinkEstimator
    Welcome.learned -> Planner

A cloud that does not answer in good time is taken for away, and a plan without it serves, until a
probe gets through again. One that answers with an error loses the plan's next frames to others.
"""

import logging
import threading
import time
from collections.abc import Sequence

from common.errors import CloudFailedError, CloudUnavailableError, PlanNotHeldError
from common.latency import PlanCost
from common.link.link import Link
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds
from edge.planning.patience import AS_USUAL, Patience
from edge.planning.planner import DEFAULT, PlanChoice, Planner, PlannerSettings, State
from edge.planning.predictor import Expected, Served
from edge.planning.prober import Prober
from edge.stream.client import CloudClient, NoAnswerError

_LOG = logging.getLogger("splitpoint.edge")
_PATIENCE = 4.0
_LEAST_PATIENCE_S = 1.0
_MAX_REASON = 300


class Pilot:
    """Chooses the plan of every frame.

    Args:
        client: The way to the cloud.
        costs: Of the plans to choose from; the first is used at the start.
        link: What is believed of the link until it was measured.
        settings: How eagerly plans are switched.
    """

    def __init__(
        self,
        client: CloudClient,
        costs: Sequence[PlanCost],
        link: Link,
        settings: PlannerSettings = DEFAULT,
    ) -> None:
        self._client = client
        self._planner = Planner(costs, link, client.link, settings)
        self._prober = Prober(client, self._planner)
        self._announced: tuple[object, bytes] | None = None
        self._announcing = threading.Lock()
        self._warm = False

    def ready(self) -> None:
        """Connect and learn the link, so that the first frame need not.

        Raises:
            CloudUnavailableError: If the cloud does not greet, and no plan does without it.
        """
        try:
            self._prober.calibrate()
        except CloudUnavailableError as error:
            self._planner.lost()
            if not self._planner.can_rest:
                raise
            _LOG.warning("serving without the cloud: %s", error)

    def choose(self, deadline_ms: float | None = None) -> PlanChoice:
        """The plan of the next frame; see `Planner.choose`."""
        self._prober.frame()
        now_s = time.perf_counter()
        choice = self._planner.choose(now_s, deadline_ms)
        if choice.switched:
            _LOG.info("from now on %s: %s", choice.expected.cost.plan.name, choice.reason)
        self._announce(now_s)
        return choice

    def expected(self, digest: bytes) -> Expected | None:
        """What is expected of a plan that was asked for by name; None if it is not chosen from."""
        if self._planner.cost_of(digest) is None:
            return None
        self._prober.frame()
        return self._planner.expected(digest, time.perf_counter())

    def patience(
        self, expected: Expected, started_s: float, deadline_ms: float | None = None
    ) -> Patience:
        """How long a frame waits for the cloud; as long as usual if nothing else can serve.

        Args:
            expected: Its plan.
            started_s: When its deadline began, by `time.perf_counter`.
            deadline_ms: If given, a plan without the cloud is left the time that it takes, unless
                that would not give the frame's own plan the time that it usually needs.
        """
        if deadline_ms is not None:
            return self._within(expected, started_s, deadline_ms)
        if not self._planner.can_rest:
            return AS_USUAL
        seconds = self._usual_s(expected)
        return Patience(connect_s=seconds, answer_s=seconds)

    def _within(self, expected: Expected, started_s: float, deadline_ms: float) -> Patience:
        now_s = time.perf_counter()
        end_s = started_s + deadline_ms / 1e3
        resting = self._planner.resting(now_s) if self._planner.can_rest else None
        if expected.latency_ms > deadline_ms:
            # Nothing keeps it. Where another plan could serve, waiting for no longer than that
            # takes costs at most twice the least; a stream is not waited for.
            answer_s = (
                self._usual_s(expected)
                if resting is None
                else max(expected.high_ms, resting.latency_ms) / 1e3
            )
            return Patience(answer_s=answer_s, connected_s=end_s)
        answered_s = end_s
        if resting is None:
            return Patience(connected_s=end_s - expected.latency_ms / 1e3, answered_s=answered_s)
        needed_ms = [ms for ms in (resting.high_ms, resting.latency_ms) if ms <= deadline_ms]
        if needed_ms:
            usual_s = now_s + expected.high_ms / 1e3
            answered_s = min(end_s, max(end_s - needed_ms[0] / 1e3, usual_s))
        # A stream that comes later than that would most likely come too late for this frame.
        return Patience(connected_s=answered_s - expected.high_ms / 1e3, answered_s=answered_s)

    def _usual_s(self, expected: Expected) -> float:
        return max(_LEAST_PATIENCE_S, _PATIENCE * expected.high_ms / 1e3)

    def served(self, expected: Expected, frame: Served) -> None:
        """Learn from a frame that was answered; the first is as slow as no other will be."""
        self._prober.rest()
        if self._warm:
            self._planner.served(expected, frame)
        self._warm = True
        self._planner.foresee(time.perf_counter())

    def failed(
        self, expected: Expected, error: CloudUnavailableError, waited_ms: float
    ) -> bytes | None:
        """Learn that the cloud failed on a frame.

        Args:
            expected: The frame's plan.
            error: How it failed.
            waited_ms: How long the frame has waited.

        Returns:
            Digest of the plan that serves the frame instead; None if none can.
        """
        now_s = time.perf_counter()
        if isinstance(error, PlanNotHeldError):
            self._planner.missing(expected.digest)
        elif isinstance(error, CloudFailedError):
            self._planner.failed(expected.digest, now_s)
        else:
            self._planner.lost()
            if isinstance(error, NoAnswerError):
                size_bytes = round(expected.uplink_bytes)
                self._client.link.overdue(now_s, size_bytes, waited_ms)
                self._prober.doubt()
        self._prober.rest()
        instead = self._planner.instead(expected.digest, now_s)
        return None if instead is None else instead.digest

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Start from the plans that the cloud holds, and what it has learnt of edges like this."""
        self._planner.held(welcome.plan_digests)
        for each in welcome.learned:
            edge_ms, cloud_ms = each.edge_us / 1e3, each.cloud_us / 1e3
            self._planner.seed(each.plan_digest, each.n, edge_ms, cloud_ms, each.uplink_bytes)

    @property
    def current(self) -> bytes:
        """Digest of the plan in use."""
        return self._planner.current

    def state(self) -> State:
        """All that is believed."""
        return self._planner.state(time.perf_counter())

    def close(self) -> None:
        """Send no more probes."""
        self._prober.close()

    def _announce(self, now_s: float) -> None:
        """Tell the cloud which plan is used, once for each stream and plan."""
        with self._announcing:  # or the cloud might hear of two changes in the wrong order
            stream = self._client.stream
            if stream is None or self._announced == (stream, self._planner.current):
                return
            state = self._planner.state(now_s)
            self._announced = stream, state.current
            self._client.tell(announcement(state))


def announcement(state: State) -> pb.Switch:
    """What the cloud is told of a planner's state."""
    link = state.link
    return pb.Switch(
        plan_digest=state.current,
        reason=state.reason[:_MAX_REASON],
        uplink_bps=link.uplink_bps or 0.0,
        rtt_us=microseconds(link.rtt_ms or 0.0),
        burst_bytes=round(link.burst_bytes),
        expected=[
            pb.Expectation(
                plan_digest=each.digest,
                latency_us=microseconds(each.latency_ms),
                fixed_us=microseconds(each.fixed_ms),
                uplink_bytes=round(each.uplink_bytes),
            )
            for each in state.expected
        ],
    )
