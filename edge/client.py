"""The edge's end of the stream: many frames in flight, each with a future for its answer.

    submit(Frame) -> [handshake, once per stream] -> Transport -> cloud
    Future[Answer] <- reader thread, by frame_id  <- Transport <- cloud

A lost stream fails every frame that waits on it; the next frame opens a new one. Nothing is sent a
second time on its own: a camera has a newer frame by then. Every answer teaches the client's
`LinkEstimator` about the link.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import (
    CloudUnavailableError,
    PayloadError,
    SplitpointError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.rpc import splitpoint_pb2 as pb
from edge.link_estimate import LinkEstimator, Passage, Transit
from edge.transport import Transport

# That one message may carry; of more, the newest.
_MEASUREMENTS = 16

Asking = pb.Frame | pb.Report | pb.Probe
"""What the cloud answers."""
Telling = pb.Switch | pb.ProfileReport
"""What it does not."""


class Listener(Protocol):
    """Who wants to know what the cloud says beside answers; called from the client's threads."""

    def welcomed(self, welcome: pb.Welcome) -> None:
        """A stream was opened."""

    def ordered(self, order: pb.ProfileOrder) -> pb.ProfileReport:
        """The cloud asks for a profile; may take its time."""


@dataclass(frozen=True)
class Answer:
    """What came back for one frame.

    Attributes:
        result: The cloud's message.
        round_trip_ms: From handing the frame to the stream until its answer was read.
        passage: The link's share of it, up and down.
    """

    result: pb.Result
    round_trip_ms: float
    passage: Passage
    _measurements: "deque[pb.Measurement]" = field(default_factory=deque, repr=False)

    def measured(self, times: pb.EdgeTimes) -> None:
        """Tell the cloud what this frame took, with the next message of its stream."""
        frame_id = self.result.frame_id
        self._measurements.append(pb.Measurement(frame_id=frame_id, times=times))


@dataclass
class _Waiting:
    sent_at_s: float
    size_bytes: int = 0
    gone_at_s: float | None = None
    future: "Future[Answer]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # under way: it can no longer be cancelled

    def gone(self) -> None:
        self.gone_at_s = time.perf_counter()


class CloudClient:
    """Frames to the cloud and answers back, over one stream at a time. Thread-safe.

    Args:
        connect: Opens a new stream.
        hello: The first message of every stream.
        connect_timeout_s: How long the cloud may take to greet.
        answer_timeout_s: How long `request` waits for one answer, if it is not told.

    Attributes:
        link: What its messages have taught about the link.
    """

    def __init__(
        self,
        connect: Callable[[], Transport],
        hello: pb.Hello,
        *,
        connect_timeout_s: float = 5.0,
        answer_timeout_s: float = 10.0,
    ) -> None:
        self._connect = connect
        self._hello = hello
        self._connect_timeout_s = connect_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._opening = threading.Lock()
        self._stream: _Stream | None = None
        self._closed = False
        self._listener: Listener | None = None
        self.link = LinkEstimator()

    def listen(self, listener: Listener) -> None:
        """Tell this one what the cloud says from the next stream on."""
        self._listener = listener

    @property
    def connected(self) -> bool:
        """Whether a stream is open, as far as is known without sending."""
        stream = self._stream
        return stream is not None and not stream.lost

    @property
    def stream(self) -> object | None:
        """The open stream, to tell it from later ones; None if there is none."""
        stream = self._stream
        return None if stream is None or stream.lost else stream

    def connect(self) -> frozenset[bytes]:
        """Open the stream now; returns the digests of the plans whose tails the cloud holds.

        Raises:
            CloudUnavailableError: If the cloud does not greet.
        """
        return self._open().plan_digests

    def submit(self, message: Asking) -> "Future[Answer]":
        """Send a frame, report or probe; its frame_id is assigned here.

        Raises:
            CloudUnavailableError: If no stream can be opened, or it is lost.
            UnknownPlanError: If the cloud does not hold the frame's plan.
        """
        return self._send(message)[1]

    def tell(self, message: Telling) -> None:
        """Send what is not answered, if a stream is open; it is lost with its stream."""
        stream = self._stream
        if stream is not None and not stream.lost:
            with contextlib.suppress(CloudUnavailableError):
                stream.tell(message)

    def request(self, message: Asking, timeout_s: float | None = None) -> Answer:
        """Send a frame, report or probe and wait for its answer.

        Args:
            message: What to send; its frame_id is assigned here.
            timeout_s: How long to wait, if not as long as usual.

        Raises:
            CloudUnavailableError: If the cloud is or goes away, fails, or does not answer in time.
            UnknownPlanError: If the cloud does not hold the plan.
            StaleReferenceError: If the cloud does not remember the frame's reference.
            PayloadError: If the cloud cannot decode the payload.
        """
        timeout_s = self._answer_timeout_s if timeout_s is None else timeout_s
        stream, future = self._send(message)
        try:
            return future.result(timeout_s)
        except FutureTimeoutError:
            stream.forget(message.frame_id)
            raise CloudUnavailableError(
                f"the cloud did not answer frame {message.frame_id} within {timeout_s:g} s"
            ) from None

    def reset(self) -> None:
        """Give the stream up, so that the next message opens a new one; frames that wait fail."""
        stream = self._stream
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """End the stream; frames that wait fail. No later call succeeds."""
        self._closed = True
        with self._opening:
            if self._stream is not None:
                self._stream.close()

    def _send(self, message: Asking) -> "tuple[_Stream, Future[Answer]]":
        stream = self._open()
        try:
            return stream, stream.submit(message)
        except CloudUnavailableError:
            # The stream had ended unnoticed, and the message never left: a new one may carry it.
            stream = self._open()
            return stream, stream.submit(message)

    def _open(self) -> "_Stream":
        stream = self._stream
        if stream is not None and not stream.lost:
            return stream
        with self._opening:
            if self._closed:
                raise CloudUnavailableError("the client is closed")
            if self._stream is None or self._stream.lost:
                self._stream = None
                self._stream = _Stream(
                    self._connect(), self._hello, self._connect_timeout_s, self.link, self._listener
                )
            return self._stream


