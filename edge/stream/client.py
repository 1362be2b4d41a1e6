"""The edge's end of the stream: many frames in flight, each with a future for its answer.

    submit(Frame) -> [handshake, once per stream] -> Transport -> cloud
    Future[Answer] <- reader thread, by frame_id  <- Transport <- cloud

A lost stream fails every frame that waits on it; the next frame opens a new one. Nothing is sent
again automatically: a camera has a newer frame by then. Every answer updates the client's
`LinkEstimator`.

One background thread connects, and all callers share the outcome of its attempt, each with its own
time-out. After a failed attempt, the next one waits for a growing back-off; until then callers fail
at once. The back-off for an overloaded cloud is longer.
"""

import contextlib
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

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
from edge.logs import Sparingly
from edge.stream.transport import Transport

_LOG = logging.getLogger("splitpoint.edge")

# Most measurements that are kept for the next message; older ones are dropped.
_MEASUREMENTS = 16

_AWAY_PAUSES_S = 0.1, 0.8
"""Back-off between attempts to connect, initial and maximum: a restarted cloud is found in that."""
_FULL_PAUSES_S = 0.5, 8.0
"""Back-off after an overloaded cloud, initial and maximum."""
_LATE_S = 1.0
"""How much longer than its own time-out an attempt to connect may take to end."""

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


class NoAnswerError(CloudUnavailableError):
    """A message that was sent but not answered in time: the link may be slow."""


class _Pause:
    """Exponential back-off: doubles after each failure in a row, up to a maximum."""

    def __init__(self, bounds_s: tuple[float, float]) -> None:
        self._first_s, self._most_s = bounds_s
        self._next_s = self._first_s
        self._lock = threading.Lock()
        self.until_s = -float("inf")

    def begin(self, now_s: float, asked_s: float = 0.0) -> None:
        """Start a pause; a pause already running is left as it is.

        Args:
            now_s: The time.
            asked_s: The cloud's retry-after time; capped at the longest pause.
        """
        with self._lock:
            if now_s >= self.until_s:
                self.until_s = now_s + min(max(self._next_s, asked_s), self._most_s)
                self._next_s = min(2 * self._next_s, self._most_s)

    def left_s(self, now_s: float) -> float:
        """Return the seconds left of the pause; 0 outside a pause."""
        return max(0.0, self.until_s - now_s)

    def end(self, now_s: float = float("inf")) -> None:
        """Reset the back-off, unless a pause is running at `now_s`."""
        with self._lock:
            if now_s >= self.until_s:
                self._next_s = self._first_s
                self.until_s = -float("inf")


