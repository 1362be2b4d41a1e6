"""A cloud as an object of a program, or as a process of its own."""

import asyncio
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cloud.server import CloudSettings, serve, serve_until
from common.rpc.tls import ServerTls
from common.runtime.registry import DEFAULT_RUNTIME

_LOCAL = "127.0.0.1"


class CloudServer:
    """Serves the tails of a bundle to edges over gRPC, and whole images over REST.

    In a `with` block it serves from a thread; `run` serves until the process is asked to end.

        >>> with CloudServer(bundle) as server, EdgeDetector(bundle, server.grpc_address) as edge:
        ...     edge.check_ready()

    Args:
        bundle: The bundle's folder or zip file.
        host: Address to listen on.
        grpc_port: Port for edges; 0 takes a free one.
        rest_host: Address for REST; the same as `host`, if empty.
        rest_port: Port for REST; 0 takes a free one.
        threads: Threads within one inference.
        runtime: Runtime of tails: "onnxruntime", or "openvino" (`pip install
            'splitpoint[openvino]'`).
        workers: Frames served at once, of all edges and REST callers.
        max_edges: Edges connected at once.
        store: SQLite file for observations; None keeps them while it runs.
        device: What this machine is, for latency tables; its CPU, if empty.
        tls: Files for TLS with edges.
        ready_file: Written, as JSON with the ports, once requests are served.
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        host: str = _LOCAL,
        grpc_port: int = 0,
        rest_host: str = "",
        rest_port: int = 0,
        threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
        workers: int = 2,
        max_edges: int = 512,
        store: Path | None = None,
        device: str = "",
        tls: ServerTls | None = None,
        ready_file: Path | None = None,
    ) -> None:
        self.settings = CloudSettings(
            bundle=Path(bundle),
            host=host,
            grpc_port=grpc_port,
            rest_host=rest_host,
            rest_port=rest_port,
            threads=threads,
            runtime=runtime,
            workers=workers,
            max_edges=max_edges,
            store=store,
            device=device,
            tls=tls or ServerTls(),
            ready_file=ready_file,
        )
        self._ready: dict[str, Any] = {}
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._thread: threading.Thread | None = None

    @property
    def grpc_address(self) -> str:
        """HOST:PORT for edges, once it serves."""
        return f"{_reachable(self.settings.host)}:{self._ready['grpc']}"

    @property
    def rest_url(self) -> str:
        """URL of the REST API, once it serves."""
        host = self.settings.rest_host or self.settings.host
        return f"http://{_reachable(host)}:{self._ready['rest']}"

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. Call it from the main thread.

        Raises:
            SplitpointError: If the bundle, a port or a file cannot be used.
        """
        serve(self.settings)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._serve, name="cloud", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failed is not None:
            self._thread.join()
            raise self._failed
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if error is None and self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Answer the frames under way, and stop serving."""
        if self._stop is not None:
            loop, stopped = self._stop
            loop.call_soon_threadsafe(stopped.set)
        if self._thread is not None:
            self._thread.join()
        self._stop = self._thread = None

    def _serve(self) -> None:
        try:
            asyncio.run(self._until_closed())
        except BaseException as error:  # noqa: BLE001 - raised again in the block's thread
            self._failed = error
        finally:
            self._started.set()

    async def _until_closed(self) -> None:
        stopped = asyncio.Event()
        self._stop = asyncio.get_running_loop(), stopped
        await serve_until(self.settings, stopped, self._announced)

    def _announced(self, ready: dict[str, Any]) -> None:
        self._ready = ready
        self._started.set()


def _reachable(host: str) -> str:
    """An address for callers on this machine, in place of "every address"."""
    named = {"0.0.0.0": _LOCAL, "::": "::1", "": _LOCAL}.get(host, host)  # noqa: S104
    return f"[{named}]" if ":" in named else named
