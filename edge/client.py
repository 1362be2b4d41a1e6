"""The edge's end of the stream: many frames in flight, each with a future for its answer.

    submit(Frame) -> [handshake, once per stream] -> Transport -> cloud
    Future[Answer] <- reader thread, by frame_id  <- Transport <- cloud

A lost stream fails every frame that waits on it; the next frame opens a new one. Nothing is sent a
second time on its own: a camera has a newer frame by then.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field

from common.errors import (
    CloudUnavailableError,
    PayloadError,
    SplitpointError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.rpc import splitpoint_pb2 as pb
from edge.transport import Transport

_LOG = logging.getLogger("splitpoint.edge")
# That one message may carry; of more, the newest.
_MEASUREMENTS = 16


@dataclass(frozen=True)
class Answer:
    """What came back for one frame.

    Attributes:
        result: The cloud's message.
        round_trip_ms: From handing the frame to the stream until its answer was read.
    """

    result: pb.Result
    round_trip_ms: float
    _measurements: "deque[pb.Measurement]" = field(default_factory=deque, repr=False)

    def measured(self, times: pb.EdgeTimes) -> None:
        """Tell the cloud what this frame took, with the next message of its stream."""
        frame_id = self.result.frame_id
        self._measurements.append(pb.Measurement(frame_id=frame_id, times=times))


@dataclass
class _Waiting:
    sent_at_s: float
    future: "Future[Answer]" = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # under way: it can no longer be cancelled


class CloudClient:
    """Frames to the cloud and answers back, over one stream at a time. Thread-safe.

    Args:
        connect: Opens a new stream.
        hello: The first message of every stream.
        connect_timeout_s: How long the cloud may take to greet.
        answer_timeout_s: How long `request` waits for one answer.
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

    @property
    def connected(self) -> bool:
        """Whether a stream is open, as far as is known without sending."""
        stream = self._stream
        return stream is not None and not stream.lost

    def connect(self) -> frozenset[bytes]:
        """Open the stream now; returns the digests of the plans whose tails the cloud holds.

        Raises:
            CloudUnavailableError: If the cloud does not greet.
        """
        return self._open().plan_digests

    def submit(self, message: pb.Frame | pb.Report) -> "Future[Answer]":
        """Send a frame or report; its frame_id is assigned here.

        Raises:
            CloudUnavailableError: If no stream can be opened, or it is lost.
            UnknownPlanError: If the cloud does not hold the frame's plan.
        """
        return self._send(message)[1]

    def request(self, message: pb.Frame | pb.Report) -> Answer:
        """Send a frame or report and wait for its answer.

        Raises:
            CloudUnavailableError: If the cloud is or goes away, fails, or does not answer in time.
            UnknownPlanError: If the cloud does not hold the plan.
            StaleReferenceError: If the cloud does not remember the frame's reference.
            PayloadError: If the cloud cannot decode the payload.
        """
        stream, future = self._send(message)
        try:
            return future.result(self._answer_timeout_s)
        except FutureTimeoutError:
            stream.forget(message.frame_id)
            raise CloudUnavailableError(
                f"the cloud did not answer frame {message.frame_id} "
                f"within {self._answer_timeout_s:g} s"
            ) from None

    def close(self) -> None:
        """End the stream; frames that wait fail. No later call succeeds."""
        self._closed = True
        with self._opening:
            if self._stream is not None:
                self._stream.close()

    def _send(self, message: pb.Frame | pb.Report) -> "tuple[_Stream, Future[Answer]]":
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
                self._stream = _Stream(self._connect(), self._hello, self._connect_timeout_s)
            return self._stream


def _welcome(message: pb.CloudMessage) -> pb.Welcome:
    if message.WhichOneof("kind") != "welcome":
        raise CloudUnavailableError(
            f"expected a Welcome, the cloud sent {message.WhichOneof('kind')}"
        )
    return message.welcome


