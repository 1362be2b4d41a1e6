"""One process that serves the cloud's half: gRPC for edges, REST for everyone, one event loop.

    bind REST -> open tails -> REST, not ready -> warm up -> other front ends -> ready file -> end

A port that is taken is reported before any model is opened. Ending is graceful: no new frames are
read, those under way are answered, and the process exits with 0. It ends within its grace whatever
runs: a thread that is still at work then is left behind, and the last line of the log says so.
"""

import asyncio
import ipaddress
import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edges
from cloud.metrics import CloudMetrics
from cloud.rest import create_app
from cloud.service import GrpcServer
from cloud.sessions import EdgeSessions
from cloud.store.store import Store
from cloud.streams import MOST_EDGES, StreamLimits, Streams
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.http.serving import (
    RestServer,
    announce,
    bind,
    check_ready_file,
    configure_logging,
    log_event,
    port_of,
    retract,
    stop_on_signals,
)
from common.machine import cpu_name
from common.rpc.tls import ServerTls, server_credentials
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tables.rows import RuntimeTarget

T = TypeVar("T")

_LOG = logging.getLogger("splitpoint.cloud")
_GRACE_S = 5.0
_LAST_S = 3.0
"""Time that the process may live beyond the grace, to write what waits."""
_DESCRIPTORS = 65_536


@dataclass(frozen=True)
class CloudSettings:
    """Settings of `splitpoint cloud`.

    Attributes:
        bundle: The bundle, a folder or its zip file.
        host: Address to listen on.
        grpc_port: Port for edges; 0 takes a free one.
        rest_host: Address for REST; the same as `host`, if empty.
        rest_port: Port for REST; 0 takes a free one.
        threads: Threads within one inference.
        runtime: Name of the runtime of tails.
        workers: Frames served at once, of all edges and REST callers.
        max_edges: Edges connected at once.
        store: File for observations; None keeps them while the process runs.
        device: What this machine is, for latency tables; its CPU, if empty.
        tls: Files for TLS with edges; without any, gRPC is in the clear. REST always is.
        ready_file: Written once requests are served.
    """

    bundle: Path
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    rest_host: str = ""
    rest_port: int = 8080
    threads: int = 1
    runtime: str = DEFAULT_RUNTIME
    workers: int = 2
    max_edges: int = MOST_EDGES
    store: Path | None = None
    device: str = ""
    tls: ServerTls = field(default_factory=ServerTls)
    ready_file: Path | None = None


class FrontEnd(Protocol):
    """A front end of the data plane; its port is bound when it is made.

    Attributes:
        port: The port that was bound.
    """

    port: int

    async def start(self) -> None:
        """Serve from now on."""

    async def stop(self, grace_s: float | None) -> None:
        """Answer what is under way for as long as the grace, then end; at once without one."""


class _StoppedError(Exception):
    """The process was asked to end before it was ready."""


def serve(settings: CloudSettings) -> None:
    """Serve until SIGINT or SIGTERM; with work that does not end, the process ends in here.

    Raises:
        AddressInUseError: If a port is taken.
        BundleError: If the bundle cannot be opened.
        ModelError: If a tail cannot be opened.
        SettingsError: If the files for TLS cannot be used.
        StoreError: If the store cannot be used.
    """
    configure_logging()
    check_ready_file(settings.ready_file)
    last_resort = threading.Timer(_GRACE_S + _LAST_S, _leave, [settings.ready_file, "a thread"])
    last_resort.daemon = True
    try:
        asyncio.run(_until_stopped(settings, last_resort))
    finally:
        last_resort.cancel()
        retract(settings.ready_file)


async def _until_stopped(settings: CloudSettings, last_resort: threading.Timer) -> None:
    stopped = asyncio.Event()
    stop_on_signals(stopped)
    watching = asyncio.create_task(_start_when(stopped, last_resort))
    try:
        cut_off = await serve_until(settings, stopped)
    finally:
        watching.cancel()
    if cut_off:  # its thread would be waited for, however long it takes
        _leave(settings.ready_file, cut_off)
    log_event("stopped", {"pid": os.getpid()})


async def serve_until(
    settings: CloudSettings,
    stopped: asyncio.Event,
    on_ready: Callable[[dict[str, Any]], None] = lambda _ready: None,
) -> str:
    """Serve until stopped; returns what is still at work, if anything is.

    Args:
        settings: Of the cloud.
        stopped: Ends it.
        on_ready: Called with ports, plans and models once requests are served.

    Raises:
        SplitpointError: As `serve`.
    """
    credentials = server_credentials(settings.tls)
    descriptors = raise_descriptors()
    rest_host = settings.rest_host or settings.host
    workers = ThreadPoolExecutor(settings.workers, thread_name_prefix="tail")
    admission = Admission(workers, settings.workers)
    with bind(rest_host, settings.rest_port, "--rest-port") as listener:
        # Says early why, if it cannot be.
        bind(settings.host, settings.grpc_port, "--grpc-port").close()
        if settings.tls.client_ca is not None:
            _warn_of_clear_rest(listener)
        try:
            store = await _unless(stopped, Store, settings.store)
            try:
                process = _Process(settings, admission, store, credentials, descriptors)
                await process.serve(stopped, listener, on_ready)
            finally:
                await asyncio.to_thread(store.close)
        except _StoppedError as error:
            return str(error)
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
    running = admission.running("edge") + admission.running("rest")
    return f"{running} calls" if running else ""


