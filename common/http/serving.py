"""Startup that all serving processes share: bind a port, run uvicorn, announce readiness.

Ports are bound before models are opened, so a taken port is reported at once; and a ready file
appears only when requests are served, so the caller that starts a process waits for a file, never
for a time. Connections are bounded by `common.http.connections`.
"""

import asyncio
import contextlib
import errno
import json
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from common.errors import AddressInUseError, SettingsError
from common.http.connections import DEFAULT_CONNECTIONS, ConnectionLimits, Connections, guarded_by
from common.http.log_limits import LogLimit

Fields = Mapping[str, object]

_ACCEPTED_AT_ONCE = 16
"""Sockets taken from the kernel's queue before the first of them can be counted, and refused."""
_BACKLOG = 1024
_CANCELLED_AFTER_S = 1
"""Beyond the grace, once its connection is closed, a request ends by itself or is cancelled."""


class RestServer(uvicorn.Server):
    """uvicorn on a bound socket, as one task of a larger process.

    Signals are the process's business, so uvicorn is kept from taking them. `ready` is set once
    requests are accepted.

    Args:
        app: What is served.
        limits: Bounds of its connections.
    """

    def __init__(self, app: ASGIApp, limits: ConnectionLimits = DEFAULT_CONNECTIONS) -> None:
        self.connections = Connections(limits)
        super().__init__(
            uvicorn.Config(
                self._unless_cancelled(app),
                http=guarded_by(self.connections),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                # A peer is who is at the other end of the socket, whatever its headers say.
                proxy_headers=False,
                backlog=_ACCEPTED_AT_ONCE,
                timeout_graceful_shutdown=math.ceil(limits.grace_s) + _CANCELLED_AFTER_S,
            )
        )
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then set `ready`."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(
                _BACKLOG
            )  # asyncio has one number for the queue and for accepting at once
        self.connections.start()
        self.ready.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is under way, for as long as the grace, then close what is left."""
        grace_s = self.connections.limits.grace_s
        over = asyncio.get_running_loop().call_later(grace_s, self.connections.abort)
        await super().shutdown(sockets)
        over.cancel()
        self.connections.stop()
        self.connections.abort()

    def _unless_cancelled(self, app: ASGIApp) -> ASGIApp:
        """The app; a request that is cancelled by the end is no fault, as uvicorn would log it."""

        async def run(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await app(scope, receive, send)
            except asyncio.CancelledError:
                if not self.should_exit:
                    raise

        return run

    async def serve_until(self, stopped: asyncio.Event, listener: socket.socket) -> None:
        """Serve until the event is set; requests under way are answered first."""
        serving = asyncio.create_task(self.serve([listener]))
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self.should_exit = True
        await serving


def bind(host: str, port: int, option: str = "") -> socket.socket:
    """Bind a listening TCP socket; port 0 takes a free one.

    Args:
        host: Address of this machine.
        port: Port to listen on.
        option: The option that chooses the port, for error messages.

    Raises:
        AddressInUseError: If the port is taken or may not be bound.
        SettingsError: If the host is not an address of this machine, or the port is no port.
    """
    if not 0 <= port < 65536:
        raise SettingsError(f"port {port}: expected a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise SettingsError(f"host {host!r}: not a name or address that can be found") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise _explain(error, host, port, option) from error
    listener.setblocking(False)
    return listener


def parse_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT; an IPv6 host is in brackets.

    Raises:
        SettingsError: If it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise SettingsError(f"address {address!r}: expected HOST:PORT, like 127.0.0.1:8081")
    return host.removeprefix("[").removesuffix("]"), int(port)


def port_of(listener: socket.socket) -> int:
    """The port that a socket was bound to."""
    port: int = listener.getsockname()[1]
    return port


def announce(event: str, fields: Fields, ready_file: Path | None = None) -> None:
    """Log one structured line and, if asked, write the same fields to a file, atomically.

    Raises:
        SettingsError: If the file cannot be written.
    """
    log_event(event, fields)
    if ready_file is not None:
        with _partial(ready_file) as partial:
            partial.write_text(json.dumps(fields) + "\n")
            partial.replace(ready_file)


def retract(ready_file: Path | None) -> None:
    """Remove a ready file: one that an earlier process left, or this one's at its end."""
    if ready_file is not None:
        with contextlib.suppress(OSError, ValueError):
            ready_file.unlink()


def check_ready_file(ready_file: Path | None) -> None:
    """Require that a ready file can be written later; one that an earlier process left is removed.

    A caller that waits for the file does not see this.

    Raises:
        SettingsError: If it cannot be.
    """
    if ready_file is None:
        return
    retract(ready_file)
    with _partial(ready_file) as partial:
        partial.write_text("")
        if ready_file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """A file beside another, which takes its place or is removed."""
    partial = path.parent / f".{path.name}.{os.getpid()}"
    try:
        yield partial
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise SettingsError(f"{path}: the ready file cannot be written: {why}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink()


def log_event(event: str, fields: Fields) -> None:
    """Log one line of JSON; `logging` adds nothing to it."""
    line = json.dumps({"event": event, **fields})
    logging.getLogger("splitpoint").info(line, extra={"event": event})


def configure_logging() -> None:
    """Send the project's log lines, and the libraries' warnings, to stderr, within limits."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(LogLimit())
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("splitpoint").setLevel(logging.INFO)


def stop_on_signals(stopped: asyncio.Event) -> None:
    """Set the event when the running process is asked to end."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)


def _explain(
    error: OSError, host: str, port: int, option: str
) -> AddressInUseError | SettingsError:
    where, by = f"{host}:{port}", f" with {option}" if option else ""
    if error.errno == errno.EADDRINUSE:
        return AddressInUseError(
            f"{where} is taken by another process: end that one, or choose another port{by} "
            "(0 for any)"
        )
    if error.errno in {errno.EACCES, errno.EPERM}:
        return AddressInUseError(
            f"{where} may not be bound by this user: choose a port over 1023{by}"
        )
    return SettingsError(f"{where} cannot be bound: {error.strerror}")
