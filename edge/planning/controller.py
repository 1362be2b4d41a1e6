"""The controller: asks the planner for each frame's plan and feeds observations back to it.

    frame -> PlanController.choose -> Planner -> plan       (announced to the cloud when it changes)
    Served -> PlanController.served -> Planner
    no frames for the link -> Prober -> LinkEstimator
    Welcome.learned -> Planner

A cloud that does not answer in time counts as unreachable, and an edge-only plan serves until a
probe is answered again. If the cloud answers with an error, other plans serve for a while.
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
from edge.planning.planner import DEFAULT, PlanChoice, Planner, PlannerSettings, State
from edge.planning.predictor import Expected, Served
from edge.planning.prober import Prober
from edge.planning.timeouts import CLIENT_DEFAULTS, FrameTimeouts
from edge.stream.client import CloudClient, NoAnswerError

_LOG = logging.getLogger("splitpoint.edge")
_TIMEOUT_FACTOR = 4.0
_LEAST_TIMEOUT_S = 1.0
_MAX_REASON = 300


class PlanController:
    """Chooses the plan of every frame.

    Args:
        client: Client of the cloud.
        costs: Of the plans to choose from; the first is used at the start.
        link: Link to assume until it was measured.
        settings: Parameters of switching between plans.
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
        """Connect and measure the link before the first frame.

        Raises:
            CloudUnavailableError: If the cloud does not answer, and every plan needs it.
        """
        try:
            self._prober.calibrate()
        except CloudUnavailableError as error:
            self._planner.lost()
            if not self._planner.can_rest:
                raise
            _LOG.warning("serving without the cloud: %s", error)

    def choose(self, deadline_ms: float | None = None) -> PlanChoice:
        """Choose the plan of the next frame; see `Planner.choose`."""
        self._prober.frame()
        now_s = time.perf_counter()
        choice = self._planner.choose(now_s, deadline_ms)
        if choice.switched:
            _LOG.info("from now on %s: %s", choice.expected.cost.plan.name, choice.reason)
        self._announce(now_s)
        return choice

    def expected(self, digest: bytes) -> Expected | None:
        """Return the prediction for a plan named by the caller; None if the planner lacks it."""
        if self._planner.cost_of(digest) is None:
            return None
        self._prober.frame()
        return self._planner.expected(digest, time.perf_counter())

    def timeouts(
        self, expected: Expected, started_s: float, deadline_ms: float | None = None
    ) -> FrameTimeouts:
        """Return a frame's time-outs for the cloud; the defaults if no edge-only plan can serve.

        Args:
            expected: Prediction for the frame's plan.
            started_s: When its deadline began, by `time.perf_counter`.
            deadline_ms: If given, time is reserved for an edge-only plan to serve the frame after
                the time-out, unless that would cut the time that the chosen plan usually needs.
        """
        if deadline_ms is not None:
            return self._within(expected, started_s, deadline_ms)
        if not self._planner.can_rest:
            return CLIENT_DEFAULTS
        seconds = self._usual_s(expected)
        return FrameTimeouts(connect_s=seconds, answer_s=seconds)

    def _within(self, expected: Expected, started_s: float, deadline_ms: float) -> FrameTimeouts:
        now_s = time.perf_counter()
        end_s = started_s + deadline_ms / 1e3
        resting = self._planner.resting(now_s) if self._planner.can_rest else None
        if expected.latency_ms > deadline_ms:
            # No plan meets it. Waiting no longer than the edge-only plan would take costs at most
            # twice the minimum; a stream is not waited for.
            answer_s = (
                self._usual_s(expected)
                if resting is None
                else max(expected.high_ms, resting.latency_ms) / 1e3
            )
            return FrameTimeouts(answer_s=answer_s, connected_s=end_s)
        answered_s = end_s
        if resting is None:
            return FrameTimeouts(
                connected_s=end_s - expected.latency_ms / 1e3, answered_s=answered_s
            )
        needed_ms = [ms for ms in (resting.high_ms, resting.latency_ms) if ms <= deadline_ms]
        if needed_ms:
            usual_s = now_s + expected.high_ms / 1e3
            answered_s = min(end_s, max(end_s - needed_ms[0] / 1e3, usual_s))
        # A stream that comes later than that would most likely come too late for this frame.
        return FrameTimeouts(connected_s=answered_s - expected.high_ms / 1e3, answered_s=answered_s)

    def _usual_s(self, expected: Expected) -> float:
        return max(_LEAST_TIMEOUT_S, _TIMEOUT_FACTOR * expected.high_ms / 1e3)

    def served(self, expected: Expected, frame: Served) -> None:
        """Record an observation; the first frame is left out, as it includes the warm-up."""
        self._prober.rest()
        if self._warm:
            self._planner.served(expected, frame)
        self._warm = True
        self._planner.foresee(time.perf_counter())

    def failed(
        self, expected: Expected, error: CloudUnavailableError, waited_ms: float
    ) -> bytes | None:
        """Record that the cloud failed on a frame, and choose a fallback plan for it.

        Args:
            expected: Prediction for the frame's plan.
            error: The failure.
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
        """Take over the cloud's list of plans and its observations from edges like this one."""
        self._planner.held(welcome.plan_digests)
        for each in welcome.learned:
            edge_ms, cloud_ms = each.edge_us / 1e3, each.cloud_us / 1e3
            self._planner.seed(each.plan_digest, each.n, edge_ms, cloud_ms, each.uplink_bytes)

    @property
    def current(self) -> bytes:
        """Digest of the plan in use."""
        return self._planner.current

    def state(self) -> State:
        """Return the planner's state: predictions, link estimate and plan in use."""
        return self._planner.state(time.perf_counter())

    def close(self) -> None:
        """Send no more probes."""
        self._prober.close()

    def _announce(self, now_s: float) -> None:
        """Announce the plan in use to the cloud, once for each stream and plan."""
        with self._announcing:  # otherwise two changes might be sent in the wrong order
            stream = self._client.stream
            if stream is None or self._announced == (stream, self._planner.current):
                return
            state = self._planner.state(now_s)
            self._announced = stream, state.current
            self._client.notify(announcement(state))


def announcement(state: State) -> pb.Switch:
    """Build the Switch message that announces a planner's state to the cloud."""
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
