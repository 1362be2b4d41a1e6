"""The edge's end of the stream: many frames in flight, each with a future for its answer.

    request, submit, notify -> CloudClient -> CloudStream (edge.stream.connection) -> cloud

A lost stream fails every frame that waits on it; the next frame opens a new one. Nothing is sent
again automatically: a camera has a newer frame by then.

One background thread connects, and all callers share the outcome of its attempt, each with its own
time-out. After a failed attempt, the next one waits for a growing back-off; until then callers fail
at once. The back-off for an overloaded cloud is longer.
"""

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeoutError

from common.errors import (
    CloudOverloadedError,
    CloudUnavailableError,
    PlanNotHeldError,
    SplitpointError,
)
from common.http.log_limits import EventLimit
from common.rpc import splitpoint_pb2 as pb
from edge.link.estimate import LinkEstimator
from edge.stream.backoff import Backoff
from edge.stream.connection import Answer, CloudStream, Listener, Notification, Request
from edge.stream.transport import Transport

_LOG = logging.getLogger("splitpoint.edge")

_AWAY_PAUSES_S = 0.1, 0.8
"""Back-off between attempts to connect, initial and maximum: a restarted cloud is found in that."""
_FULL_PAUSES_S = 0.5, 8.0
"""Back-off after an overloaded cloud, initial and maximum."""
_LATE_S = 1.0
"""How much longer than its own time-out an attempt to connect may take to end."""


class NoAnswerError(CloudUnavailableError):
    """A message that was sent but not answered in time: the link may be slow."""


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
        self._attempt: Future[CloudStream] | None = None
        self._failure: SplitpointError | None = None
        self._away = Backoff(_AWAY_PAUSES_S)
        self._full = Backoff(_FULL_PAUSES_S)
        self._log_limit = EventLimit()
        self._stream: CloudStream | None = None
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
        self._check_capacity()
        return self._open(timeout_s).plan_digests

    def require(self, plan_digest: bytes, connect_s: float | None = None) -> None:
        """Require that a frame of a plan can be sent, before its head is run.

        Raises:
            CloudUnavailableError: See `connect`.
            PlanNotHeldError: If the cloud does not hold the plan.
        """
        self._check_capacity()
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

    def notify(self, message: Notification) -> None:
        """Send a message without an answer, if a stream is open; it may be lost with the stream."""
        stream = self._stream
        if stream is not None and not stream.lost:
            with contextlib.suppress(CloudUnavailableError):
                stream.notify(message)

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

    def _send(
        self, message: Request, connect_s: float | None
    ) -> "tuple[CloudStream, Future[Answer]]":
        if not isinstance(message, pb.Probe):
            self._check_capacity()
        until_s = self._clock() + self._connect_wait_s(connect_s)
        stream = self._open(connect_s)
        try:
            return stream, stream.submit(message)
        except PlanNotHeldError:
            raise
        except CloudUnavailableError:
            # The stream had ended unnoticed, and the message never left: a new one may carry it.
            stream = self._open(max(0.0, until_s - self._clock()))
            return stream, stream.submit(message)

    def _check_capacity(self) -> None:
        """Require that no back-off after an overloaded cloud is running."""
        left_s = self._full.left_s(self._clock())
        if left_s:
            raise CloudOverloadedError(
                "the cloud is overloaded: it is left alone for a moment", retry_after_s=left_s
            )

    def _connect_wait_s(self, connect_s: float | None) -> float:
        return self._connect_timeout_s + _LATE_S if connect_s is None else connect_s

    def _open(self, connect_s: float | None) -> "CloudStream":
        """Return the open stream, or wait for the shared attempt to open one."""
        stream = self._stream
        if stream is not None and not stream.lost:
            return stream
        attempt = self._attempted()
        try:
            return attempt.result(self._connect_wait_s(connect_s))
        except FutureTimeoutError:
            raise CloudUnavailableError(
                f"no stream to the cloud within {self._connect_wait_s(connect_s):.3g} s"
            ) from None
        except SplitpointError as error:
            raise copy.copy(error) from error  # each caller raises its own

    def _attempted(self) -> "Future[CloudStream]":
        """Return the running attempt to connect, or start one; a finished one if connected."""
        with self._opening:
            if self._closed:
                raise CloudUnavailableError("the client is closed")
            if self._attempt is not None:
                return self._attempt
            attempt: Future[CloudStream] = Future()
            if self._stream is not None and not self._stream.lost:
                attempt.set_result(self._stream)
                return attempt
            paused = self._clock() < max(self._away.until_s, self._full.until_s)
            if self._failure is not None and paused:
                raise copy.copy(self._failure)
            self._attempt = attempt
            threading.Thread(
                target=self._try, args=(attempt,), name="cloud-connect", daemon=True
            ).start()
            return attempt

    def _try(self, attempt: "Future[CloudStream]") -> None:
        """Open a stream and give all waiting callers the outcome."""
        try:
            stream = CloudStream(
                self._connect(), self._hello, self._connect_timeout_s, self.link, self._listener
            )
        except SplitpointError as error:
            self._failed(attempt, error)
        except Exception as error:  # noqa: BLE001 - the waiting callers must get it
            why = f"connecting failed by a bug ({type(error).__name__}: {error})"
            if self._log_limit.due(why):
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

    def _failed(self, attempt: "Future[CloudStream]", error: SplitpointError) -> None:
        pause = self._full if isinstance(error, CloudOverloadedError) else self._away
        with self._opening:
            self._attempt, self._failure = None, error
            pause.begin(self._clock())
        if times := self._log_limit.due(type(error).__name__):
            _LOG.info("no stream to the cloud (%d times): %s", times, error)
        _settle(attempt, error)


def _settle(attempt: "Future[CloudStream]", outcome: "CloudStream | SplitpointError") -> None:
    """End an attempt to connect, unless the client was closed meanwhile."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(outcome, SplitpointError):
            attempt.set_exception(outcome)
        else:
            attempt.set_result(outcome)
