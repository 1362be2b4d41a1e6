"""One stream to the cloud: its handshake, the messages under way, and a future for each answer.

    submit -> [frame_id, pending measurements] -> Transport -> cloud
    Future[Answer] <- reader thread, by frame_id <- Transport <- cloud

Every answer updates the link's estimator. A lost stream fails every frame that waits on it.
"""

import contextlib
import copy
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import (
    CloudFailedError,
    CloudOverloadedError,
    CloudUnavailableError,
    PlanNotHeldError,
    SplitpointError,
    StaleReferenceError,
)
from common.rpc import splitpoint_pb2 as pb
from edge.link.estimate import LinkEstimator, Passage, Transit
from edge.stream.transport import Transport

# Most measurements that are kept for the next message; older ones are dropped.
_MEASUREMENTS = 16

Request = pb.Frame | pb.Report | pb.Probe
"""Messages that the cloud answers."""
Notification = pb.Switch | pb.ProfileReport
"""Messages that the cloud does not answer."""


class Listener(Protocol):
    """Receiver of the cloud's messages other than answers; called from the client's threads."""

    def welcomed(self, welcome: pb.Welcome) -> None:
        """Handle the Welcome of a new stream."""

    def ordered(self, order: pb.ProfileOrder) -> pb.ProfileReport:
        """Carry out the cloud's order for a profile; may block for the whole profile."""


@dataclass(frozen=True)
class Answer:
    """The cloud's answer to one message, with the times of its round trip.

    Attributes:
        result: The cloud's message.
        round_trip_ms: From handing the message to the stream until its answer was read.
        passage: The link's share of it, uplink and downlink.
    """

    result: pb.Result
    round_trip_ms: float
    passage: Passage
    _measurements: "deque[pb.Measurement]" = field(default_factory=deque, repr=False)

    def measured(self, times: pb.EdgeTimes) -> None:
        """Send the frame's times to the cloud, with the next message of the stream."""
        frame_id = self.result.frame_id
        self._measurements.append(pb.Measurement(frame_id=frame_id, times=times))


@dataclass
class _Waiting:
    sent_at_s: float
    size_bytes: int = 0
    gone_at_s: float | None = None
    future: "Future[Answer]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # already sent: it can no longer be cancelled

    def gone(self) -> None:
        self.gone_at_s = time.perf_counter()