class _Stream:
    """One stream, from its handshake to its loss."""

    def __init__(self, transport: Transport, hello: pb.Hello, timeout_s: float) -> None:
        self._transport = transport
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
        threading.Thread(target=self._read, name="cloud-reader", daemon=True).start()

    @property
    def lost(self) -> bool:
        return self._error is not None

    def submit(self, message: pb.Frame | pb.Report) -> "Future[Answer]":
        if isinstance(message, pb.Frame) and message.plan_digest not in self.plan_digests:
            raise UnknownPlanError(
                f"the cloud does not hold plan {message.plan_digest.hex()[:12]}: "
                "both ends need the same bundle"
            )
        waiting = _Waiting(sent_at_s=time.perf_counter())
        with self._lock:
            if self._error is not None:
                raise CloudUnavailableError(str(self._error))
            message.frame_id = self._next_id
            self._next_id += 1
            self._waiting[message.frame_id] = waiting
        del message.measured[:]
        with contextlib.suppress(IndexError):
            while True:
                message.measured.append(self._measurements.popleft())
        if isinstance(message, pb.Frame):
            wrapped = pb.EdgeMessage(frame=message)
        else:
            wrapped = pb.EdgeMessage(report=message)
        try:
            self._transport.send(wrapped)
        except CloudUnavailableError as error:
            self._lose(error)
            raise
        return waiting.future

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
        if kind not in {"result", "rejection"}:
            raise CloudUnavailableError(f"expected an answer, the cloud sent {kind}")
        frame_id = message.result.frame_id if kind == "result" else message.rejection.frame_id
        with self._lock:
            waiting = self._waiting.pop(frame_id, None)
        if waiting is None:
            return  # its caller gave up on it
        if kind == "result":
            round_trip_ms = (now_s - waiting.sent_at_s) * 1000
            answer = Answer(message.result, round_trip_ms, self._measurements)
            waiting.future.set_result(answer)
        else:
            waiting.future.set_exception(_rejected(message.rejection))

    def _lose(self, error: CloudUnavailableError) -> None:
        with self._lock:
            if self._error is None:
                self._error = error
            orphans = list(self._waiting.values())
            self._waiting.clear()
        for waiting in orphans:
            waiting.future.set_exception(CloudUnavailableError(str(self._error)))
        self._transport.close()


class Reporter:
    """Sends reports in the background, so that an edge-only frame never waits for the cloud.

    Attributes:
        sent: Reports that the cloud has.
        lost: Reports that were dropped: the cloud was away, refused one, or too many waited.
    """

    def __init__(self, client: CloudClient, *, limit: int = 64) -> None:
        self._client = client
        self._reports: queue.Queue[pb.Report | None] = queue.Queue(limit)
        self._worker: threading.Thread | None = None
        self.sent = 0
        self.lost = 0

    def report(self, message: pb.Report) -> None:
        """Queue a report; never blocks, never raises."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="reporter", daemon=True)
            self._worker.start()
        try:
            self._reports.put_nowait(message)
        except queue.Full:
            self.lost += 1

    def close(self, timeout_s: float = 1.0) -> None:
        """Give the reports that wait a last chance."""
        if self._worker is not None and self._worker.is_alive():
            try:
                self._reports.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._worker.join(timeout_s)

    def _work(self) -> None:
        while (message := self._reports.get()) is not None:
            try:
                self._client.request(message)
            except SplitpointError as error:
                self.lost += 1
                if self.lost == 1:
                    _LOG.warning("a report did not reach the cloud: %s", error)
            else:
                self.sent += 1


def _rejected(rejection: pb.Rejection) -> SplitpointError:
    line = " ".join(rejection.message.split())[:300]
    if rejection.reason == pb.Rejection.REASON_UNKNOWN_PLAN:
        return UnknownPlanError(f"the cloud refused the frame: {line}")
    if rejection.reason == pb.Rejection.REASON_STALE_REFERENCE:
        return StaleReferenceError(f"the cloud refused the frame: {line}")
    if rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD:
        return PayloadError(f"the cloud refused the frame: {line}")
    return CloudUnavailableError(f"the cloud failed on this frame, which may be sent again: {line}")
