"""Processes that `bench.run_latency` measures, for all cells of one share of a core.

    [slowed] edge process -> wire -> cloud
                                  -> plain service

The edge runs the plan named in a request, and for each setting it has a planner that chooses by
itself: in the same process, since another one's caches would be colder. It becomes slow once it is
ready, and nothing is reported unless the share that it gets was measured first.
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.edge_process import EdgeProcess, EdgeProcessSettings, edge_process
from bench.links.shaped import ShapedLink
from bench.processes import Service, end, profile_both
from bench.slow import slowed
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.tables.rows import LatencyRow
from common.tables.store_file import read_tables

_PLAIN_PORT = 18_080
"""Port of the plain service, in a namespace of its own where no other port is taken."""
_PLAIN_START_S = 60.0


@dataclass(frozen=True)
class BenchStage:
    """Running processes and inputs for the cells of one share of a core.

    Attributes:
        bundle: Bundle of all strategies' plans.
        digests: Digests of its plans by name.
        strategies: Plans by strategy; see `bench.latency.strategies.build`.
        wire: Link between edges and cloud.
        images: Pictures that the edges have.
        rows: Latency tables of both sides, profiled before anything is measured.
        device: Name of the edge in them.
        share: Share of a core, as measured; 1 is a whole one.
        edge: Runs plans, and has a pilot for each setting.
        cloud_pid: Process id of the cloud.
        plain_pid: Process id of the plain service; None on an emulated link, which HTTP
            does not pass.
    """

    bundle: Bundle
    digests: dict[str, bytes]
    strategies: dict[str, Any]
    wire: ShapedLink
    images: Sequence[Path]
    rows: list[LatencyRow]
    device: str
    share: float
    edge: EdgeProcess
    cloud_pid: int
    plain_pid: int | None


@contextmanager
def stage(
    wire: ShapedLink,
    bundle: Bundle,
    strategies: dict[str, Any],
    images: Sequence[Path],
    share: float,
    folder: Path,
    profile_s: float = 40.0,
) -> Iterator[BenchStage]:
    """Start all processes of a share, for the length of the block.

    Args:
        wire: Link between edges and cloud.
        bundle: Bundle of all strategies' plans.
        strategies: Plans by strategy.
        images: Pictures to send.
        share: Share of a core that the edges get.
        folder: Folder for logs and tables.
        profile_s: Largest duration of the profile of either side.

    Raises:
        SlowCpuError: If the edge cannot be slowed, or its share is not kept.
        SplitpointError: If a process does not start.
    """
    digests = {plan.name: digest for digest, plan in bundle.plans.items()}
    device, tables = f"{share:g} of a core", folder / f"{share:g}.json"
    with ExitStack() as stack:
        slow = None if share >= 1 else stack.enter_context(slowed(share))
        if not tables.exists():
            prefix = () if slow is None else slow.prefix
            profile_both(bundle.root, {device: prefix}, tables, profile_s)
        host, prefix = wire.cloud.address, wire.cloud.prefix
        log = folder / f"cloud-{share:g}.log"
        cloud = stack.enter_context(Service.cloud(bundle.root, log, host=host, prefix=prefix))
        alone = wire.left_to_edges is not None
        plain_pid = None if alone else stack.enter_context(_plain_service(wire, bundle))
        settings = EdgeProcessSettings(
            bundle=bundle.root,
            images=images,
            cloud=f"{host}:{cloud.ready['grpc']}",
            device=device,
            plans=list(bundle.plans),
            tables=tables,
            link=wire.left_to_edges,
            adaptive=False,
            pilots={
                setting: [digests[name] for name in names]
                for setting, names in strategies["splitpoint"].items()
            },
            plain=None if alone else f"{host}:{_PLAIN_PORT}",
        )
        edge = stack.enter_context(edge_process(settings, wire.edge.prefix))
        if slow is not None:
            slow.take(edge.pid)
        yield BenchStage(
            bundle=bundle,
            digests=digests,
            strategies=strategies,
            wire=wire,
            images=images,
            rows=read_tables(tables),
            device=device,
            share=1.0 if slow is None else slow.measured,
            edge=edge,
            cloud_pid=cloud.ready["pid"],
            plain_pid=plain_pid,
        )


@contextmanager
def _plain_service(wire: ShapedLink, bundle: Bundle) -> Iterator[int]:
    """Start the baseline service for the length of the block; gives its pid."""
    command = [*wire.cloud.prefix, sys.executable, "-m", "bench.micro.plain_service"]
    command += ["--bundle", str(bundle.root), "--host", wire.cloud.address]
    process = subprocess.Popen([*command, "--port", str(_PLAIN_PORT)])  # noqa: S603 - our own
    try:
        until_s = time.monotonic() + _PLAIN_START_S
        while not wire.cloud.listens(_PLAIN_PORT):
            if process.poll() is not None or time.monotonic() > until_s:
                raise SplitpointError("the plain service did not start")
            time.sleep(0.2)
        yield process.pid
    finally:
        end(process)
