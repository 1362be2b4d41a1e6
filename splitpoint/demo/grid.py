"""The demo's map: an edge and a link in each cell, and every way to run the network measured there.

    bundle -> cloud process <- emulated links <- slow edge processes, one per link -> cells

An edge starts at full speed, as nobody wants to wait for that, and is slowed before it is measured.
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
from common.tasks.detections import Detections
from edge.head import fitting_together
from splitpoint.demo.ways import BY_ITSELF, Way, choose, measure, reference, same_boxes

SLOWING = (*FREEZERS, SIGNALS)
"""How an edge is slowed, the best way first; the last needs no root."""

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class MapCell:
    """One edge, one link, and the ways that are measured there.

    Attributes:
        memory_bytes: Limit on weights and activations of the edge; None is room for everything.
        link: Between it and the cloud.
        ways: To run the network.
    """

    memory_bytes: int | None
    link: Link
    ways: tuple[Way, ...] = ()

    @property
    def edge(self) -> str:
        """The edge, as a person calls it."""
        if self.memory_bytes is None:
            return "room for all of it"
        return f"{self.memory_bytes / 2**20:g} MiB for the model"

    @property
    def fastest(self) -> Way:
        """Of the ways that were asked for by name."""
        return min((w for w in self.ways if w.plan is not None), key=lambda way: way.latency_ms)

    @property
    def by_itself(self) -> Way:
        """The edge's own choice."""
        return next(way for way in self.ways if way.title == BY_ITSELF)


@dataclass(frozen=True)
class DemoMap:
    """All cells.

    Attributes:
        cells: Edge by edge, link by link.
        truth: What the whole floating-point network finds, by picture.
        rounds: Times that each picture went each way.
        share: Of a core that the edges had, as measured.
        search: What the bundle was searched for.
    """

    cells: tuple[MapCell, ...]
    truth: dict[Path, Detections]
    rounds: int
    share: float
    search: Search

    def write_json(self, path: Path) -> None:
        """Write the figures, with what they were measured on."""
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
            "same_boxes": asdict(same_boxes(way, self.truth)),
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
        cells: To measure.
        bundle: Of plans for all of them.
        images: The pictures.
        share: Of a core that each edge has.
        rounds: Times that each picture goes each way, after a few to warm up.
        logs: Folder for what the processes print.
        stages: Shows how far it is.

    Raises:
        SplitpointError: If a process does not start, or does not answer.
    """
    with Bundle.open(bundle) as opened:
        search = opened.manifest.search
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
        truth = reference(images, f"http://{_HOST}:{cloud.ready['rest']}")
        slow = stack.enter_context(slowed(share, SLOWING, strict=False))
        for cell, edge, able in zip(cells, edges, plans, strict=True):
            slow.take(edge.ready["pid"])
            ways = choose(able, cell.link)
            url = f"http://{_HOST}:{edge.ready['rest']}"
            progress = stages.stage(f"sending pictures over {cell.link}")
            measure(ways, images, url, rounds=rounds, progress=progress)
            measured.append(replace(cell, ways=tuple(ways)))
    return DemoMap(tuple(measured), truth, rounds, slow.measured, search)
