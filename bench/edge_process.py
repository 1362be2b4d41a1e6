"""An edge in its own process for measurements: the product's detector, driven call by call.

    EdgeProcess.detect -> pipe -> [process, perhaps slowed and behind a shaped link]
                       <- pipe <- Detector.detect -> gRPC -> cloud

Pictures are decoded before anything is timed, as a camera would hand them over, and the driver
takes next to nothing of the process's share of a core.
"""

import contextlib
import hashlib
import http.client
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.micro.plain_service import WholeNetwork
from bench.processes import end
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.images import read_image
from common.latency import PlanCost, costs
from common.link.link import Link
from common.tables.store_file import read_tables
from common.tasks.detections import Detections
from edge.app import EdgeSettings, open_edge
from edge.detector import Detector, Outcome
from edge.link.estimate import Estimate

_PLAIN_TIMEOUT_S = 10.0
"""Timeout of the plain service, equal to that of a stream."""


@dataclass(frozen=True)
class EdgeProcessSettings:
    """Settings of an edge process.

    Attributes:
        bundle: The bundle.
        images: Pictures, named by their place in this list.
        cloud: HOST:PORT of the cloud.
        device: Name of the device in `tables`.
        plans: Digests of the plans to open.
        tables: Latency tables that planners start from; the search's predictions, if None.
        link: Emulated in the process; the real one, if None.
        adaptive: Whether a planner chooses and learns.
        pilots: Additional planners by name, each with a stream of its own and digests of plans to
            choose from, so that decisions are compared in one process.
        plain: HOST:PORT of a `bench.micro.plain_service`.
    """

    bundle: Path
    images: Sequence[Path]
    cloud: str
    device: str
    plans: Sequence[bytes]
    tables: Path | None = None
    link: Link | None = None
    adaptive: bool = True
    pilots: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    plain: str | None = None


@dataclass(frozen=True)
class EdgeProcess:
    """A running edge process; calls are one after the other."""

    pid: int
    _connection: "Connection[Any, Any]"

    def detect(
        self, image: int, plan: bytes | None = None, pilot: str | None = None
    ) -> dict[str, Any]:
        """Detect objects in one picture; a frame that fails says so under "error"."""
        return self._call("detect", image, plan, pilot)

    def in_float(self, image: int) -> dict[str, Any]:
        """Run the whole network here in floating point."""
        return self._call("in_float", image)

    def plain(self, image: int) -> dict[str, Any]:
        """Upload a JPEG to the plain service."""
        return self._call("plain", image)

    def load(self, threads: int, seconds: float) -> dict[str, Any]:
        """Have several threads detect for a while; counts answers, failures and wrong detections.

        "sent" counts all frames that the cloud answered, among them the first of each plan, whose
        detections the others are compared with; "rested" those that the edge answered because
        the cloud took too long, which may have served them, too.
        """
        return self._call("load", threads, seconds)

    def _call(self, *call: Any) -> dict[str, Any]:
        try:
            self._connection.send(call)
            answer: dict[str, Any] = self._connection.recv()
        except (EOFError, OSError) as error:
            raise SplitpointError("the edge process ended; its last lines say why") from error
        return answer


@contextlib.contextmanager
def edge_process(
    settings: EdgeProcessSettings, prefix: Sequence[str] = ()
) -> Iterator[EdgeProcess]:
    """Start an edge process, ready to serve, for the length of the block.

    Args:
        settings: Settings of the process.
        prefix: Prefix of its command line.

    Raises:
        SplitpointError: If it does not start.
    """
    ours, theirs = Pipe()
    command = [*prefix, sys.executable, "-m", "bench.edge_process", str(theirs.fileno())]
    process = subprocess.Popen(  # noqa: S603 - our own
        command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]
    )
    theirs.close()
    try:
        edge = EdgeProcess(process.pid, ours)
        edge._call(settings)
        yield edge
    finally:
        ours.close()  # which ends it
        end(process)


