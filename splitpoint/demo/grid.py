"""The demo's map: an edge and a link in each cell, and every way to run the network measured there.

    bundle -> cloud process <- emulated links <- slow edge processes, one per link -> cells

An edge starts at full speed, as nobody wants to wait for that, and is slowed before it is measured.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.slow import FREEZERS, SIGNALS, SlowCpu
from common.bundle import Bundle
from common.detections import Detections
from common.link import Link
from common.manifest import Plan, Search
from splitpoint.demo.ways import BY_ITSELF, Way, choose, measure, reference, same_boxes
from splitpoint.machine import machine
from splitpoint.processes import Service
from splitpoint.progress import Stages

SLOWING = (*FREEZERS, SIGNALS)
"""How an edge is slowed, the best way first; the last needs no root."""

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Scene:
    """What the model has to live with on the edge.

    Attributes:
        title: What a person calls it.
        edge_memory_bytes: Limit on weights and activations; None is room for the whole network.
        links: Between it and the cloud.
    """

    title: str
    edge_memory_bytes: int | None
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Cell:
    """One edge, one link, and the ways that were measured there."""

    scene: Scene
    link: Link
    ways: tuple[Way, ...]

    @property
    def fastest(self) -> Way:
        """Of the ways that were asked for by name."""
        return min((w for w in self.ways if w.plan is not None), key=lambda way: way.latency_ms)

    @property
    def by_itself(self) -> Way:
        """The edge's own choice."""
        return next(way for way in self.ways if way.title == BY_ITSELF)


@dataclass(frozen=True)
class Grid:
    """All cells.

    Attributes:
        cells: Scene by scene, link by link.
        truth: What the whole floating-point network finds, by picture.
        rounds: Times that each picture went each way.
        share: Of a core that the edges had, as measured.
        searches: What the bundles were searched for, scene by scene.
    """

    cells: tuple[Cell, ...]
    truth: dict[Path, Detections]
    rounds: int
    share: float
    searches: tuple[Search, ...]

    def write_json(self, path: Path) -> None:
        """Write the figures, with what they were measured on."""
        record = {
            "machine": machine(),
            "searches": [search.model_dump() for search in self.searches],
            "edge_share_of_a_core": self.share,
            "images": [image.name for image in self.truth],
            "rounds": self.rounds,
            "cells": [self._record(cell) for cell in self.cells],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")

    def _record(self, cell: Cell) -> dict[str, Any]:
        return {
            "edge": cell.scene.title,
            "edge_memory_bytes": cell.scene.edge_memory_bytes,
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
            "predicted": None if way.plan is None else _predicted(way.plan),
        }


def _predicted(plan: Plan) -> dict[str, Any]:
    return plan.predicted.model_dump()


def measure_scene(
    scene: Scene,
    bundle: Path,
    images: Sequence[Path],
    slow: SlowCpu,
    *,
    rounds: int,
    logs: Path,
    stages: Stages,
) -> tuple[list[Cell], dict[Path, Detections]]:
    """Start a cloud and an edge per link, send every picture every way, and stop them.

    Args:
        scene: The edge and its links.
        bundle: Searched for that edge.
        images: The pictures.
        slow: The edge's share of the CPU.
        rounds: Times that each picture goes each way, after one more to warm up.
        logs: Folder for what the processes print.
        stages: Shows how far it is.

    Returns:
        A cell for each link, and what the whole network finds by picture.

    Raises:
        SplitpointError: If a process does not start, or does not answer.
    """
    with Bundle.open(bundle) as opened:
        plans = dict(opened.plans)
    cells = []
    with ExitStack() as stack:
        progress = stages.stage(f"starting cloud and edges ({scene.title})")
        ports = ("--grpc-port", "0", "--rest-port", "0")
        cloud = stack.enter_context(
            Service(["cloud", "--bundle", str(bundle), *ports], logs / "cloud.log")
        )
        address = f"{_HOST}:{cloud.ready['grpc']}"
        edges: list[Service] = []
        for link in scene.links:
            command = ["edge", "--bundle", str(bundle), "--cloud", address, "--link", str(link)]
            command += ["--listen", f"{_HOST}:0"]
            log = logs / f"edge-{str(link).partition('/')[0]}.log"
            edges.append(stack.enter_context(Service(command, log)))
            progress(len(edges), len(scene.links))
        truth = reference(images, f"http://{_HOST}:{cloud.ready['rest']}")
        for link, edge in zip(scene.links, edges, strict=True):
            slow.take(edge.ready["pid"])
            ways = choose(plans, link)
            url = f"http://{_HOST}:{edge.ready['rest']}"
            progress = stages.stage(f"sending pictures over {link}")
            measure(ways, images, url, rounds=rounds, progress=progress)
            cells.append(Cell(scene, link, tuple(ways)))
    return cells, truth