class _Process:
    """The cloud process once its store is open: serves gRPC and REST."""

    def __init__(
        self,
        settings: CloudSettings,
        admission: Admission,
        store: Store,
        credentials: grpc.ServerCredentials | None,
        descriptors: int,
    ) -> None:
        self._settings = settings
        self._admission = admission
        self._store = store
        self._credentials = credentials
        self._descriptors = descriptors
        self._edges = Edges()
        self._streams = Streams(StreamLimits(edges=settings.max_edges))

    async def serve(
        self,
        stopped: asyncio.Event,
        listener: socket.socket,
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        """Open the bundle and serve it."""
        bundle = await _unless(stopped, Bundle.open, self._settings.bundle)
        try:
            await self._serve_bundle(stopped, bundle, listener, on_ready)
        finally:
            bundle.close()

    async def _serve_bundle(
        self,
        stopped: asyncio.Event,
        bundle: Bundle,
        listener: socket.socket,
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        settings = self._settings
        opened = partial(
            Tails, threads=settings.threads, runtime=settings.runtime, workers=settings.workers
        )
        tails = await _unless(stopped, opened, bundle)
        await _unless(stopped, self._register, bundle)
        plane = self._data_plane(tails)
        rest = RestServer(create_app(plane))
        serving_rest = asyncio.create_task(rest.serve_until(stopped, listener))
        try:
            await rest.ready.wait()
            await _unless(stopped, tails.warm_up)
            ports = {"rest": port_of(listener)}
            await self._serve_front_ends(stopped, plane, ports, on_ready)
        finally:
            stopped.set()  # an error, too, is an end
            await asyncio.wait({serving_rest}, timeout=_GRACE_S)

    async def _serve_front_ends(
        self,
        stopped: asyncio.Event,
        plane: DataPlane,
        ports: dict[str, int],
        on_ready: Callable[[dict[str, Any]], None],
    ) -> None:
        """Serve by all front ends that begin once every tail has run."""
        front_ends = self._front_ends(plane)
        try:
            for each in front_ends.values():
                await each.start()
            ports = {name: each.port for name, each in front_ends.items()} | ports
            ready = _ready(plane.tails, ports)
            announce("ready", ready, self._settings.ready_file)
            on_ready(ready)
            await stopped.wait()
        finally:
            grace_s = _GRACE_S if stopped.is_set() else None
            await asyncio.gather(*(each.stop(grace_s) for each in front_ends.values()))

    def _front_ends(self, plane: DataPlane) -> dict[str, FrontEnd]:
        """Bind every front end but REST, which answers before the tails are ready."""
        settings = self._settings
        front_ends: dict[str, FrontEnd] = {}
        front_ends["grpc"] = GrpcServer(
            plane.tails.bundle,
            EdgeSessions(plane, self._streams),
            limits=self._streams.limits,
            descriptors=self._descriptors,
            host=settings.host,
            port=settings.grpc_port,
            credentials=self._credentials,
        )
        return front_ends

    def _data_plane(self, tails: Tails) -> DataPlane:
        metrics = CloudMetrics(
            tails.bundle.plans,
            self._edges,
            self._store,
            streams=self._streams,
            admission=self._admission,
        )
        return DataPlane(
            tails, self._admission, store=self._store, edges=self._edges, metrics=metrics
        )

    def _register(self, bundle: Bundle) -> None:
        """Register the segments of plans, and what tails run on here, with the store."""
        settings = self._settings
        self._store.register_plans(bundle.plans)
        device = settings.device or cpu_name()
        runtime = runtime_name(settings.threads, settings.runtime)
        target = RuntimeTarget(device, runtime, settings.threads)
        self._store.set_cloud_device(target, time.time())


def raise_descriptors() -> int:
    """Let this process open as many files and sockets as it may; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return _DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


async def _unless(stopped: asyncio.Event, work: Callable[..., T], *args: object) -> T:
    """Run work in a thread and return its result.

    Raises:
        _StoppedError: If the process is asked to end first; the thread is left alone.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work, *args))
    stopping = asyncio.create_task(stopped.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not working.done():
        raise _StoppedError("the start")
    return working.result()


async def _start_when(stopped: asyncio.Event, last_resort: threading.Timer) -> None:
    await stopped.wait()
    last_resort.start()


def _leave(ready_file: Path | None, cut_off: str) -> NoReturn:
    """End the process without waiting for its threads."""
    retract(ready_file)
    log_event("stopped", {"pid": os.getpid(), "cut_off": cut_off})
    logging.shutdown()
    os._exit(0)


def _warn_of_clear_rest(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    if not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        _LOG.warning(
            "REST on %s:%d is in the clear and for everyone, while edges need a certificate: keep "
            "it to this machine with --rest-host 127.0.0.1, or behind a proxy that speaks TLS",
            host,
            port,
        )


def _ready(tails: Tails, ports: dict[str, int]) -> dict[str, Any]:
    return {
        **ports,
        "pid": os.getpid(),
        "plans": [plan.name for plan in tails.bundle.plans.values()],
        "models": tails.opened,
    }
