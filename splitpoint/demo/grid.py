"""The demo's map: every way to run the network, measured for an edge and a link per cell.

    bundle -> cloud process <- emulated links <- slow edge processes, one per link -> cells

An edge starts at full speed, to save time, and is slowed before it is measured.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.machine import machine
from bench.processes import Service
from bench.slow import FREEZERS, SIGNALS, slowed
from common.bundle.bundle import Bundle
from common.bundle.manifest import Search
from common.link.link import Link
from common.progress import Stages
from common.tasks.base import Agreement, Task, TaskResult
from edge.head import fitting_together
from splitpoint.demo.ways import BY_ITSELF, Way, choose, measure, reference, same_findings

SLOWING = (*FREEZERS, SIGNALS)
"""Mechanisms to slow an edge, the best first; the last needs no root."""

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class MapCell:
    """A cell of the map: one edge, one link, and the ways measured there.

    Attributes:
        memory_bytes: Limit on weights and activations of the edge; None for no limit.
        link: Between it and the cloud.
        ways: Ways to run the network.
    """

    memory_bytes: int | None
    link: Link
    ways: tuple[Way, ...] = ()

    @property
    def edge(self) -> str:
        """Title of the edge in the tables."""
        if self.memory_bytes is None:
            return "room for all of it"
        return f"{self.memory_bytes / 2**20:g} MiB for the model"

    @property
    def fastest(self) -> Way:
        """Fastest of the ways with a fixed plan."""
        return min((w for w in self.ways if w.plan is not None), key=lambda way: way.latency_ms)

    @property
    def by_itself(self) -> Way:
        """Way in which the edge chooses the plan itself."""
        return next(way for way in self.ways if way.title == BY_ITSELF)


@dataclass(frozen=True)
class DemoMap:
    """The measured map: all cells, and what they were measured on.

    Attributes:
        cells: Edge by edge, link by link.
        task: Task of the network.
        truth: Results of the whole floating-point network, by picture.
        rounds: Number of times that each picture was sent each way.
        share: Share of a core that the edges had, as measured.
        search: Settings of the bundle's search.
    """

    cells: tuple[MapCell, ...]
    task: Task
    truth: dict[Path, TaskResult]
    rounds: int
    share: float
    search: Search

    def write_json(self, path: Path) -> None:
        """Write the figures as JSON, with the machine and the settings of the measurement."""
        record = {
            "machine": machine(),
            "search": self.search.model_dump(),
            "edge_share_of_a_core": self.share,
            "images": [image.name for image in self.truth],
            "rounds": self.rounds,
            "cells": [self._record(cell) for cell in self.cells],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")

    def agreed(self, way: Way) -> Agreement:
        """Agreement of a way's results with those of the whole network."""
        return same_findings(way, self.truth, self.task)

    def _record(self, cell: MapCell) -> dict[str, Any]:
        return {
            "edge_memory_bytes": cell.memory_bytes,
            "link": str(cell.link),
            "fastest": cell.fastest.title,
            "ways": {way.title: self._way(way) for way in cell.ways},
        }

    def _way(self, way: Way) -> dict[str, Any]:
        return {
            "plans": dict(way.plans),
            "latency_ms": way.latency_ms,
            "latencies_ms": way.latencies_ms,
            "uplink_bytes": way.uplink_bytes,
            "same_boxes": asdict(self.agreed(way)),
            "predicted": None if way.plan is None else way.plan.predicted.model_dump(),
        }


def measure_grid(
    cells: Sequence[MapCell],
    bundle: Path,
    images: Sequence[Path],
    share: float,
    *,
    rounds: int,
    logs: Path,
    stages: Stages,
) -> DemoMap:
    """Start a cloud and an edge for each cell, send every picture every way, and stop them.

    Args:
        cells: Cells to measure.
        bundle: Bundle with plans for all of them.
        images: The pictures.
        share: Share of a core that each edge gets.
        rounds: Number of times that each picture is sent each way, after a few to warm up.
        logs: Folder for the logs of the processes.
        stages: Progress display.

    Raises:
        SplitpointError: If a process does not start, or does not answer.
    """
    with Bundle.open(bundle) as opened:
        search, task = opened.manifest.search, opened.manifest.task
        plans = [
            {digest: opened.plans[digest] for digest in fitting_together(opened, cell.memory_bytes)}
            for cell in cells
        ]
    measured = []
    with ExitStack() as stack:
        progress = stages.stage("starting cloud and edges")
        ports = ("--grpc-port", "0", "--rest-port", "0")
        cloud = stack.enter_context(
            Service(["cloud", "--bundle", str(bundle), *ports], logs / "cloud.log")
        )
        progress(1, 1 + len(cells))
        address = f"{_HOST}:{cloud.ready['grpc']}"
        edges = []
        for number, cell in enumerate(cells, 1):
            command = ["edge", "--bundle", str(bundle), "--cloud", address, "--listen"]
            command += [f"{_HOST}:0", "--link", str(cell.link), "--edge-id", f"edge-{number}"]
            command += [] if cell.memory_bytes is None else ["--memory", str(cell.memory_bytes)]
            edges.append(Service(command, logs / f"edge-{number}.log"))
        with ThreadPoolExecutor(len(edges)) as starting:
            for number, _ in enumerate(starting.map(stack.enter_context, edges), 1):
                progress(1 + number, 1 + len(cells))
        truth = reference(images, f"http://{_HOST}:{cloud.ready['rest']}", task)
        slow = stack.enter_context(slowed(share, SLOWING, strict=False))
        for cell, edge, able in zip(cells, edges, plans, strict=True):
            slow.take(edge.ready["pid"])
            ways = choose(able, cell.link)
            url = f"http://{_HOST}:{edge.ready['rest']}"
            progress = stages.stage(f"sending pictures over {cell.link}")
            measure(ways, images, url, rounds=rounds, progress=progress)
            measured.append(replace(cell, ways=tuple(ways)))
    return DemoMap(tuple(measured), task, truth, rounds, slow.measured, search)
