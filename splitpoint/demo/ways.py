"""The ways to run the network, measured side by side through one edge process.

The best plan of each kind is asked for by name, frame by frame and interleaved, so that whatever
else the machine does hits all alike.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from common.coco import CLASS_NAMES
from common.detections import Agreement, Detections, agreement
from common.errors import SplitpointError
from common.manifest import USUAL_UPLOAD, Manifest, Plan

KINDS = {"cloud-only": "image upload", "edge-only": "edge-only", "split": "split"}


@dataclass
class Way:
    """One way: its plan, and what was measured of it, one entry per request."""

    plan: Plan
    name: str = ""
    responses: dict[Path, dict[str, Any]] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    uplink_bytes: list[int] = field(default_factory=list)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.name or KINDS[self.plan.kind]

    @property
    def latency_ms(self) -> float:
        """Median over all requests."""
        return statistics.median(self.latencies_ms)

    def stage_ms(self, stage: str) -> float:
        """Median of one stage, 0 if the plan does not have it."""
        return statistics.median(self.stages_ms.get(stage, [0.0]))

    def add(self, image: Path, response: dict[str, Any]) -> None:
        """Keep one answer. Opening the JPEG file is left out: a camera has pixels."""
        stages = {k: v for k, v in response["times_ms"].items() if k != "open"}
        self.responses[image] = response
        self.latencies_ms.append(sum(stages.values()))
        self.uplink_bytes.append(response["uplink_bytes"])
        for stage, value in stages.items():
            self.stages_ms.setdefault(stage, []).append(value)


def choose(manifest: Manifest) -> list[Way]:
    """The fastest plan of each kind, in the order of `KINDS`; then JPEG q75, if it is another."""
    fastest: dict[str, Plan] = {}
    for plan in sorted(manifest.plans, key=lambda p: p.predicted.latency_ms):
        fastest.setdefault(plan.kind, plan)
    ways = [Way(fastest[kind]) for kind in KINDS if kind in fastest]
    usual = [plan for plan in manifest.plans if plan.codec == USUAL_UPLOAD]
    return ways + [Way(plan, "JPEG q75") for plan in usual if plan not in fastest.values()]


def measure(
    ways: Sequence[Way],
    images: Sequence[Path],
    edge_url: str,
    *,
    rounds: int,
    progress: Callable[[int, int], None],
) -> None:
    """Send every image by every way, `rounds` times after one round of warm-up."""
    total = (rounds + 1) * len(images) * len(ways)
    done = 0
    with httpx.Client(timeout=60, trust_env=False) as client:
        for round_ in range(rounds + 1):
            for image in images:
                for way in ways:
                    url = f"{edge_url}/v1/detect"
                    response = detect(client, url, image, plan=way.plan.name)
                    if round_ > 0:
                        way.add(image, response)
                    done += 1
                    progress(done, total)


def reference(images: Sequence[Path], cloud_url: str) -> dict[Path, Detections]:
    """What the whole floating-point network finds, by the cloud's own REST endpoint."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        return {
            image: to_detections(detect(client, f"{cloud_url}/v1/detect", image))
            for image in images
        }


def detect(client: httpx.Client, url: str, image: Path, **query: str) -> dict[str, Any]:
    """POST one image.

    Raises:
        SplitpointError: With the server's own message, if it does not answer with detections.
    """
    try:
        response = client.post(url, params=query, content=image.read_bytes())
    except httpx.HTTPError as error:
        raise SplitpointError(f"{url}: no answer: {error}") from error
    body: dict[str, Any] = response.json()
    if response.status_code != httpx.codes.OK:
        raise SplitpointError(f"{url}: {body.get('error', {}).get('message', body)}")
    return body


def to_detections(response: dict[str, Any]) -> Detections:
    """Detections of a REST answer."""
    found = response["detections"]
    boxes = np.array([d["bbox"] for d in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Detections(
        boxes=boxes,
        scores=np.array([d["score"] for d in found], np.float32),
        classes=np.array([CLASS_NAMES.index(d["class_name"]) for d in found], np.int32),
    )


def same_boxes(way: Way, truth: dict[Path, Detections]) -> Agreement:
    """How a way's boxes agree with the reference, over all images."""
    each = (agreement(found, to_detections(way.responses[image])) for image, found in truth.items())
    return sum(each, start=Agreement())