class _Edge:
    """Edge side of the pipe, in the process itself."""

    def __init__(self, settings: EdgeProcessSettings) -> None:
        self._settings = settings
        self._bundle = bundle = Bundle.open(settings.bundle)
        rows = [] if settings.tables is None else read_tables(settings.tables)
        known = costs(bundle.plans, rows, settings.device)
        self._costs: dict[bytes, PlanCost] = {cost.digest: cost for cost in known}
        self._images = [read_image(path) for path in settings.images]
        self._detectors: dict[str | None, Detector] = {}
        self._detectors[None] = self._opened(settings.device, settings.plans, settings.adaptive)
        self._detectors |= {n: self._opened(n, each, True) for n, each in settings.pilots.items()}
        self._whole: WholeNetwork | None = None
        self._connection: http.client.HTTPConnection | None = None

    def _opened(self, name: str, plans: Sequence[bytes], adaptive: bool) -> Detector:
        """A detector of the product with a stream of its own, ready to serve."""
        made, fixed = self._settings, f"{name}, fixed"
        settings = EdgeSettings(
            cloud=made.cloud,
            link=made.link,
            plan=None if adaptive else plans[0].hex(),
            edge_id=name if adaptive else fixed,
            device=made.device if adaptive else fixed,
            tables=made.tables if adaptive else None,
        )
        detector = open_edge(self._bundle, settings, every_plan=True, plans=plans)
        detector.check_ready()
        return detector

    def close(self) -> None:
        for detector in self._detectors.values():
            detector.close()

    def detect(self, image: int, plan: bytes | None, pilot: str | None) -> dict[str, Any]:
        detector = self._detectors[pilot]
        began_s, link = time.monotonic(), detector.link
        try:
            outcome = detector.detect(self._images[image], plan)
        except SplitpointError as error:
            return {"error": f"{type(error).__name__}: {error}", "began_s": began_s}
        expected = {}
        if (known := outcome.expected) is not None:
            expected["expected_ms"] = known.latency_ms
            expected |= {"low_ms": known.low_ms, "high_ms": known.high_ms}
        return {
            "began_s": began_s,
            "plan": outcome.digest,
            "latency_ms": outcome.latency_ms,
            "times_ms": outcome.times_ms,
            "uplink_bytes": outcome.uplink_bytes,
            "profile_ms": _profile_ms(self._costs[outcome.digest], link),
            "uplink_bps": None if link is None else link.uplink_bps,
            **expected,
        }

    def in_float(self, image: int) -> dict[str, Any]:
        if self._whole is None:
            self._whole = WholeNetwork(self._bundle)
        detect, picture = self._whole.infer, self._images[image]
        return _timed(lambda: detect(picture)) | {"uplink_bytes": 0}

    def plain(self, image: int) -> dict[str, Any]:
        """Detect like a user's script: scale down, JPEG q75, POST over a persistent connection."""
        geometry, body = self._bundle.manifest.task.image, io.BytesIO()
        picture = Image.fromarray(self._images[image])
        connection = self._connection or http.client.HTTPConnection(
            self._settings.plain or "", timeout=_PLAIN_TIMEOUT_S
        )
        self._connection = connection

        def detect() -> None:
            small = picture.copy()
            small.thumbnail((geometry.width, geometry.height))
            small.save(body, "JPEG", quality=75)
            connection.request("POST", "/detect", body.getvalue())
            json.loads(connection.getresponse().read())

        try:
            return _timed(detect) | {"uplink_bytes": len(body.getvalue())}
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()  # the next one opens it anew
            return {"error": f"{type(error).__name__}: {error}"}

    def load(self, threads: int, seconds: float) -> dict[str, Any]:
        detector, picture = self._detectors[None], self._images[0]
        plans = self._settings.plans
        truth = {plan: _digest(detector.detect(picture, plan).detections) for plan in plans}
        outcomes = _load(detector, picture, threads, seconds)
        good = [each for each in outcomes if isinstance(each, Outcome)]
        served = [each.digest for each in good]
        return {
            "asked": len(outcomes),
            "failed": len(outcomes) - len(good),
            "wrong": sum(_digest(o.detections) != truth[o.digest] for o in good),
            "rested": sum(o.expected is None for o in good),
            "sent": sum(self._costs[digest].needs_cloud for digest in [*served, *truth]),
        }


def _profile_ms(cost: PlanCost, link: Estimate | None) -> float:
    """Latency of a plan by its profile alone, over the link as it is estimated."""
    if not cost.needs_cloud or link is None or link.rtt_ms is None or link.uplink_bps is None:
        return cost.edge_ms
    sent_ms = max(0.0, cost.uplink_bytes - link.burst_bytes) * 8e3 / link.uplink_bps
    return cost.edge_ms + cost.cloud_ms + link.rtt_ms + sent_ms


def _timed(call: Callable[[], object]) -> dict[str, Any]:
    started_s = time.perf_counter()
    call()
    return {"latency_ms": (time.perf_counter() - started_s) * 1e3}


def _load(
    detector: Detector, picture: NDArray[np.uint8], threads: int, seconds: float
) -> list[Outcome | str]:
    """Outcomes and errors of frames that several threads send for a while."""
    until_s = time.monotonic() + seconds
    outcomes: list[Outcome | str] = []

    def work() -> None:
        while time.monotonic() < until_s:
            try:
                outcomes.append(detector.detect(picture))
            except SplitpointError as error:
                outcomes.append(str(error))

    with ThreadPoolExecutor(threads) as pool:
        for running in [pool.submit(work) for _ in range(threads)]:
            running.result()  # which raises what broke it
    return outcomes


def _digest(detections: Detections) -> str:
    parts = (detections.boxes, detections.scores, detections.classes)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def _serve(connection: "Connection[Any, Any]") -> None:
    """Open the edge of the settings that come first, then answer calls until the pipe ends."""
    (settings,) = connection.recv()
    edge = _Edge(settings)
    connection.send({})
    try:
        while True:
            name, *arguments = connection.recv()
            connection.send(getattr(edge, name)(*arguments))
    except EOFError:
        edge.close()


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
