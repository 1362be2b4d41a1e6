"""Connections: how many are held, for how long, and which one goes when a new one needs its place.

    accept -> Connections.admit -> GuardedProtocol: HTTP/1.1 -> app
                  |                       ^
                  |                       +-- swept four times a second: what takes too long goes
                  +-- full: the oldest idle one goes, else one that does not read its answer, or
                      whose body is not there yet; if there is none, 503

A server has as many connections as its file descriptors allow, and one peer has a part of them.
Only a request that is being worked on keeps its place: a header, the rest of a body that nobody
reads any more, and an answer that is not read have a time each, and give way before it where a
place is needed. So a health check gets through, however many sockets strangers hold open. Bodies
that are read have their own time, in `common.http.intake`.
"""

import asyncio
import resource
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_RESERVED = 128
"""Descriptors left to files, and to sockets that are accepted but not yet counted."""
_MOST = 1024
_LEAST = 16
_SWEEP_S = 0.25
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: 0\r\n\r\n"
)


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of one server's connections.

    Attributes:
        total: How many are held; None derives it from the process's limit on descriptors.
        per_peer: How many of them one peer has; never more than three quarters.
        header_s: From connecting, or from the last answer, to the end of the next header.
        write_s: How long an answer may take to be read.
        linger_s: How long the rest of a body is thrown away after an early answer, so that a
            caller who first sends and then reads still finds the answer.
        linger_bytes: How much of it.
        grace_s: How long a stopping server goes on answering what is under way.
    """

    total: int | None = None
    per_peer: int = 256
    header_s: float = 10.0
    write_s: float = 60.0
    linger_s: float = 5.0
    linger_bytes: int = 16 << 20
    grace_s: float = 4.0


DEFAULT_CONNECTIONS: Final = ConnectionLimits()


def connections_by_descriptors() -> int:
    """Number of connections that the soft limit on file descriptors allows.

    Half of the descriptors: a cloud's edges, or an edge's cloud and camera, need some as well.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return _MOST
    return max(_LEAST, min(_MOST, (soft - _RESERVED) // 2))


@dataclass
class _Peer:
    """The connections of one address, in the order in which they came, or fell idle."""

    held: "dict[GuardedProtocol, None]" = field(default_factory=dict)
    idle: "dict[GuardedProtocol, None]" = field(default_factory=dict)


class Connections:
    """The connections of one server.

    Args:
        limits: Their bounds.

    Attributes:
        limits: The same.
    """

    def __init__(self, limits: ConnectionLimits = DEFAULT_CONNECTIONS) -> None:
        self.limits = limits
        self._total = connections_by_descriptors() if limits.total is None else limits.total
        self._per_peer = max(1, min(limits.per_peer, self._total * 3 // 4))
        self._peers: dict[str, _Peer] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count

    def admit(self, connection: "GuardedProtocol") -> bool:
        """Take a new connection, if need be in the place of another one."""
        peer = self._peers.get(connection.peer)
        while peer is not None and len(peer.held) >= self._per_peer:
            if not self._make_room([peer]):
                return False
        while self._count >= self._total:
            if not self._make_room(self._peers.values()):
                return False
        peer = self._peers.setdefault(connection.peer, _Peer())
        peer.held[connection] = peer.idle[connection] = None
        self._count += 1
        return True

    def leave(self, connection: "GuardedProtocol") -> None:
        """Forget a connection that is closed."""
        peer = self._peers.get(connection.peer)
        if peer is None or connection not in peer.held:
            return
        del peer.held[connection]
        peer.idle.pop(connection, None)
        self._count -= 1
        if not peer.held:
            del self._peers[connection.peer]

    def mark(self, connection: "GuardedProtocol", *, busy: bool) -> bool:
        """Note whether a request is under way; gives whether that is new."""
        peer = self._peers.get(connection.peer)
        if peer is None or connection not in peer.held or busy == (connection not in peer.idle):
            return False
        if busy:
            del peer.idle[connection]
        else:
            peer.idle[connection] = None
        return True

    def start(self) -> None:
        """Sweep from now on, in the running event loop."""
        loop = asyncio.get_running_loop()
        self.sweep(loop.time())
        self._timer = loop.call_later(_SWEEP_S, self.start)

    def stop(self) -> None:
        """Sweep no more."""
        if self._timer is not None:
            self._timer.cancel()

    def sweep(self, now_s: float) -> None:
        """Close what takes too long."""
        for connection in self._all(self._peers.values()):
            if connection.overdue(now_s):
                connection.abort()

    def abort(self) -> None:
        """Close all of them at once."""
        for connection in self._all(self._peers.values()):
            connection.abort()

    def _make_room(self, peers: Iterable[_Peer]) -> bool:
        victim = self._victim(list(peers))
        if victim is None:
            return False
        victim.abort()
        self.leave(victim)
        return True

    def _victim(self, peers: "list[_Peer]") -> "GuardedProtocol | None":
        idle = [peer for peer in peers if peer.idle]
        if idle:
            return next(iter(max(idle, key=lambda peer: len(peer.held)).idle))
        waiting = [(each.dispensable, each) for each in self._all(peers)]
        able = [(rank, each.since_s, each) for rank, each in waiting if rank is not None]
        return min(able, key=lambda ranked: ranked[:2])[2] if able else None

    @staticmethod
    def _all(peers: Iterable[_Peer]) -> "list[GuardedProtocol]":
        return [connection for peer in peers for connection in peer.held]


class GuardedProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, under a server's bounds.

    Attributes:
        guard: The server's connections; see `guarded_by`.
        peer: The address at the other end.
        since_s: When its request began, or it fell idle, by the event loop's clock.
    """

    guard: ClassVar[Connections]
    peer: str = ""
    since_s: float = 0.0
    _raw: asyncio.Transport
    _refused = False
    _lingers = False
    _thrown_away = 0
    _blocked_s: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, or say at once that there is no room."""
        if not isinstance(transport, asyncio.Transport):
            raise TypeError(f"expected a stream's transport, got {type(transport).__name__}")
        self._raw = transport
        self.since_s = self.loop.time()
        address = transport.get_extra_info("peername")
        self.peer = str(address[0]) if address else ""
        if not self.guard.admit(self):
            self._refused = True
            transport.write(_BUSY)
            transport.close()
            return
        super().connection_made(_Lingering(transport, self))

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self.guard.leave(self)
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, unless it is the rest of what was answered."""
        if self._half_read and not self._busy:
            self._thrown_away += len(data)
            if self._thrown_away > self.guard.limits.linger_bytes:
                self.abort()
                return
        if not self._lingers:
            super().data_received(data)
            self._note()

    def on_response_complete(self) -> None:
        """The answer is written: the connection is idle, or its next request begins."""
        super().on_response_complete()
        self._note()

    def pause_writing(self) -> None:
        """The caller does not read as fast as it is answered."""
        super().pause_writing()
        self._blocked_s = self.loop.time()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._blocked_s = None

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, if it was not answered before."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            super().send_400_response(msg)
            if self.cycle is not None:  # what still works on the request must not answer again
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            self.abort()

    def shutdown(self) -> None:
        """The server stops: only a request that is there in full is still answered."""
        if not self._busy or (self._half_read and not self.cycle.response_started):
            self._lingers = True
            self._raw.close()
        else:
            self.cycle.keep_alive = False

    def abort(self) -> None:
        """Close at once; what was not sent yet is lost."""
        self._raw.abort()

    def close(self) -> None:
        """Close once all is sent; a body that is still arriving is thrown away for a while."""
        if self._half_read and not self._raw.is_closing():
            self._lingers = True
            self._raw.write_eof()
            self._raw.resume_reading()
        else:
            self._raw.close()

    @property
    def closing(self) -> bool:
        """Whether nothing can be written any more."""
        return self._lingers or self._raw.is_closing()

    @property
    def dispensable(self) -> int | None:
        """Eviction rank, 0 first; None while its request is being worked on."""
        if not self._busy:
            return 0
        if self._blocked_s is not None:
            return 1
        return 2 if self._half_read and not self.cycle.response_started else None

    def overdue(self, now_s: float) -> bool:
        """Whether it has waited for its peer for too long."""
        limits = self.guard.limits
        if self._blocked_s is not None:
            return now_s - self._blocked_s > limits.write_s
        if self._busy:
            return False
        if self._raw.get_write_buffer_size():
            return now_s - self.since_s > limits.write_s
        idle_s = limits.linger_s if self._half_read or self._lingers else limits.header_s
        return now_s - self.since_s > idle_s

    @property
    def _busy(self) -> bool:
        cycle = getattr(self, "cycle", None)  # uvicorn does not say that there is none at first
        return cycle is not None and not cycle.response_complete

    @property
    def _half_read(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY

    def _note(self) -> None:
        if self.guard.mark(self, busy=self._busy):
            self.since_s = self.loop.time()
            self._thrown_away = 0


class _Lingering(asyncio.Transport):
    """A transport whose `close` is the protocol's."""

    def __init__(self, raw: asyncio.Transport, protocol: GuardedProtocol) -> None:
        super().__init__()
        self._raw = raw
        self._protocol = protocol

    def close(self) -> None:
        self._protocol.close()

    def is_closing(self) -> bool:
        return self._protocol.closing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self.is_closing():
            self._raw.write(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._raw.get_extra_info(name, default)

    def pause_reading(self) -> None:
        self._raw.pause_reading()

    def resume_reading(self) -> None:
        self._raw.resume_reading()


def guarded_by(guard: Connections) -> type[GuardedProtocol]:
    """The protocol of one server, for uvicorn, which makes its objects itself."""

    class Guarded(GuardedProtocol):
        pass

    Guarded.guard = guard
    return Guarded
