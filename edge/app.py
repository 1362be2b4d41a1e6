"""The edge, put together from a bundle and settings: what every edge process starts from.

EdgeSettings, Bundle -> open_edge -> Detector (heads, stream to the cloud, planner)
"""

import platform
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.bundle.bundle import Bundle
from common.errors import SettingsError
from common.latency import PlanCost, costs
from common.link.link import Link, LinkTrace
from common.machine import cpu_name
from common.rpc.messages import MAX_EDGE_ID_CHARACTERS
from common.rpc.splitpoint_pb2 import Hello
from common.rpc.tls import ClientTls, channel_credentials
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tables.store_file import read_tables
from common.version import __version__
from edge.detector import Detector, find_plan
from edge.head import fitting_together
from edge.reporter import Reported
from edge.stream.client import CloudClient
from edge.stream.shaping import ShapedTransport
from edge.stream.transport import GrpcTransport, Transport, check_address


def own_name() -> str:
    """This machine's host name, cut to the length that the cloud takes."""
    return platform.node()[:MAX_EDGE_ID_CHARACTERS] or "edge"


@dataclass(frozen=True)
class EdgeSettings:
    """Settings of an edge.

    Attributes:
        cloud: HOST:PORT of the cloud's gRPC endpoint; None leaves the edge-only plans.
        link: The link to emulate on the way there; None for the link as it is.
        tls: Files for TLS with the cloud; without any, gRPC is in the clear.
        report: What the cloud is sent of frames that the edge served alone.
        plan: Name of a fixed plan, or the start of its digest; None adapts to the link.
        edge_id: Name of this edge, for the cloud.
        device: What this edge is, for latency tables; its CPU, if None.
        threads: Threads within one run of a head.
        runtime: Name of the runtime of heads.
        tables: Measured times of this kind of edge: a store, or a table as JSON.
        memory_bytes: Limit on all heads together; that of the search, if None.
    """

    cloud: str | None = None
    link: Link | LinkTrace | None = None
    tls: ClientTls = field(default_factory=ClientTls)
    report: Reported = "times"
    plan: str | None = None
    edge_id: str = field(default_factory=own_name)
    device: str | None = None
    threads: int = 1
    runtime: str = DEFAULT_RUNTIME
    tables: Path | None = None
    memory_bytes: int | None = None


def open_edge(
    bundle: Bundle,
    settings: EdgeSettings,
    *,
    every_plan: bool = False,
    plans: Sequence[bytes] | None = None,
) -> Detector:
    """Open a detector for a fixed plan, or one that adapts among the plans that fit the edge.

    Args:
        bundle: The opened bundle.
        settings: Of the edge.
        every_plan: Whether the other plans that fit are opened beside a fixed one, for callers who
            name plans.
        plans: Digests of the plans to open; those that fit the edge together, if None.

    Raises:
        SettingsError: If settings contradict each other or make no sense.
        SplitpointError: As `Detector`.
    """
    client = _client(bundle, settings)
    adaptive = client is not None and settings.plan is None
    digests = fitting_together(bundle, settings.memory_bytes) if plans is None else list(plans)
    if not adaptive:
        # Without a cloud only edge-only plans can serve: the best of these is the default.
        able = [digest for digest in digests if bundle.plans[digest].tail is None] or digests
        wanted = able[0] if settings.plan is None else find_plan(bundle, settings.plan)
        if settings.memory_bytes is not None and wanted not in digests:
            raise SettingsError(
                f"--plan {settings.plan}: does not fit --memory {settings.memory_bytes}"
            )
        others = [digest for digest in digests if digest != wanted] if every_plan else []
        digests = [wanted, *others]
    return Detector(
        bundle,
        client,
        plans=digests,
        threads=settings.threads,
        runtime=settings.runtime,
        costs=_costs(bundle, settings),
        adaptive=adaptive,
        report=settings.report,
        required=() if settings.plan is None else digests[:1],
    )


def _costs(bundle: Bundle, settings: EdgeSettings) -> list[PlanCost]:
    """Costs of the plans on this edge, as far as they are known before the first frame."""
    if settings.tables is None:
        return costs(bundle.plans)
    device = cpu_name() if settings.device is None else settings.device
    rows = read_tables(settings.tables)
    edges = [row for row in rows if row.side == "edge" and row.is_of(None, settings.runtime)]
    known = sorted({row.device for row in edges})
    if device not in known:
        raise SettingsError(
            f"{settings.tables}: nothing about device {device!r} with {settings.runtime}; it has "
            f"{', '.join(known) or 'none'}: give --device"
        )
    return costs(bundle.plans, rows, device, settings.runtime)


def _client(bundle: Bundle, settings: EdgeSettings) -> CloudClient | None:
    """The stream to the cloud, not yet opened; None without an address."""
    emulated, credentials = settings.link, channel_credentials(settings.tls)
    device = settings.device
    device = cpu_name()[:MAX_EDGE_ID_CHARACTERS] if device is None else device
    for option, name in (("--edge-id", settings.edge_id), ("--device", device)):
        if not 1 <= len(name) <= MAX_EDGE_ID_CHARACTERS:
            raise SettingsError(f"{option}: expected 1 to {MAX_EDGE_ID_CHARACTERS} characters")
        if not name.isprintable():
            raise SettingsError(f"{option}: expected printable characters, got {name!a}")
    if settings.cloud is None:
        for option, given in (("--link", emulated), ("--tls-ca", credentials)):
            if given is not None:
                raise SettingsError(f"{option} is for the way to a cloud: give --cloud HOST:PORT")
        return None
    address = check_address(settings.cloud)

    started_s: float | None = None

    def connect() -> Transport:
        nonlocal started_s
        transport = GrpcTransport(address, credentials)
        if emulated is None:
            return transport
        # A trace goes on where it is when a lost stream is opened again.
        started_s = time.monotonic() if started_s is None else started_s
        return ShapedTransport(transport, emulated, start_s=started_s)

    hello = Hello(
        edge_id=settings.edge_id,
        bundle_digest=bundle.digest,
        software_version=__version__,
        device=device,
        runtime=runtime_name(settings.threads, settings.runtime),
        threads=settings.threads,
        instance=secrets.randbits(64) or 1,
    )
    return CloudClient(connect, hello)
