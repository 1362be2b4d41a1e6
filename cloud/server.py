"""One process that serves the cloud's half: gRPC for edges, REST for everyone, one event loop.

    bind both ports -> open tails -> REST, not ready -> warm up -> gRPC -> ready file -> SIGTERM

A port that is taken is reported before any model is opened. Ending is graceful: no new frames are
read, those under way are answered, and the process exits with 0.
"""

import asyncio
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from cloud.edges import Edges
from cloud.metrics import CloudMetrics
from cloud.rest import create_app
from cloud.service import SplitService
from cloud.store import Store
from cloud.tails import Tails
from common.bundle import Bundle
from common.errors import AddressInUseError
from common.messages import channel_options
from common.rpc.splitpoint_pb2_grpc import add_SplitServiceServicer_to_server
from common.runtime import runtime_name
from common.serving import (
    RestServer,
    announce,
    bind,
    configure_logging,
    log_event,
    port_of,
    retract,
    stop_on_signals,
)
from common.tables import Place
from common.tls import ServerTls, server_credentials

_MAX_EDGES = 64
_GRACE_S = 5.0


@dataclass(frozen=True)
class CloudSettings:
    """What `splitpoint cloud` was asked for.

    Attributes:
        bundle: The bundle, a folder or its zip file.
        host: Address to listen on.
        grpc_port: Port for edges; 0 takes a free one.
        rest_port: Port for REST; 0 takes a free one.
        threads: Threads within one inference.
        workers: Frames served at once, of all edges and REST callers.
        store: File for what frames took; None keeps it while the process runs.
        device: What this machine is, for latency tables; its host name, if empty.
        tls: Files for TLS with edges; without any, gRPC is in the clear. REST always is.
        ready_file: Written once requests are served.
        version: The software's version.
    """

    bundle: Path
    host: str = "127.0.0.1"
    grpc_port: int = 50051
    rest_port: int = 8080
    threads: int = 1
    workers: int = 2
    store: Path | None = None
    device: str = ""
    tls: ServerTls = field(default_factory=ServerTls)
    ready_file: Path | None = None
    version: str = ""


def serve(settings: CloudSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        AddressInUseError: If a port is taken.
        BundleError: If the bundle cannot be opened.
        ModelError: If a tail cannot be opened.
        SettingsError: If the files for TLS cannot be used.
        StoreError: If the store cannot be used.
    """
    configure_logging()
    asyncio.run(_serve(settings))


async def _serve(settings: CloudSettings) -> None:
    stopped = asyncio.Event()
    stop_on_signals(stopped)
    retract(settings.ready_file)
    credentials = server_credentials(settings.tls)
    with (
        bind(settings.host, settings.rest_port) as listener,
        ThreadPoolExecutor(settings.workers, thread_name_prefix="tail") as workers,
    ):
        grpc_server, grpc_port = _bind_grpc(settings.host, settings.grpc_port, credentials)
        store = await asyncio.to_thread(Store, settings.store)
        try:
            bundle = await asyncio.to_thread(Bundle.open, settings.bundle)
            tails = await asyncio.to_thread(Tails, bundle, threads=settings.threads)
            await asyncio.to_thread(_introduce, store, bundle, settings)
            edges = Edges()
            metrics = CloudMetrics(bundle.plans, edges, store)
            app = create_app(
                tails,
                workers,
                store=store,
                edges=edges,
                metrics=metrics,
                version=settings.version,
            )
            rest = RestServer(app)
            serving_rest = asyncio.create_task(rest.serve_until(stopped, listener))
            await rest.ready.wait()
            await asyncio.to_thread(tails.warm_up)
            service = SplitService(
                tails,
                workers,
                version=settings.version,
                store=store,
                edges=edges,
                metrics=metrics,
            )
            add_SplitServiceServicer_to_server(service, grpc_server)  # type: ignore[no-untyped-call]
            await grpc_server.start()
            announce("ready", _ready(tails, grpc_port, port_of(listener)), settings.ready_file)
            await stopped.wait()
            service.drain()
            await asyncio.gather(grpc_server.stop(_GRACE_S), serving_rest)
            log_event("stopped", {"pid": os.getpid()})
        finally:
            await grpc_server.stop(None)
            await asyncio.to_thread(store.close)
            retract(settings.ready_file)


def _introduce(store: Store, bundle: Bundle, settings: CloudSettings) -> None:
    """Tell the store what plans are made of, and whose tail times come in."""
    store.know(bundle.plans)
    device = settings.device or platform.node() or "cloud"
    store.stand_on(Place(device, runtime_name(settings.threads), settings.threads), time.time())


def _ready(tails: Tails, grpc_port: int, rest_port: int) -> dict[str, int | list[str]]:
    return {
        "grpc": grpc_port,
        "rest": rest_port,
        "pid": os.getpid(),
        "plans": [plan.name for plan in tails.bundle.plans.values()],
        "models": tails.opened,
    }


def _bind_grpc(
    host: str, port: int, credentials: grpc.ServerCredentials | None
) -> tuple[grpc.aio.Server, int]:
    bind(host, port).close()  # says why, if it cannot be; gRPC would not
    # Without this option a second server would bind the same port and take half of the edges.
    options = [*channel_options(), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=_MAX_EDGES)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is None:
            return server, server.add_insecure_port(where)
        return server, server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise AddressInUseError(f"{where} cannot be bound: choose another port") from error
