"""A slow link in software: delays every message of a transport as a given link would.

    send    -> [uplink delay line]   -> inner.send
    receive <- [downlink delay line] <- inner.receive

A message arrives when `common.link.link.Shaper` says that its last byte would: the bytes are the
real serialised size, earlier messages occupy the link first, and order is kept. A link that changes
is known ahead (`LinkTrace`), so the arrival of a message that a change meets on its way is exact
from the start. Threads wait for a deadline; nothing polls. Emulation on one machine needs no root,
no network namespace and no sleep inside the code under measurement.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from common.errors import CloudUnavailableError
from common.link.link import Link, LinkTrace, Shaper
from common.rpc.splitpoint_pb2 import CloudMessage, EdgeMessage
from edge.stream.transport import Transport

T = TypeVar("T")


class Clock(Protocol):
    """Clock of a delay line; tests replace it."""

    def now_s(self) -> float:
        """Seconds on a monotonic clock."""

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Wait, with the condition held, until it is notified or the time-out expires."""


class MonotonicClock:
    """The machine's clock."""

    def now_s(self) -> float:
        """Seconds of `time.monotonic`."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Call `condition.wait`."""
        condition.wait(timeout_s)


class DelayLine(Generic[T]):
    """A queue whose items become visible at their own time, in order."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._items: deque[tuple[float, T]] = deque()
        self._changed = threading.Condition()
        self._error: CloudUnavailableError | None = None

    def put(self, item: T, visible_at_s: float) -> None:
        """Append an item."""
        with self._changed:
            self._items.append((visible_at_s, item))
            self._changed.notify_all()

    def get(self, timeout_s: float | None = None) -> T | None:
        """Wait for the first item to become visible; None if the timeout comes first.

        Raises:
            CloudUnavailableError: If the line was ended and everything before that was taken.
        """
        with self._changed:
            give_up_at_s = None if timeout_s is None else self._clock.now_s() + timeout_s
            while True:
                now_s = self._clock.now_s()
                if self._items and self._items[0][0] <= now_s:
                    return self._items.popleft()[1]
                if self._error is not None and not self._items:
                    raise self._error
                if give_up_at_s is not None and give_up_at_s <= now_s:
                    return None
                deadlines = [self._items[0][0]] if self._items else []
                deadlines += [] if give_up_at_s is None else [give_up_at_s]
                self._clock.wait(self._changed, min(deadlines) - now_s if deadlines else None)

    def end(self, error: CloudUnavailableError, *, drop: bool = False) -> None:
        """End the line: `get` returns the items still in it (none, if `drop`), then raises."""
        with self._changed:
            self._error = self._error or error
            if drop:
                self._items.clear()
            self._changed.notify_all()


class ShapedTransport:
    """A transport behind an emulated link.

    Args:
        inner: The transport that carries the messages; closed with this one.
        link: Bandwidth and round-trip time to emulate, or a trace of them.
        clock: Clock to use; the machine's by default.
        start_s: When the trace of a changing link begins, by the clock; now, unless given. Streams
            and processes of one machine share a trace if they are given the same start.
    """

    def __init__(
        self,
        inner: Transport,
        link: Link | LinkTrace,
        *,
        clock: Clock | None = None,
        start_s: float | None = None,
    ) -> None:
        self._inner = inner
        self._clock = clock or MonotonicClock()
        self._shaper = Shaper(link, self._clock.now_s() if start_s is None else start_s)
        self._uplink: DelayLine[EdgeMessage] = DelayLine(self._clock)
        self._downlink: DelayLine[CloudMessage] = DelayLine(self._clock)
        self._order = threading.Lock()
        self._lost: CloudUnavailableError | None = None
        for work in (self._carry_up, self._carry_down):
            threading.Thread(target=work, name=f"link{work.__name__}", daemon=True).start()

    def send(self, message: EdgeMessage, gone: Callable[[], None] | None = None) -> None:
        """Put the message on the emulated uplink; see `Transport.send`."""
        if self._lost is not None:
            raise self._lost
        with self._order:
            if gone is not None:
                gone()
            arrival_s = self._shaper.uplink_arrival_s(self._clock.now_s(), message.ByteSize())
            self._uplink.put(message, arrival_s)

    def receive(self, timeout_s: float | None = None) -> CloudMessage:
        """Wait for a message to arrive over the emulated downlink; see `Transport.receive`."""
        message = self._downlink.get(timeout_s)
        if message is None:
            error = CloudUnavailableError(f"no answer within {timeout_s} s over the emulated link")
            self._end(error, drop=True)
            raise error
        return message

    def close(self) -> None:
        """Close the inner transport; what is still on the link is lost."""
        self._inner.close()
        self._end(CloudUnavailableError("the stream is closed"), drop=True)

    def _carry_up(self) -> None:
        try:
            while True:
                message = self._uplink.get()
                if message is not None:
                    self._inner.send(message)
        except CloudUnavailableError as error:
            self._end(error)

    def _carry_down(self) -> None:
        try:
            while True:
                message = self._inner.receive()
                arrival_s = self._shaper.downlink_arrival_s(self._clock.now_s(), message.ByteSize())
                self._downlink.put(message, arrival_s)
        except CloudUnavailableError as error:
            self._end(error)

    def _end(self, error: CloudUnavailableError, *, drop: bool = False) -> None:
        self._lost = self._lost or error
        self._uplink.end(error, drop=True)
        self._downlink.end(error, drop=drop)
