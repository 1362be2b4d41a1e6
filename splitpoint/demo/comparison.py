"""A bundle put to the test: a cloud and an edge process, real pictures, every way side by side."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from common.detections import Detections
from common.link import Link
from common.manifest import Manifest
from splitpoint.demo.ways import Way, choose, measure, reference, same_boxes
from splitpoint.machine import machine
from splitpoint.processes import Service
from splitpoint.progress import Stages

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        manifest: Of the bundle.
        link: Emulated between the two processes.
        rounds: Times that each picture went each way.
        ways: With what was measured of them.
        truth: What the whole floating-point network finds, by picture.
    """

    manifest: Manifest
    link: Link
    rounds: int
    ways: list[Way]
    truth: dict[Path, Detections]

    def write_json(self, path: Path) -> None:
        """Write the figures, with what they were measured on."""
        measured = {
            way.title: {
                "plan": way.plan.name,
                "latency_ms": way.latency_ms,
                "latencies_ms": way.latencies_ms,
                "uplink_bytes": way.uplink_bytes,
                "stages_ms": {stage: way.stage_ms(stage) for stage in way.stages_ms},
                "same_boxes": asdict(same_boxes(way, self.truth)),
                "predicted": way.plan.predicted.model_dump(),
            }
            for way in self.ways
        }
        record = {
            "machine": machine(),
            "search": self.manifest.search.model_dump(),
            "link": str(self.link),
            "images": [image.name for image in self.truth],
            "rounds": self.rounds,
            "ways": measured,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1) + "\n")


def compare(
    bundle: Path,
    manifest: Manifest,
    images: Sequence[Path],
    link: Link,
    *,
    rounds: int,
    logs: Path,
    stages: Stages,
) -> Comparison:
    """Start both processes, send every picture every way, interleaved, and stop them.

    Raises:
        SplitpointError: If a process does not start, or does not answer.
    """
    ways = choose(manifest)
    ports = ("--grpc-port", "0", "--rest-port", "0")
    with ExitStack() as stack:
        progress = stages.stage("starting cloud and edge")
        cloud = stack.enter_context(
            Service(["cloud", "--bundle", str(bundle), *ports], logs / "cloud.log")
        )
        progress(1, 2)
        options = ("--cloud", f"{_HOST}:{cloud.ready['grpc']}", "--listen", f"{_HOST}:0")
        edge = stack.enter_context(
            Service(
                ["edge", "--bundle", str(bundle), *options, "--link", str(link)],
                logs / "edge.log",
            )
        )
        progress(2, 2)
        truth = reference(images, f"http://{_HOST}:{cloud.ready['rest']}")
        measure(
            ways,
            images,
            f"http://{_HOST}:{edge.ready['rest']}",
            rounds=rounds,
            progress=stages.stage(f"sending pictures over {link}"),
        )
    return Comparison(manifest, link, rounds, ways, truth)
