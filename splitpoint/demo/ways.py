"""The ways to run the network over one link, measured side by side through one edge process.

The best plan of each kind is asked for by name, and Splitpoint is left to choose by itself, frame
by frame and interleaved, so that whatever else the machine does hits all alike.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.latency import costs
from common.link.link import Link
from common.tasks.detections import Agreement, Detections, agreement
from common.tasks.labels import CLASS_NAMES

KINDS: Final = {"split": "split", "cloud-only": "image upload", "edge-only": "edge-only"}
"""Kinds of plans, as a person calls them."""
BY_ITSELF: Final = "by itself"
"""The edge's own choice."""

_WARM_UP = 2


@dataclass
class Way:
    """One way: its plan, and what was measured of it, one entry per request.

    Attributes:
        title: What a person calls it.
        plan: The plan that is asked for; None leaves the choice to the edge.
        responses: By picture, the last answer.
        latencies_ms: From the pixels to the detections.
        uplink_bytes: Sent for the frame.
        plans: How often each plan served, by name.
    """

    title: str
    plan: Plan | None = None
    responses: dict[Path, dict[str, Any]] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    uplink_bytes: list[int] = field(default_factory=list)
    plans: Counter[str] = field(default_factory=Counter)

    @property
    def latency_ms(self) -> float:
        """Median over all requests."""
        return statistics.median(self.latencies_ms)

    @property
    def kilobytes(self) -> float:
        """Mean of what was sent for a frame."""
        return statistics.mean(self.uplink_bytes) / 1e3

    @property
    def usual(self) -> dict[str, Any]:
        """The plan that served most often: its name and kind."""
        name = self.plans.most_common(1)[0][0]
        return next(r["plan"] for r in self.responses.values() if r["plan"]["name"] == name)

    def add(self, image: Path, response: dict[str, Any]) -> None:
        """Keep one answer. Opening the JPEG file is left out: a camera has pixels."""
        self.responses[image] = response
        self.latencies_ms.append(response["latency_ms"] - response["times_ms"].get("open", 0.0))
        self.uplink_bytes.append(response["uplink_bytes"])
        self.plans[response["plan"]["name"]] += 1


def choose(plans: Mapping[bytes, Plan], link: Link) -> list[Way]:
    """The plan of each kind that should be fastest over a link; then the edge's own choice."""
    fastest: dict[str, Plan] = {}
    for cost in sorted(costs(plans), key=lambda cost: cost.latency_ms(link)):
        fastest.setdefault(cost.plan.kind, cost.plan)
    ways = [Way(title, fastest[kind]) for kind, title in KINDS.items() if kind in fastest]
    return [*ways, Way(BY_ITSELF)]


def measure(
    ways: Sequence[Way],
    images: Sequence[Path],
    edge_url: str,
    *,
    rounds: int,
    progress: Callable[[int, int], None],
) -> None:
    """Send every image by every way, `rounds` times after a few that warm up and do not count."""
    sent = [(image, False) for image in images[:_WARM_UP]]
    sent += [(image, True) for _ in range(rounds) for image in images]
    with httpx.Client(timeout=60, trust_env=False) as client:
        for done, (image, counts) in enumerate(sent, 1):
            for way in ways:
                query = {} if way.plan is None else {"plan": way.plan.name}
                response = detect(client, f"{edge_url}/v1/detect", image, **query)
                if counts:
                    way.add(image, response)
            progress(done, len(sent))


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


def same_boxes(way: Way, truth: Mapping[Path, Detections]) -> Agreement:
    """How a way's boxes agree with the reference, over all images."""
    each = (agreement(found, to_detections(way.responses[image])) for image, found in truth.items())
    return sum(each, start=Agreement())