class CloudClient:
    """Client of the cloud: sends messages and returns answers over one stream. Thread-safe.

    Args:
        connect: Opens a new stream.
        hello: The first message of every stream.
        connect_timeout_s: How long the cloud may take to answer the handshake.
        answer_timeout_s: Default time-out of `request`.
        clock: Seconds of a monotonic clock, for pauses between attempts to connect.

    Attributes:
        link: Estimator of the link, updated by the client's messages.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        hello: pb.Hello,
        *,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 10.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._connect = connect
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._clock = clock
        self._opening = threading.Lock()
        self._attempt: Future[_Stream] | None = None
        self._failure: SplitpointError | None = None
        self._away = _Pause(_AWAY_PAUSES_S)
        self._full = _Pause(_FULL_PAUSES_S)
        self._sparingly = Sparingly()
        self._stream: _Stream | None = None
        self._closed = False
        self._listener: Listener | None = None
        self.link = LinkEstimator()

    def listen(self, listener: Listener) -> None:
        """Set the listener that is notified of the cloud's messages, from the next stream on."""
        self._listener = listener

    @property
    def connected(self) -> bool:
        """Whether a stream is open; a loss may be unnoticed until something is sent."""
        stream = self._stream
        return stream is not None and not stream.lost

    @property
    def stream(self) -> object | None:
        """Identity of the open stream, different for each stream; None if there is none."""
        stream = self._stream
        return None if stream is None or stream.lost else stream

    @property
    def quiet_until_s(self) -> float:
        """End of the back-off after an overloaded cloud, by the clock."""
        return self._full.until_s

    def connect(self, timeout_s: float | None = None) -> frozenset[bytes]:
        """Open the stream now; returns the digests of the plans whose tails the cloud holds.

        Args:
            timeout_s: How long to wait for it, by default as long as the handshake may take; an
                attempt that takes longer continues in the background.

        Raises:
            CloudUnavailableError: If the handshake fails, or has failed within the back-off, or the
                cloud is overloaded.
        """
        self._check_room()
        return self._open(timeout_s).plan_digests

    def require(self, plan_digest: bytes, connect_s: float | None = None) -> None:
        """Require that a frame of a plan can be sent, before its head is run.

        Raises:
            CloudUnavailableError: See `connect`.
            PlanNotHeldError: If the cloud does not hold the plan.
        """
        self._check_room()
        self._open(connect_s).require(plan_digest)

    def submit(self, message: Request, connect_s: float | None = None) -> "Future[Answer]":
        """Send a frame, report or probe; its frame_id is assigned here.

        Args:
            message: What to send.
            connect_s: How long to wait for a stream, as for `connect`.

        Raises:
            CloudUnavailableError: If no stream can be opened, it is lost, or the cloud is
                overloaded.
            PlanNotHeldError: If the cloud does not hold the frame's plan.
        """
        return self._send(message, connect_s)[1]

    def tell(self, message: Notification) -> None:
        """Send a message without an answer, if a stream is open; it may be lost with the stream."""
        stream = self._stream
        if stream is not None and not stream.lost:
            with contextlib.suppress(CloudUnavailableError):
                stream.tell(message)

    def request(
        self,
        message: Request,
        timeout_s: float | None = None,
        connect_s: float | None = None,
    ) -> Answer:
        """Send a frame, report or probe and wait for its answer.

        Args:
            message: What to send; its frame_id is assigned here.
            timeout_s: How long to wait for the answer; the client's default, if None.
            connect_s: How long to wait for a stream, as for `connect`.

        Raises:
            CloudUnavailableError: If the cloud is unreachable, overloaded or answers too late.
            CloudFailedError: If it refuses the message.
            PlanNotHeldError: If the cloud does not hold the plan.
            StaleReferenceError: If the cloud does not remember the frame's reference.
        """
        timeout_s = self._answer_timeout_s if timeout_s is None else timeout_s
        stream, future = self._send(message, connect_s)
        try:
            answer = future.result(timeout_s)
        except FutureTimeoutError:
            stream.forget(message.frame_id)
            raise NoAnswerError(
                f"the cloud did not answer frame {message.frame_id} within {timeout_s:.3g} s"
            ) from None
        except CloudOverloadedError as error:
            self._full.begin(self._clock(), error.retry_after_s)
            raise
        if isinstance(message, pb.Frame):
            self._full.end(self._clock())  # it may have been sent before the cloud was overloaded
        return answer

    def reset(self) -> None:
        """Close the stream; waiting frames fail, and the next message opens a new stream."""
        stream = self._stream
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """Close the client: waiting frames fail, and no later call succeeds."""
        with self._opening:
            self._closed = True
            attempt, stream = self._attempt, self._stream
        if attempt is not None:
            _settle(attempt, CloudUnavailableError("the client is closed"))
        if stream is not None:
            stream.close()

    def _send(self, message: Request, connect_s: float | None) -> "tuple[_Stream, Future[Answer]]":
        if not isinstance(message, pb.Probe):
            self._check_room()
        until_s = self._clock() + self._patience_s(connect_s)
        stream = self._open(connect_s)
        try:
            return stream, stream.submit(message)
        except PlanNotHeldError:
            raise
        except CloudUnavailableError:
            # The stream had ended unnoticed, and the message never left: a new one may carry it.
            stream = self._open(max(0.0, until_s - self._clock()))
            return stream, stream.submit(message)

    def _check_room(self) -> None:
        """Require that no back-off after an overloaded cloud is running."""
        left_s = self._full.left_s(self._clock())
        if left_s:
            raise CloudOverloadedError(
                "the cloud has no room now: it is left alone for a moment", retry_after_s=left_s
            )

    def _patience_s(self, connect_s: float | None) -> float:
        return self._connect_timeout_s + _LATE_S if connect_s is None else connect_s

    def _open(self, connect_s: float | None) -> "_Stream":
        """Return the open stream, or wait for the shared attempt to open one."""
        stream = self._stream
        if stream is not None and not stream.lost:
            return stream
        attempt = self._attempted()
        try:
            return attempt.result(self._patience_s(connect_s))
        except FutureTimeoutError:
            raise CloudUnavailableError(
                f"no stream to the cloud within {self._patience_s(connect_s):.3g} s"
            ) from None
        except SplitpointError as error:
            raise _again(error) from error  # each caller raises its own

    def _attempted(self) -> "Future[_Stream]":
        """Return the running attempt to connect, or start one; a finished one if connected."""
        with self._opening:
            if self._closed:
                raise CloudUnavailableError("the client is closed")
            if self._attempt is not None:
                return self._attempt
            attempt: Future[_Stream] = Future()
            if self._stream is not None and not self._stream.lost:
                attempt.set_result(self._stream)
                return attempt
            paused = self._clock() < max(self._away.until_s, self._full.until_s)
            if self._failure is not None and paused:
                raise _again(self._failure)
            self._attempt = attempt
            threading.Thread(
                target=self._try, args=(attempt,), name="cloud-connect", daemon=True
            ).start()
            return attempt

    def _try(self, attempt: "Future[_Stream]") -> None:
        """Open a stream and give all waiting callers the outcome."""
        try:
            stream = _Stream(
                self._connect(), self._hello, self._connect_timeout_s, self.link, self._listener
            )
        except SplitpointError as error:
            self._failed(attempt, error)
        except Exception as error:  # noqa: BLE001 - the waiting callers must get it
            why = f"connecting failed by a bug ({type(error).__name__}: {error})"
            if self._sparingly.due(why):
                _LOG.error("connecting failed", exc_info=error)
            self._failed(attempt, CloudUnavailableError(why))
        else:
            with self._opening:
                self._attempt, self._failure = None, None
                self._stream = stream
                self._away.end()
                closed = self._closed
            if closed:
                stream.close()
            _settle(attempt, stream)

    def _failed(self, attempt: "Future[_Stream]", error: SplitpointError) -> None:
        pause = self._full if isinstance(error, CloudOverloadedError) else self._away
        with self._opening:
            self._attempt, self._failure = None, error
            pause.begin(self._clock())
        if times := self._sparingly.due(type(error).__name__):
            _LOG.info("no stream to the cloud (%d times): %s", times, error)
        _settle(attempt, error)