def _welcome(message: pb.CloudMessage) -> pb.Welcome:
    if message.WhichOneof("kind") != "welcome":
        raise CloudUnavailableError(
            f"expected a Welcome, the cloud sent {message.WhichOneof('kind')}"
        )
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
        except CloudUnavailableError:
            transport.close()
            raise
        self.plan_digests = frozenset(greeting.plan_digests)
        link.reconnected()
        if listener is not None:
            listener.welcomed(greeting)
        threading.Thread(target=self._read, name="cloud-reader", daemon=True).start()

    @property
    def lost(self) -> bool:
        return self._error is not None

    def submit(self, message: Asking) -> "Future[Answer]":
        if isinstance(message, pb.Frame) and message.plan_digest not in self.plan_digests:
            raise UnknownPlanError(
                f"the cloud does not hold plan {message.plan_digest.hex()[:12]}: "
                "both ends need the same bundle"
            )
        if not isinstance(message, pb.Probe):
            del message.measured[:]
            with contextlib.suppress(IndexError):
                while True:
                    message.measured.append(self._measurements.popleft())
        waiting = _Waiting(sent_at_s=time.perf_counter(), size_bytes=message.ByteSize())
        with self._lock:
            if self._error is not None:
                raise CloudUnavailableError(str(self._error))
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

    def tell(self, message: Telling) -> None:
        if isinstance(message, pb.Switch):
            self._transport.send(pb.EdgeMessage(switch=message))
        else:
            self._transport.send(pb.EdgeMessage(profile=message))

    def forget(self, frame_id: int) -> None:
        """Drop a frame that nobody waits for any more."""
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

    def _deliver(self, message: pb.CloudMessage) -> None:
        now_s = time.perf_counter()
        kind = message.WhichOneof("kind")
        if kind == "order":
            threading.Thread(
                target=self._obey, args=(message.order,), name="profile", daemon=True
            ).start()
            return
        if kind not in {"result", "rejection"}:
            raise CloudUnavailableError(f"expected an answer, the cloud sent {kind}")
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
        if not times.arrived_us:  # a cloud that does not tell: nothing to learn from
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
        """Answer an order; one at a time, since two profiles would measure each other."""
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
            if self._error is None:
                self._error = error
            orphans = list(self._waiting.values())
            self._waiting.clear()
        for waiting in orphans:
            waiting.future.set_exception(CloudUnavailableError(str(self._error)))
        self._transport.close()


def _rejected(rejection: pb.Rejection) -> SplitpointError:
    line = " ".join(rejection.message.split())[:300]
    if rejection.reason == pb.Rejection.REASON_UNKNOWN_PLAN:
        return UnknownPlanError(f"the cloud refused the frame: {line}")
    if rejection.reason == pb.Rejection.REASON_STALE_REFERENCE:
        return StaleReferenceError(f"the cloud refused the frame: {line}")
    if rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD:
        return PayloadError(f"the cloud refused the frame: {line}")
    return CloudUnavailableError(f"the cloud failed on this frame, which may be sent again: {line}")
