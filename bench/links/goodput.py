"""Goodput of a TCP connection in each direction, by its receiver's clock, and its round trip.

connection (edge's namespace) -- shaped link --> a thread that answers (cloud's namespace)
"""

import contextlib
import socket
import statistics
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from bench.links.shaped import ShapedLink, ShapingError
from common.link.link import Link

_CHUNK = 1 << 16
_REQUEST = struct.Struct("!cQ")
_SECONDS = struct.Struct("!d")
_PINGS = 15
# The start of a transfer passes in a bucket's burst, or waits for TCP to speed up.
_SKIP = 0.25
_TRANSFER_S = 1.2
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class MeasuredGoodput:
    """Goodput of one TCP connection without headers, and its median round trip when idle."""

    uplink_bps: float
    downlink_bps: float
    rtt_ms: float


def self_check(wire: ShapedLink, link: Link, *, seconds: float = _TRANSFER_S) -> MeasuredGoodput:
    """Measure the wire from its edge end, with transfers as long as `link` needs for them.

    Raises:
        ShapingError: If nothing gets through.
    """
    up_bytes, down_bytes = (int(r * seconds / 8) for r in (link.uplink_bps, link.downlink_bps))
    try:
        with answering(wire) as port, connected(wire, port) as connection:
            pings = [round_trip_ms(connection) for _ in range(_PINGS)]
            connection.sendall(_REQUEST.pack(b"U", up_bytes) + bytes(up_bytes))
            (up_s,) = _SECONDS.unpack(_receive(connection, _SECONDS.size))
            connection.sendall(_REQUEST.pack(b"D", down_bytes))
            down_s = _timed(connection, down_bytes)
    except OSError as error:
        raise ShapingError(f"nothing gets through the shaped link: {error}") from error
    return MeasuredGoodput(_bps(up_bytes, up_s), _bps(down_bytes, down_s), statistics.median(pings))


@contextlib.contextmanager
def answering(wire: ShapedLink) -> Iterator[int]:
    """Answer one connection after the other at the cloud's end; gives the port."""
    listener = wire.cloud.inside(lambda: socket.create_server((wire.cloud.address, 0)))
    threading.Thread(target=_answer, args=(listener,), daemon=True).start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)  # which ends the wait for the next connection
        listener.close()


def connected(wire: ShapedLink, port: int) -> socket.socket:
    """Open a connection from the edge's end to what answers at the cloud's."""
    address = (wire.cloud.address, port)
    connection = wire.edge.inside(lambda: socket.create_connection(address, _PATIENCE_S))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def round_trip_ms(connection: socket.socket, size: int = 0) -> float:
    """Time from sending `size` bytes until the other end has confirmed all of them."""
    start_s = time.perf_counter()
    connection.sendall(_REQUEST.pack(b"U", size) + bytes(size))
    _receive(connection, _SECONDS.size)
    return 1e3 * (time.perf_counter() - start_s)


def _answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # it was shut down
        with connection, contextlib.suppress(ConnectionError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                kind, size = _REQUEST.unpack(_receive(connection, _REQUEST.size))
                if kind == b"D":
                    connection.sendall(bytes(size))
                else:
                    connection.sendall(_SECONDS.pack(_timed(connection, size)))


def _timed(connection: socket.socket, size: int) -> float:
    """Receive `size` bytes; returns the seconds of the last three quarters of them."""
    skip, start_s, received = int(size * _SKIP), 0.0, 0
    while received < size:
        count = len(_chunk(connection, min(_CHUNK, size - received)))
        if received < skip <= received + count:
            start_s, skip = time.perf_counter(), received + count
        received += count
    # Scaled as if exactly `size * _SKIP` bytes had been skipped.
    rest = (size - skip) or 1
    return (time.perf_counter() - start_s) * size * (1 - _SKIP) / rest


def _bps(size: int, seconds: float) -> float:
    return size * (1 - _SKIP) * 8 / seconds


def _receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += _chunk(connection, size - len(data))
    return data


def _chunk(connection: socket.socket, most: int) -> bytes:
    chunk = connection.recv(most)
    if not chunk:
        raise ConnectionError("the other end left")
    return chunk
