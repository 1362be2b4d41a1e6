"""Goodput of a TCP connection each way, by its receiver's clock, and its round trip.

    python -m bench.links.goodput serve ADDRESS                               until its input ends
    python -m bench.links.goodput measure ADDRESS PORT UP_BYTES DOWN_BYTES    prints
    `MeasuredGoodput`

Run as two processes at the ends of a `bench.links.shaped` link; `self_check` does.
"""

import json
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

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
    module = (sys.executable, "-m", "bench.links.goodput")
    sizes = [str(int(rate * seconds / 8)) for rate in (link.uplink_bps, link.downlink_bps)]
    try:
        with served(wire) as port:
            command = [*wire.edge.prefix, *module, "measure", wire.cloud.address, port, *sizes]
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise ShapingError(f"nothing got through the shaped link in {_PATIENCE_S:g} s") from error
    if done.returncode:
        raise ShapingError(f"nothing gets through the shaped link: {done.stderr[-300:].strip()}")
    return MeasuredGoodput(**json.loads(done.stdout))


@contextmanager
def served(wire: ShapedLink) -> Iterator[str]:
    """Let a process answer at the cloud's end; gives its port."""
    server = subprocess.Popen(  # noqa: S603 - our own module
        [
            *wire.cloud.prefix,
            sys.executable,
            "-m",
            "bench.links.goodput",
            "serve",
            wire.cloud.address,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield server.stdout.readline().strip() if server.stdout else ""
    finally:
        server.communicate()


def measure(address: str, port: int, up_bytes: int, down_bytes: int) -> MeasuredGoodput:
    """Measure from this end."""
    with connected(address, port) as link:
        pings = [round_trip_ms(link) for _ in range(_PINGS)]
        link.sendall(_REQUEST.pack(b"U", up_bytes) + bytes(up_bytes))
        (up_s,) = _SECONDS.unpack(_receive(link, _SECONDS.size))
        link.sendall(_REQUEST.pack(b"D", down_bytes))
        down_s = _timed(link, down_bytes)
    return MeasuredGoodput(_bps(up_bytes, up_s), _bps(down_bytes, down_s), statistics.median(pings))


def connected(address: str, port: int) -> socket.socket:
    """Open a connection to the server at an address."""
    link = socket.create_connection((address, port), _PATIENCE_S)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def round_trip_ms(link: socket.socket, size: int = 0) -> float:
    """Time from sending `size` bytes until the other end has confirmed all of them."""
    start_s = time.perf_counter()
    link.sendall(_REQUEST.pack(b"U", size) + bytes(size))
    _receive(link, _SECONDS.size)
    return 1e3 * (time.perf_counter() - start_s)


def serve(listener: socket.socket) -> None:
    """Answer one connection after the other."""
    while True:
        link, _ = listener.accept()
        with link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                while True:
                    kind, size = _REQUEST.unpack(_receive(link, _REQUEST.size))
                    if kind == b"D":
                        link.sendall(bytes(size))
                    else:
                        link.sendall(_SECONDS.pack(_timed(link, size)))
            except ConnectionError:
                continue


def _timed(link: socket.socket, size: int) -> float:
    """Receive `size` bytes; returns the seconds of the last three quarters of them."""
    skip, start_s, received = int(size * _SKIP), 0.0, 0
    while received < size:
        chunk = link.recv(min(_CHUNK, size - received))
        if not chunk:
            raise ConnectionError("the other end left")
        if received < skip <= received + len(chunk):
            start_s, skip = time.perf_counter(), received + len(chunk)
        received += len(chunk)
    # Scaled as if exactly `size * _SKIP` bytes had been skipped.
    rest = (size - skip) or 1
    return (time.perf_counter() - start_s) * size * (1 - _SKIP) / rest


def _bps(size: int, seconds: float) -> float:
    return size * (1 - _SKIP) * 8 / seconds


def _receive(link: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = link.recv(size - len(data))
        if not chunk:
            raise ConnectionError("the other end left")
        data += chunk
    return data


def main() -> None:
    """Run one of the two commands described in the module docstring."""
    if sys.argv[1] == "serve":
        with socket.create_server((sys.argv[2], 0)) as listener:
            threading.Thread(target=serve, args=(listener,), daemon=True).start()
            print(listener.getsockname()[1], flush=True)  # noqa: T201 - for the parent process
            sys.stdin.read()
    else:
        address, *numbers = sys.argv[2:]
        print(json.dumps(asdict(measure(address, *map(int, numbers)))))  # noqa: T201


if __name__ == "__main__":
    main()
