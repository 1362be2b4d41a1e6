"""Admission of streams: bounds on edges, and on peers that have not sent a Hello.

    connected --> waiting for a Hello --greeted--> edge --> gone
                        |                           |
          the longest waiting gives way    the longest idle gives way, or the newcomer is refused

Both groups are bounded in all and per peer, so that one address cannot lock the others out. A peer
is an address without its port, of IPv6 the network of 64 bits that one customer is given. A stream
that waits has a few seconds; where waiting streams are too many, the oldest ends, since an honest
edge says Hello at once. An edge may be idle for as long as it likes, as keepalive pings show that
it lives; only where there is no room left, the one that has been silent for longest gives way to a
newcomer, if that is more than a minute. It connects again with its next frame.

All of it lives in the event loop of the server.
"""

import asyncio
import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar
from urllib.parse import unquote

import grpc

MOST_EDGES = 512
"""Most edges at once, by default."""
_ALWAYS_PER_PEER = 8


class StreamError(Exception):
    """Reason for ending a stream; the message is sent to its peer.

    Attributes:
        code: The stream's status.
        label: For metrics.
    """

    code: ClassVar[grpc.StatusCode]
    label: ClassVar[str]


class ProtocolError(StreamError):
    """A peer that does not speak the protocol."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    label = "protocol"


class GreetingTimeoutError(StreamError):
    """A peer that did not say Hello in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    label = "greeting"


class TooManyStreamsError(StreamError):
    """A stream over a limit, or one that gave way to another."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    label = "limit"


class ReplacedError(StreamError):
    """A stream whose edge has connected again."""

    code = grpc.StatusCode.ABORTED
    label = "replaced"


REASONS = tuple(
    each.label for each in (ProtocolError, GreetingTimeoutError, TooManyStreamsError, ReplacedError)
)


@dataclass(frozen=True)
class StreamLimits:
    """Bounds on streams.

    Attributes:
        edges: Greeted streams, in all. A peer may have half of them, or 8 if that is more.
        waiting: Streams that have not said Hello, in all. A peer may have as large a part of them.
        greeting_s: How long a stream may take to say Hello, and to take its Welcome.
        idle_s: How long an edge has been silent before it gives way to another.
    """

    edges: int = MOST_EDGES
    waiting: int = 512
    greeting_s: float = 5.0
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
class StreamPlace:
    """One stream's place.

    Attributes:
        peer: Whose it is; see `peer_of`.
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
        self._waiting = _PlaceGroup("streams without a Hello", self.limits.waiting, 0.0)
        self._edges = _PlaceGroup("edges", self.limits.edges, self.limits.idle_s)
        self._open: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()

    @contextmanager
    def arrived(self, peer: str) -> Iterator[StreamPlace]:
        """Hold a place for a stream that has yet to say Hello, for as long as it is open.

        A stream that must end has no place, and yet is open for as long as its peer reads nothing.
        So all that a peer has open count as well: one address cannot use up the server's.

        Raises:
            TooManyStreamsError: If the peer has as many open as it may.
        """
        if self._open[peer] >= self.limits.open_per_peer:
            raise TooManyStreamsError(
                f"expected at most {self.limits.open_per_peer} open streams of one address: read "
                "what the cloud sends, until they have ended"
            )
        place = StreamPlace(peer)
        self._waiting.add(place)
        self._open[peer] += 1
        try:
            yield place
        finally:
            self._waiting.remove(place)
            self._edges.remove(place)
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]

    def greeted(self, place: StreamPlace) -> None:
        """Move a stream to the edges.

        Raises:
            TooManyStreamsError: If there is no room, and none is idle for long enough.
        """
        self._edges.add(place)
        self._waiting.remove(place)

    def end(self, place: StreamPlace, why: StreamError) -> None:
        """Have a stream end; its place is free at once."""
        self._waiting.remove(place)
        self._edges.remove(place)
        place.end(why)

    def active(self, place: StreamPlace) -> None:
        """An edge has just sent something."""
        self._edges.touch(place)

    def count(self) -> tuple[int, int]:
        """Streams that wait for a Hello, and edges."""
        return len(self._waiting.all), len(self._edges.all)


class _PlaceGroup:
    """Places in the order in which they give way."""

    def __init__(self, what: str, most: int, idle_s: float) -> None:
        self._what = what
        self._most = most
        self._most_per_peer = max(most // 2, min(most, _ALWAYS_PER_PEER))
        self._idle_s = idle_s
        self.all: OrderedDict[StreamPlace, None] = OrderedDict()
        self._by_peer: dict[str, OrderedDict[StreamPlace, None]] = {}

    def add(self, place: StreamPlace) -> None:
        now_s = time.monotonic()
        own = self._by_peer.get(place.peer, OrderedDict())
        if len(own) >= self._most_per_peer:
            limit = f"at most {self._most_per_peer} {self._what} of one address"
            self._make_room(own, now_s, limit)
        elif len(self.all) >= self._most:
            self._make_room(self.all, now_s, f"at most {self._most} {self._what}")
        place.active_s = now_s
        self.all[place] = None
        self._by_peer.setdefault(place.peer, OrderedDict())[place] = None

    def remove(self, place: StreamPlace) -> None:
        if place not in self.all:
            return
        del self.all[place]
        own = self._by_peer[place.peer]
        del own[place]
        if not own:
            del self._by_peer[place.peer]

    def touch(self, place: StreamPlace) -> None:
        if place in self.all:
            place.active_s = time.monotonic()
            self.all.move_to_end(place)
            self._by_peer[place.peer].move_to_end(place)

    def _make_room(
        self, places: "OrderedDict[StreamPlace, None]", now_s: float, limit: str
    ) -> None:
        oldest = next(iter(places))
        if now_s - oldest.active_s < self._idle_s:
            raise TooManyStreamsError(f"expected {limit}: all places are in use, try again later")
        self.remove(oldest)
        oldest.end(TooManyStreamsError(f"expected {limit}: this one gave way to another"))


def peer_of(address: str) -> str:
    """Whose stream it is, from `ServicerContext.peer()`: an address, of IPv6 its network."""
    kind, _, rest = unquote(address).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found)