def _settle(attempt: "Future[_Stream]", outcome: "_Stream | SplitpointError") -> None:
    """End an attempt to connect, unless the client was closed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, SplitpointError):
            attempt.set_exception(outcome)
        else:
            attempt.set_result(outcome)


E = TypeVar("E", bound=SplitpointError)


def _again(error: E) -> E:
    """Copy an error, so that each caller raises its own."""
    return copy.copy(error)


def _welcome(message: pb.CloudMessage) -> pb.Welcome:
    if message.WhichOneof("kind") != "welcome":
        raise CloudFailedError(f"expected a Welcome, the cloud sent {message.WhichOneof('kind')}")
    return message.welcome


class _Stream:
    """One stream, from its handshake to its loss."""

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
            greeting = _welcome(transport.receive(timeout_s))
            self.plan_digests = frozenset(greeting.plan_digests)
            link.reconnected()
            if listener is not None:
                listener.welcomed(greeting)
        except BaseException:
            transport.close()
            raise
        threading.Thread(target=self._read, name="cloud-reader", daemon=True).start()

    @property
    def lost(self) -> bool:
        return self._error is not None

    def require(self, plan_digest: bytes) -> None:
        """Require that the cloud holds a plan."""
        if plan_digest not in self.plan_digests:
            raise PlanNotHeldError(
                f"the cloud does not hold plan {plan_digest.hex()[:12]}: "
                "both ends need the same bundle"
            )

    def submit(self, message: Request) -> "Future[Answer]":
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
                raise _again(self._error)
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

    def tell(self, message: Notification) -> None:
        if isinstance(message, pb.Switch):
            self._transport.send(pb.EdgeMessage(switch=message))
        else:
            self._transport.send(pb.EdgeMessage(profile=message))

    def forget(self, frame_id: int) -> None:
        """Drop a frame whose caller no longer waits."""
        with self._lock:
            self._waiting.pop(frame_id, None)

    def close(self) -> None:
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
            self.tell(report)

    def _lose(self, error: CloudUnavailableError) -> None:
        with self._lock:
            self._error = self._error or error
            orphans = list(self._waiting.values())
            self._waiting.clear()
        for waiting in orphans:
            waiting.future.set_exception(_again(self._error))
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
