"""The ways to run the network over one link, measured side by side through one edge process.

The best plan of each kind is requested by name, and Splitpoint also chooses by itself. The ways are
interleaved frame by frame, so that other load on the machine affects all of them equally.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.latency import costs
from common.link.link import Link
from common.tasks.base import Agreement, Task, TaskResult

KINDS: Final = {"split": "split", "cloud-only": "image upload", "edge-only": "edge-only"}
"""Titles of the kinds of plans."""
BY_ITSELF: Final = "by itself"
"""Title of the way in which the edge chooses the plan itself."""

_WARM_UP = 2


@dataclass
class Way:
    """One way to run the network: its plan and its measurements, one entry per request.

    Attributes:
        title: Title in the tables.
        plan: The plan to request; None leaves the choice to the edge.
        responses: The last response, by picture.
        latencies_ms: From the pixels to the result.
        uplink_bytes: Bytes sent for the frame.
        plans: Number of frames that each plan served, by name.
    """

    title: str
    plan: Plan | None = None
    responses: dict[Path, dict[str, Any]] = field(default_factory=dict)
    latencies_ms: list[float] = field(default_factory=list)
    uplink_bytes: list[int] = field(default_factory=list)
    plans: Counter[str] = field(default_factory=Counter)

    @property
    def latency_ms(self) -> float:
        """Median latency over all requests, in milliseconds."""
        return statistics.median(self.latencies_ms)

    @property
    def kilobytes(self) -> float:
        """Mean uplink size of a frame, in kB."""
        return statistics.mean(self.uplink_bytes) / 1e3

    @property
    def usual(self) -> dict[str, Any]:
        """The plan that served most often: its name and kind."""
        name = self.plans.most_common(1)[0][0]
        return next(r["plan"] for r in self.responses.values() if r["plan"]["name"] == name)

    def add(self, image: Path, response: dict[str, Any]) -> None:
        """Add one response; opening the JPEG file does not count, as a camera delivers pixels."""
        self.responses[image] = response
        self.latencies_ms.append(response["latency_ms"] - response["times_ms"].get("open", 0.0))
        self.uplink_bytes.append(response["uplink_bytes"])
        self.plans[response["plan"]["name"]] += 1


def choose(plans: Mapping[bytes, Plan], link: Link) -> list[Way]:
    """Ways to compare: the plan of each kind predicted fastest on a link, and the edge's choice."""
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
    """Send every image every way, `rounds` times, after a few uncounted ones to warm up."""
    sent = [(image, False) for image in images[:_WARM_UP]]
    sent += [(image, True) for _ in range(rounds) for image in images]
    with httpx.Client(timeout=60, trust_env=False) as client:
        for done, (image, counts) in enumerate(sent, 1):
            for way in ways:
                query = {} if way.plan is None else {"plan": way.plan.name}
                response = infer(client, f"{edge_url}/v1/infer", image, **query)
                if counts:
                    way.add(image, response)
            progress(done, len(sent))


def reference(images: Sequence[Path], cloud_url: str, task: Task) -> dict[Path, TaskResult]:
    """Results of the whole floating-point network by image, from the cloud's REST endpoint."""
    with httpx.Client(timeout=60, trust_env=False) as client:
        return {
            image: task.from_json(infer(client, f"{cloud_url}/v1/infer", image)["result"])
            for image in images
        }


def infer(client: httpx.Client, url: str, image: Path, **query: str) -> dict[str, Any]:
    """POST one image; returns the JSON response.

    Raises:
        SplitpointError: If there is no answer, or the server answers with an error.
    """
    try:
        response = client.post(url, params=query, content=image.read_bytes())
    except httpx.HTTPError as error:
        raise SplitpointError(f"{url}: no answer: {error}") from error
    body: dict[str, Any] = response.json()
    if response.status_code != httpx.codes.OK:
        raise SplitpointError(f"{url}: {body.get('error', {}).get('message', body)}")
    return body


def same_findings(way: Way, truth: Mapping[Path, TaskResult], task: Task) -> Agreement:
    """Agreement of a way's results with the reference, over all images."""
    each = (
        expected.agreement(task.from_json(way.responses[image]["result"]))
        for image, expected in truth.items()
    )
    return sum(each, start=Agreement())
