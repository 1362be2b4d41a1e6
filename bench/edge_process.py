"""An edge in its own process for measurements: the product's detector, driven line by line.

    EdgeProcess.detect -> JSON line -> [process, perhaps slowed and behind a shaped link]
                       <- JSON line <- Detector.detect -> gRPC -> cloud

Pictures are decoded before anything is timed, as a camera would hand them over, and the driver
takes next to nothing of the process's share of a core.
"""

import argparse
import hashlib
import http.client
import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import numpy as np
from PIL import Image

from common.bundle.bundle import Bundle
from common.codec.spec import LOSSLESS_UPLOADS
from common.errors import SplitpointError
from common.imaging.images import read_image
from common.latency import PlanCost, costs
from common.link.link import Link, parse_link
from common.rpc.splitpoint_pb2 import Hello
from common.runtime.base import Session
from common.runtime.registry import open_model, runtime_name
from common.tables.store_file import read_tables
from common.tasks.detections import Detections
from edge.detector import Detector, Outcome
from edge.stream.client import CloudClient
from edge.stream.shaping import ShapedTransport
from edge.stream.transport import GrpcTransport, Transport

_STOP_S = 10.0
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
        tables: Latency tables that the planner starts from; the search's predictions, if None.
        link: Emulated in the process; the real one, if None.
        adaptive: Whether a planner chooses and learns.
        plans: Digests of the plans to open; all, if empty.
        pilots: Additional planners by name, each with a stream of its own and digests of plans to
            choose from, so that decisions are compared in one process.
        plain: HOST:PORT of a `bench.micro.plain_service`.
    """

    bundle: Path
    images: Sequence[Path]
    cloud: str
    device: str
    tables: Path | None = None
    link: Link | None = None
    adaptive: bool = True
    plans: Sequence[bytes] = ()
    pilots: Mapping[str, Sequence[bytes]] = field(default_factory=dict)
    plain: str | None = None


class EdgeProcess:
    """A running edge process, for the length of a `with` block; calls are one after the other.

    Args:
        settings: Settings of the process.
        prefix: Prefix of its command line.
    """

    def __init__(self, settings: EdgeProcessSettings, prefix: Sequence[str] = ()) -> None:
        self._settings = settings
        self._prefix = list(prefix)
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        made = self._settings
        command = [*self._prefix, sys.executable, "-m", "bench.edge_process"]
        command += ["--bundle", str(made.bundle), "--cloud", made.cloud, "--device", made.device]
        command += [] if made.tables is None else ["--tables", str(made.tables)]
        command += [] if made.link is None else ["--link", _text(made.link)]
        command += ["--adaptive"] if made.adaptive else []
        command += [] if made.plain is None else ["--plain", made.plain]
        command += [word for plan in made.plans for word in ("--plan", plan.hex())]
        for name, plans in made.pilots.items():
            command += ["--pilot", name, *(plan.hex() for plan in plans)]
        command += ["--images", *map(str, made.images)]
        self._process = subprocess.Popen(  # noqa: S603 - our own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        try:
            self._answer()
        except SplitpointError:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Close the input of the process, which ends it; kill it after a timeout."""
        process = self._started
        try:
            process.communicate(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()

    def detect(
        self,
        image: int,
        plan: bytes | None = None,
        deadline_ms: float | None = None,
        pilot: str | None = None,
    ) -> dict[str, Any]:
        """Detect objects in one picture; a frame that fails says so under "error"."""
        name = None if plan is None else plan.hex()
        asked = {"image": image, "plan": name, "deadline": deadline_ms, "pilot": pilot}
        return self._ask({"op": "detect", **asked})

    def in_float(self, image: int) -> dict[str, Any]:
        """Run the whole network here in floating point."""
        return self._ask({"op": "in_float", "image": image})

    def plain(self, image: int) -> dict[str, Any]:
        """Upload a JPEG to the plain service."""
        return self._ask({"op": "plain", "image": image})

    @property
    def pid(self) -> int:
        """Process id."""
        return self._started.pid

    def load(self, threads: int, seconds: float) -> dict[str, Any]:
        """Have several threads detect for a while; counts answers, failures and wrong detections.

        "sent" counts all frames that the cloud answered, among them the first of each plan, whose
        detections the others are compared with; "rested" those that the edge answered because
        the cloud took too long, which may have served them, too.
        """
        return self._ask({"op": "load", "threads": threads, "seconds": seconds})

    def state(self, pilot: str | None = None) -> dict[str, Any]:
        """State of a planner: its plan, estimates and counters."""
        return self._ask({"op": "state", "pilot": pilot})

    @property
    def _started(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise RuntimeError("the process was not started")
        return self._process

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        stdin = self._started.stdin
        if stdin is None:
            raise RuntimeError("the process was not started")
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._started.stdout.readline() if self._started.stdout else ""
        if not line:
            raise SplitpointError("the edge process ended; its last lines say why")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _text(link: Link) -> str:
    return f"{link.uplink_bps:.0f}bit/{link.rtt_ms:g}ms"


class _Edge:
    """Edge side of the protocol, in the process itself."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        bundle = Bundle.open(arguments.bundle)
        rows = [] if arguments.tables is None else read_tables(arguments.tables)
        known = costs(bundle.plans, rows, arguments.device)
        self._costs: dict[bytes, PlanCost] = {cost.digest: cost for cost in known}
        self._images = [read_image(path) for path in arguments.images]
        link = None if arguments.link is None else parse_link(arguments.link)

        def connect() -> Transport:
            transport = GrpcTransport(arguments.cloud)
            return transport if link is None else ShapedTransport(transport, link)

        def detector(name: str, plans: Sequence[bytes], *, adaptive: bool) -> Detector:
            hello = Hello(
                edge_id=name,
                bundle_digest=bundle.digest,
                device=arguments.device if adaptive else name,
                runtime=runtime_name(1),
                threads=1,
            )
            client = CloudClient(connect, hello)
            made = Detector(bundle, client, plans=plans, costs=known, adaptive=adaptive)
            made.check_ready()
            self._clients[made] = client
            return made

        self._clients: dict[Detector, CloudClient] = {}
        self._opened = [bytes.fromhex(digest) for digest in arguments.plan] or list(bundle.plans)
        own = arguments.device if arguments.adaptive else f"{arguments.device}, fixed"
        self._detector = detector(own, self._opened, adaptive=arguments.adaptive)
        self._pilots = {
            name: detector(name, list(map(bytes.fromhex, plans)), adaptive=True)
            for name, *plans in arguments.pilot
        }
        self._bundle = bundle
        self._whole: Session | None = None
        self._plain_address = arguments.plain
        self._connection: http.client.HTTPConnection | None = None

    def serve(self, questions: TextIO) -> None:
        self._tell({"ready": True})
        for line in questions:
            question = json.loads(line)
            answer = getattr(self, f"_{question.pop('op')}")(**question)
            self._tell(answer)
        for detector in self._clients:
            detector.close()

    def _detect(
        self, image: int, plan: str | None, deadline: float | None, pilot: str | None
    ) -> dict[str, Any]:
        digest = None if plan is None else bytes.fromhex(plan)
        detector = self._detector if pilot is None else self._pilots[pilot]
        began_s, cpu_s = time.monotonic(), time.process_time()
        link = self._clients[detector].link.estimate(time.perf_counter())
        try:
            outcome = detector.detect(self._images[image], digest, deadline_ms=deadline)
        except SplitpointError as error:
            return {"error": f"{type(error).__name__}: {error}", "began_s": began_s}
        expected, cost = outcome.expected, self._costs[outcome.digest]
        alone_ms = cost.edge_ms
        if cost.needs_cloud and link.rtt_ms is not None and link.uplink_bps is not None:
            sent_ms = max(0.0, cost.uplink_bytes - link.burst_bytes) * 8e3 / link.uplink_bps
            alone_ms += cost.cloud_ms + link.rtt_ms + sent_ms
        return {
            "began_s": began_s,
            "cpu_ms": (time.process_time() - cpu_s) * 1e3,
            "plan": outcome.digest.hex(),
            "latency_ms": outcome.latency_ms,
            "times_ms": outcome.times_ms,
            "uplink_bytes": outcome.uplink_bytes,
            "expected_ms": None if expected is None else expected.latency_ms,
            "low_ms": None if expected is None else expected.low_ms,
            "high_ms": None if expected is None else expected.high_ms,
            "profile_ms": alone_ms,
            "uplink_bps": link.uplink_bps,
            "rtt_ms": link.rtt_ms,
            "reason": outcome.reason,
        }

    def _in_float(self, image: int) -> dict[str, Any]:
        task = self._bundle.manifest.task
        plan = next(p for p in self._bundle.plans.values() if p.codec in LOSSLESS_UPLOADS)
        if self._whole is None and plan.tail is not None:
            self._whole = open_model(self._bundle.file(plan.tail.file))
        if self._whole is None:
            return {"error": "no plan has the whole network"}
        picture, wire = self._images[image], plan.wire[0]
        started_s, cpu_s = time.perf_counter(), time.process_time()
        pixels = task.image.pixels(picture)[None].astype(np.float32) * np.float32(wire.to_value[1])
        maps = [output[0] for output in self._whole.run({wire.name: pixels})]
        task.decode(maps, task.image.place(picture.shape[1], picture.shape[0]))
        return {
            "latency_ms": (time.perf_counter() - started_s) * 1e3,
            "cpu_ms": (time.process_time() - cpu_s) * 1e3,
            "uplink_bytes": 0,
        }

    def _plain(self, image: int) -> dict[str, Any]:
        """Detect like a user's script: scale down, JPEG q75, POST over a persistent connection."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self._plain_address, timeout=_PLAIN_TIMEOUT_S
            )
        geometry = self._bundle.manifest.task.image
        picture = Image.fromarray(self._images[image])
        started_s, cpu_s = time.perf_counter(), time.process_time()
        small = picture.copy()
        small.thumbnail((geometry.width, geometry.height))
        body = io.BytesIO()
        small.save(body, "JPEG", quality=75)
        try:
            self._connection.request("POST", "/detect", body.getvalue())
            json.loads(self._connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()  # the next one opens it anew
            return {"error": f"{type(error).__name__}: {error}"}
        return {
            "latency_ms": (time.perf_counter() - started_s) * 1e3,
            "cpu_ms": (time.process_time() - cpu_s) * 1e3,
            "uplink_bytes": len(body.getvalue()),
        }

    def _state(self, pilot: str | None) -> dict[str, Any]:
        chosen = (self._detector if pilot is None else self._pilots[pilot]).controller
        if chosen is None:
            return {}
        state = chosen.state()
        return {
            "current": state.current.hex(),
            "reason": state.reason,
            "uplink_bps": state.link.uplink_bps,
            "rtt_ms": state.link.rtt_ms,
            "burst_bytes": state.link.burst_bytes,
            "changes": state.link.changes,
            "drifts": state.drifts,
            "coverage": state.coverage,
        }

    def _load(self, threads: int, seconds: float) -> dict[str, Any]:
        picture = self._images[0]
        truth = {d: _digest(self._detector.detect(picture, d).detections) for d in self._opened}
        until_s = time.monotonic() + seconds
        outcomes: list[Outcome | str] = []

        def work() -> None:
            while time.monotonic() < until_s:
                try:
                    outcomes.append(self._detector.detect(picture))
                except SplitpointError as error:
                    outcomes.append(str(error))

        workers = [threading.Thread(target=work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        good = [each for each in outcomes if isinstance(each, Outcome)]
        plans = [each.digest for each in good]
        return {
            "asked": len(outcomes),
            "failed": len(outcomes) - len(good),
            "wrong": sum(_digest(o.detections) != truth[o.digest] for o in good),
            "rested": sum(o.expected is None for o in good),
            "sent": sum(self._costs[digest].needs_cloud for digest in [*plans, *truth]),
            "by_plan": {digest.hex(): plans.count(digest) for digest in set(plans)},
        }

    def _tell(self, answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _digest(detections: Detections) -> str:
    parts = (detections.boxes, detections.scores, detections.classes)
    return hashlib.sha256(b"".join(np.ascontiguousarray(p).tobytes() for p in parts)).hexdigest()


def main() -> None:
    """Run the edge process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--cloud", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--link")
    parser.add_argument("--adaptive", action="store_true")
    parser.add_argument("--plan", action="append", default=[], help="digest of a plan to open")
    parser.add_argument("--plain")
    parser.add_argument("--pilot", action="append", nargs="+", default=[], help="NAME PLAN ...")
    parser.add_argument("--images", type=Path, nargs="+")
    _Edge(parser.parse_args()).serve(sys.stdin)


if __name__ == "__main__":
    main()