class CloudStream:
    """One stream, from its handshake to its loss.

    Args:
        transport: Carries the messages; closed if the handshake fails.
        hello: The first message.
        timeout_s: Time-out of the handshake.
        link: Estimator of the link, updated by the stream's messages.
        listener: Receives messages that are no answers.

    Attributes:
        plan_digests: Digests of the plans whose tails the cloud holds.

    Raises:
        CloudUnavailableError: If the handshake fails.
    """

    def __init__(
        self,
        transport: Transport,
        hello: pb.Hello,
        timeout_s: float,
        link: LinkEstimator,
        listener: Listener | None,
    ) -> None:
        self._transport = transport
        self._link = link
        self._listener = listener
        self._profiling = threading.Lock()
        self._lock = threading.Lock()
        self._waiting: dict[int, _Waiting] = {}
        self._measurements: deque[pb.Measurement] = deque(maxlen=_MEASUREMENTS)
        self._next_id = 1
        self._error: CloudUnavailableError | None = None
        try:
            transport.send(pb.EdgeMessage(hello=hello))
            welcome = _welcome(transport.receive(timeout_s))
            self.plan_digests = frozenset(welcome.plan_digests)
            link.reconnected()
            if listener is not None:
                listener.welcomed(welcome)
        except BaseException:
            transport.close()
            raise
        threading.Thread(target=self._read, name="cloud-reader", daemon=True).start()

    @property
    def lost(self) -> bool:
        """Whether the stream is known to have ended."""
        return self._error is not None

    def require(self, plan_digest: bytes) -> None:
        """Require that the cloud holds a plan."""
        if plan_digest not in self.plan_digests:
            raise PlanNotHeldError(
                f"the cloud does not hold plan {plan_digest.hex()[:12]}: "
                "both ends need the same bundle"
            )

    def submit(self, message: Request) -> "Future[Answer]":
        """Send a message; its frame_id is assigned here.

        Raises:
            CloudUnavailableError: If the stream is lost.
            PlanNotHeldError: If the cloud does not hold the frame's plan.
        """
        if isinstance(message, pb.Frame):
            self.require(message.plan_digest)
        if not isinstance(message, pb.Probe):
            del message.measured[:]
            with contextlib.suppress(IndexError):
                while True:
                    message.measured.append(self._measurements.popleft())
        waiting = _Waiting(sent_at_s=time.perf_counter(), size_bytes=message.ByteSize())
        with self._lock:
            if self._error is not None:
                raise copy.copy(self._error)
            message.frame_id = self._next_id
            self._next_id += 1
            self._waiting[message.frame_id] = waiting
        if isinstance(message, pb.Frame):
            wrapped = pb.EdgeMessage(frame=message)
        elif isinstance(message, pb.Report):
            wrapped = pb.EdgeMessage(report=message)
        else:
            wrapped = pb.EdgeMessage(probe=message)
        try:
            self._transport.send(wrapped, waiting.gone)
        except CloudUnavailableError as error:
            self._lose(error)
            raise
        return waiting.future

    def notify(self, message: Notification) -> None:
        """Send a message that is not answered.

        Raises:
            CloudUnavailableError: If the stream is lost.
        """
        if isinstance(message, pb.Switch):
            self._transport.send(pb.EdgeMessage(switch=message))
        else:
            self._transport.send(pb.EdgeMessage(profile=message))

    def forget(self, frame_id: int) -> None:
        """Drop a frame whose caller no longer waits."""
        with self._lock:
            self._waiting.pop(frame_id, None)

    def close(self) -> None:
        """End the stream; waiting frames fail."""
        self._lose(CloudUnavailableError("the client is closed"))

    def _read(self) -> None:
        try:
            while True:
                self._deliver(self._transport.receive())
        except CloudUnavailableError as error:
            self._lose(error)
        except Exception as error:  # noqa: BLE001 - without a reader, frames would wait in vain
            self._lose(CloudFailedError(f"what the cloud sent cannot be used: {error}"))

    def _deliver(self, message: pb.CloudMessage) -> None:
        now_s = time.perf_counter()
        kind = message.WhichOneof("kind")
        if kind == "order":
            threading.Thread(
                target=self._obey, args=(message.order,), name="profile", daemon=True
            ).start()
            return
        if kind not in {"result", "rejection"}:
            raise CloudFailedError(f"expected an answer, the cloud sent {kind}")
        frame_id = message.result.frame_id if kind == "result" else message.rejection.frame_id
        with self._lock:
            waiting = self._waiting.pop(frame_id, None)
        if waiting is None:
            return  # its caller gave up on it
        if kind == "result":
            round_trip_ms = (now_s - waiting.sent_at_s) * 1000
            passage = self._passage(waiting, message.result.times, now_s)
            answer = Answer(message.result, round_trip_ms, passage, self._measurements)
            waiting.future.set_result(answer)
        else:
            waiting.future.set_exception(_rejected(message.rejection))

    def _passage(self, waiting: _Waiting, times: pb.CloudTimes, now_s: float) -> Passage:
        if not times.arrived_us:  # a cloud that does not send the arrival time: no observation
            trip_ms = (now_s - waiting.sent_at_s) * 1e3 - times.total_us / 1e3
            return Passage(max(0.0, trip_ms), 0.0)
        arrived_s = times.arrived_us / 1e6
        left_s = arrived_s + times.total_us / 1e6
        return self._link.passed(
            Transit(
                waiting.sent_at_s, arrived_s, left_s, now_s, waiting.size_bytes, waiting.gone_at_s
            )
        )

    def _obey(self, order: pb.ProfileOrder) -> None:
        """Carry out an order; one at a time, since two profiles would disturb each other."""
        if self._listener is None:
            report = pb.ProfileReport(error="this edge does not profile itself")
        elif not self._profiling.acquire(blocking=False):
            report = pb.ProfileReport(error="this edge is being profiled already")
        else:
            try:
                report = self._listener.ordered(order)
            except SplitpointError as error:
                report = pb.ProfileReport(error=" ".join(str(error).split())[:300])
            finally:
                self._profiling.release()
        report.order_id = order.order_id
        with contextlib.suppress(CloudUnavailableError):
            self.notify(report)

    def _lose(self, error: CloudUnavailableError) -> None:
        with self._lock:
            self._error = self._error or error
            orphans = list(self._waiting.values())
            self._waiting.clear()
        for waiting in orphans:
            waiting.future.set_exception(copy.copy(self._error))
        self._transport.close()


def _rejected(rejection: pb.Rejection) -> SplitpointError:
    line = f"the cloud refused the frame: {' '.join(rejection.message.split())[:300]}"
    if rejection.reason == pb.Rejection.REASON_UNKNOWN_PLAN:
        return PlanNotHeldError(line)
    if rejection.reason == pb.Rejection.REASON_STALE_REFERENCE:
        return StaleReferenceError(line)
    if rejection.reason == pb.Rejection.REASON_OVERLOADED:
        return CloudOverloadedError(line, retry_after_s=rejection.retry_after_ms / 1e3)
    return CloudFailedError(line)


def _welcome(message: pb.CloudMessage) -> pb.Welcome:
    if message.WhichOneof("kind") != "welcome":
        raise CloudFailedError(f"expected a Welcome, the cloud sent {message.WhichOneof('kind')}")
    return message.welcome
