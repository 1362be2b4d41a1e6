"""Setup of `bench.adaptation`: a cloud, a link of real packets, and slowed edges."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
from PIL import Image

from bench.edge_process import EdgeProcess, EdgeProcessSettings, edge_process
from bench.links.shaped import ShapedLink
from bench.processes import Service
from bench.slow import SlowCpu
from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.progress import Stages

PILOT, WHOLE = "slow-edge", "whole-core"
_CAMERA = (640, 480)

Row = dict[str, Any]


@dataclass
class Scene:
    """Inputs, processes and link shared by all parts."""

    bundle: Path
    plans: dict[bytes, Plan]
    images: list[Path]
    stills: int
    wire: ShapedLink
    cloud: Service
    slow: SlowCpu
    tables: Path
    stages: Stages

    @contextlib.contextmanager
    def edge(self, device: str = PILOT, *, beside: bool = False) -> Iterator[EdgeProcess]:
        """A new edge with a planner; slow, from when it is ready, unless it is the whole core's.

        Args:
            device: Name of the device; one that was not profiled starts from the search's
                predictions.
            beside: Whether the planner is a pilot called `device` of a process that also runs any
                plan on demand; the planner gets no observations from those frames.
        """
        plans = list(self.plans)
        settings = EdgeProcessSettings(
            bundle=self.bundle,
            images=self.images,
            cloud=f"{self.wire.cloud.address}:{self.cloud.ready['grpc']}",
            device=device,
            plans=plans,
            tables=self.tables if device in (PILOT, WHOLE) else None,
            adaptive=not beside,
            pilots={device: plans} if beside else {},
        )
        with edge_process(settings, self.wire.edge.prefix) as process:
            if device != WHOLE:
                self.slow.take(process.pid)
            yield process

    def frame(self, k: int) -> int:
        """Index of the picture that is frame k of the video."""
        return self.stills + k % (len(self.images) - self.stills)

    def name(self, digest: bytes) -> str:
        """Name of a plan."""
        return self.plans[digest].name

    def run_for(
        self, seconds: float, ask: Callable[[int], Row], began_s: float | None = None
    ) -> list[Row]:
        """Rows of frames of the video, one after the other, with the time since `began_s`."""
        began_s = time.monotonic() if began_s is None else began_s
        rows: list[Row] = []
        while (at_s := time.monotonic() - began_s) < seconds:
            rows.append({**ask(self.frame(len(rows))), "at_s": at_s})
        return rows

    def switches(self, edge: str) -> int:
        """Number of plan switches that the cloud counted for an edge."""
        edges = json.loads(self._get("/v1/edges"))["edges"]
        return next(int(each["switches"]) for each in edges if each["edge"] == edge)

    def frames_served(self) -> int:
        """Number of frames that the cloud has served since it started."""
        lines = self._get("/metrics").splitlines()
        served = (line for line in lines if line.startswith("splitpoint_cloud_frames_total{"))
        return sum(round(float(line.split()[-1])) for line in served)

    def _get(self, path: str) -> str:
        """GET from the cloud, from its own namespace."""
        code = (
            "import sys, urllib.request as r; "
            "print(r.build_opener(r.ProxyHandler({})).open(sys.argv[1]).read().decode())"
        )
        url = f"http://{self.wire.cloud.address}:{self.cloud.ready['rest']}{path}"
        command = [*self.wire.cloud.prefix, sys.executable, "-c", code, url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        return done.stdout


def video_frames(path: Path, count: int, folder: Path) -> list[Path]:
    """Every fifth frame of a video as pictures of the size that profiles take, lossless."""
    found: list[Path] = []
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if number % 5 == 0:
                found.append(folder / f"frame-{number:05d}.png")
                pixels = frame.reformat(*_CAMERA, format="rgb24").to_ndarray()
                Image.fromarray(pixels).save(found[-1], compress_level=1)
            if len(found) == count:
                break
    return found


def answered(row: Row) -> Row:
    """The row of a frame that was answered.

    Raises:
        SplitpointError: If it was not.
    """
    if "error" in row:
        raise SplitpointError(f"a frame failed: {row['error']}")
    return row
