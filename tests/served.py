"""An ASGI app on a real socket, in a thread of this process, and raw connections to it."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import ASGIApp

from common.http.connections import DEFAULT_CONNECTIONS, ConnectionLimits
from common.http.serving import RestServer, bind, port_of


@dataclass(frozen=True)
class Served:
    """A server that runs.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        server: It; its event loop is another thread's.
    """

    port: int
    server: RestServer

    def connect(self) -> socket.socket:
        """A connection that fails loudly rather than waits for ever."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)


@contextmanager
def served(app: ASGIApp, limits: ConnectionLimits = DEFAULT_CONNECTIONS) -> Iterator[Served]:
    """Serve an app for as long as the block."""
    loop = asyncio.new_event_loop()
    stopped = asyncio.Event()
    ready = threading.Event()
    listener = bind("127.0.0.1", 0)
    server = RestServer(app, limits)

    async def run() -> None:
        serving = asyncio.create_task(server.serve_until(stopped, listener))
        await server.ready.wait()
        ready.set()
        await serving

    def main() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=main, name="served")
    thread.start()
    try:
        ready.wait()
        yield Served(port_of(listener), server)
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        listener.close()


def head(method: str, path: str, *headers: str, length: int | None = 0) -> bytes:
    """The head of a request; None as its length leaves Content-Length out."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer that comes next."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _some(connection)
    top, _, body = data.partition(b"\r\n\r\n")
    status, *lines = top.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        body += _some(connection)
    return int(status.split()[1]), headers, body


def closed(connection: socket.socket) -> bool:
    """Wait until the other end closes; whether it does so without a further byte."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def until(holds: Callable[[], bool], max_wait_s: float = 60) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: If it does not hold in a time that no machine needs.
    """
    give_up_s = time.monotonic() + max_wait_s
    while not holds():
        if time.monotonic() > give_up_s:
            raise TimeoutError("the condition never held")
        time.sleep(0.005)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(1 << 16)
    if not data:
        raise ConnectionError("closed before the end of the answer")
    return data
