"""Admission of streams: bounds on edges, and on peers that have not sent a Hello.

    opened --> waiting for a Hello --admit--> edge --> gone
                     |                          |
       the longest waiting gives way    the longest idle gives way, or the newcomer is refused

Both groups are bounded in all and per peer, so that one address cannot lock the others out. A peer
is an address without its port, of IPv6 the network of 64 bits that one customer is given. A stream
that waits has a few seconds; where waiting streams are too many, the oldest ends, since an honest
edge says Hello at once. An edge may be idle for as long as it likes, as keepalive pings show that
it lives; only where no slot is left, the one that has been silent for longest gives way to a
newcomer, if that is more than a minute. It connects again with its next frame.

All of it lives in the event loop of the server.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from common.errors import SplitpointError

MOST_EDGES = 512
"""Most edges at once, by default."""
_ALWAYS_PER_PEER = 8


class StreamError(SplitpointError):
    """Reason for ending a stream; the message is sent to its peer.

    Attributes:
        label: For metrics.
    """

    label: ClassVar[str]


class ProtocolError(StreamError):
    """A peer that does not speak the protocol."""

    http_status = 400
    label = "protocol"


class HelloTimeoutError(StreamError):
    """A peer that did not complete the handshake in time."""

    http_status = 408
    label = "greeting"


class TooManyStreamsError(StreamError):
    """A stream over a limit, or one that gave way to another."""

    http_status = 503
    label = "limit"


class ReplacedError(StreamError):
    """A stream whose edge has connected again."""

    http_status = 409
    label = "replaced"


REASONS = tuple(
    each.label for each in (ProtocolError, HelloTimeoutError, TooManyStreamsError, ReplacedError)
)


@dataclass(frozen=True)
class StreamLimits:
    """Bounds on streams.

    Attributes:
        edges: Streams that have sent a Hello, in all. A peer may have half of them, or 8 if that
            is more.
        waiting: Streams that have not said Hello, in all. A peer may have as large a part of them.
        hello_timeout_s: Time-out of the handshake: to send a Hello and to read its Welcome.
        idle_s: How long an edge has been silent before it gives way to another.
    """

    edges: int = MOST_EDGES
    waiting: int = 512
    hello_timeout_s: float = 5.0
    idle_s: float = 60.0

    @property
    def streams(self) -> int:
        """Streams of either kind, at the most, with some that are being ended."""
        return 2 * (self.edges + self.waiting)

    @property
    def open_per_peer(self) -> int:
        """Streams of one peer, those that are being ended among them."""
        return max(self.streams // 4, min(self.edges + self.waiting, 2 * _ALWAYS_PER_PEER))


@dataclass(eq=False)
class StreamSlot:
    """One stream's slot under the limits.

    Attributes:
        peer: Who is at the other end, such as an address without its port.
        ended: Done, with the reason, once the stream must end.
    """

    peer: str
    ended: "asyncio.Future[StreamError]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    active_s: float = 0.0

    def end(self, why: StreamError) -> None:
        """Have the stream end; the first reason counts."""
        if not self.ended.done():
            self.ended.set_result(why)


class Streams:
    """The open streams.

    Args:
        limits: Bounds.

    Attributes:
        ended: By label of `StreamError`, streams that were refused or ended.
    """

    def __init__(self, limits: StreamLimits | None = None) -> None:
        self.limits = StreamLimits() if limits is None else limits
        self._waiting = _SlotGroup("streams without a Hello", self.limits.waiting, 0.0)
        self._edges = _SlotGroup("edges", self.limits.edges, self.limits.idle_s)
        self._open: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    @contextmanager
    def opened(self, peer: str) -> Iterator[StreamSlot]:
        """Hold a slot for a stream that has yet to say Hello, for as long as it is open.

        A stream that must end has no slot, and yet is open for as long as its peer reads nothing.
        So all that a peer has open count as well: one address cannot use up the server's.

        Raises:
            TooManyStreamsError: If the peer has as many open as it may.
        """
        if self._open[peer] >= self.limits.open_per_peer:
            raise TooManyStreamsError(
                f"expected at most {self.limits.open_per_peer} open streams of one address: read "
                "what the cloud sends, until they have ended"
            )
        slot = StreamSlot(peer)
        self._waiting.add(slot)
        self._open[peer] += 1
        try:
            yield slot
        finally:
            self._waiting.remove(slot)
            self._edges.remove(slot)
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    def admit(self, slot: StreamSlot) -> None:
        """Move a stream to the edges.

        Raises:
            TooManyStreamsError: If no slot is free, and no edge is idle for long enough.
        """
        self._edges.add(slot)
        self._waiting.remove(slot)

    def end(self, slot: StreamSlot, why: StreamError) -> None:
        """Have a stream end; its slot is free at once."""
        self._waiting.remove(slot)
        self._edges.remove(slot)
        slot.end(why)

    def active(self, slot: StreamSlot) -> None:
        """An edge has just sent something."""
        self._edges.touch(slot)

    def count(self) -> tuple[int, int]:
        """Streams that wait for a Hello, and edges."""
        return len(self._waiting.all), len(self._edges.all)


class _SlotGroup:
    """Slots in the order in which they give way."""

    def __init__(self, what: str, most: int, idle_s: float) -> None:
        self._what = what
        self._most = most
        self._most_per_peer = max(most // 2, min(most, _ALWAYS_PER_PEER))
        self._idle_s = idle_s
        self.all: OrderedDict[StreamSlot, None] = OrderedDict()
        self._by_peer: dict[str, OrderedDict[StreamSlot, None]] = {}

    def add(self, slot: StreamSlot) -> None:
        now_s = time.monotonic()
        own = self._by_peer.get(slot.peer, OrderedDict())
        if len(own) >= self._most_per_peer:
            limit = f"at most {self._most_per_peer} {self._what} of one address"
            self._make_room(own, now_s, limit)
        elif len(self.all) >= self._most:
            self._make_room(self.all, now_s, f"at most {self._most} {self._what}")
        slot.active_s = now_s
        self.all[slot] = None
        self._by_peer.setdefault(slot.peer, OrderedDict())[slot] = None

    def remove(self, slot: StreamSlot) -> None:
        if slot not in self.all:
            return
        del self.all[slot]
        own = self._by_peer[slot.peer]
        del own[slot]
        if not own:
            del self._by_peer[slot.peer]

    def touch(self, slot: StreamSlot) -> None:
        if slot in self.all:
            slot.active_s = time.monotonic()
            self.all.move_to_end(slot)
            self._by_peer[slot.peer].move_to_end(slot)

    def _make_room(self, slots: "OrderedDict[StreamSlot, None]", now_s: float, limit: str) -> None:
        oldest = next(iter(slots))
        if now_s - oldest.active_s < self._idle_s:
            raise TooManyStreamsError(f"expected {limit}: all places are in use, try again later")
        self.remove(oldest)
        oldest.end(TooManyStreamsError(f"expected {limit}: this one gave way to another"))
