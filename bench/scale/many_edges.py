"""Scaling of one cloud with the number of edges: throughput, latency and CPU time.

A real `splitpoint cloud`, and N streams to it, each with one frame in flight over a gRPC channel of
its own. The streams are threads of this process, which does nothing else meanwhile; their frames
were cut before. They take CPU time from the cloud on the same machine, so it is reported
(`load_cpu_ms`), and so is that of other processes (`others_cores`), which should be none. Two plans
take turns: the cheapest split plan with the context coder and the JPEG upload. A turn counts once
every stream has had an answer, when the queue is at its steady length.
"""

import argparse
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.cpu import cpu_ms
from bench.machine import machine
from bench.plan_choice import cheapest_split, upload
from bench.processes import Service
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.images import list_images, read_image
from common.progress import Stages
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds
from common.version import __version__
from edge.head import open_plans
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport

STREAMS = (1, 2, 4, 8, 16, 32, 64)
_PICTURES = 16
_TURNS = 2
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Answered:
    """One frame: the time its answer was read, by `time.perf_counter`, and its latency."""

    at_s: float
    latency_ms: float


@dataclass(frozen=True)
class Turn:
    """One plan's turn.

    Attributes:
        seconds: Duration that counts.
        answered: Frames that were answered in that time.
        errors: One line for each frame that was not answered, of the whole turn.
        cloud_cpu_ms: CPU time of the cloud.
        load_cpu_ms: CPU time of this process.
        all_cpu_ms: CPU time of the whole machine, and the time stolen by its host.
    """

    seconds: float
    answered: list[Answered]
    errors: list[str]
    cloud_cpu_ms: float
    load_cpu_ms: float
    all_cpu_ms: float

    @property
    def others_ms(self) -> float:
        """CPU time of all other processes, which should be none."""
        return max(0.0, self.all_cpu_ms - self.cloud_cpu_ms - self.load_cpu_ms)


@dataclass
class Load:
    """State shared by the streams of one turn; appending to a list is atomic."""

    had_one: list[threading.Event]
    ended: threading.Event = field(default_factory=threading.Event)
    answered: list[Answered] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Stream:
    """One edge that has nothing to do but send and wait.

    Args:
        client: Client of the cloud.
        number: Number of the stream, from zero; each begins with another picture.
    """

    def __init__(self, client: CloudClient, number: int) -> None:
        self._client = client
        self._number = number

    def run(self, frames: Sequence[pb.Frame], load: Load) -> None:
        """Send one frame after the other until the load ends."""
        first = self._number % len(frames)
        try:
            for frame in islice(cycle(frames), first, None):
                self._send(frame, load)
                load.had_one[self._number].set()
                if load.ended.is_set():
                    return
        finally:
            load.had_one[self._number].set()  # a stream that broke must not be waited for

    def _send(self, frame: pb.Frame, load: Load) -> None:
        """Send a frame like an edge does: the next frame reports the times of this one."""
        message = pb.Frame()
        message.CopyFrom(frame)  # a message belongs to its stream
        sent_s = time.perf_counter()
        try:
            answer = self._client.request(message)
        except SplitpointError as error:
            load.errors.append(str(error))
            time.sleep(_PAUSE_S)
            return
        at_s = time.perf_counter()
        load.answered.append(Answered(at_s, (at_s - sent_s) * 1e3))
        took_us = microseconds(answer.round_trip_ms)
        uplink_us = microseconds(answer.passage.uplink_ms)
        answer.measured(pb.EdgeTimes(round_trip_us=took_us, uplink_us=uplink_us, total_us=took_us))


def measure_edges(arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Measure throughput and latency by number of streams and plan."""
    with Bundle.open(arguments.bundle) as bundle, ExitStack() as stack:
        chosen = choose(bundle)
        frames = {way: _frames(bundle, d, arguments.images) for way, d in chosen.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = ["cloud", "--bundle", str(bundle.root), "--grpc-port", "0", "--rest-port", "0"]
        cloud = stack.enter_context(Service(command, folder / "cloud.log"))
        address, pid = f"127.0.0.1:{cloud.ready['grpc']}", cloud.ready["pid"]
        streams: list[Stream] = []
        rows = []
        progress = stages.stage("loading the cloud")
        for done, count in enumerate(sorted(arguments.streams), 1):
            while len(streams) < count:
                client = _connect(address, bundle.digest, len(streams))
                stack.callback(client.close)
                streams.append(Stream(client, len(streams)))
            turns: dict[str, list[Turn]] = {way: [] for way in chosen}
            for way in [*chosen] * _TURNS:
                seconds = arguments.seconds / _TURNS
                turns[way].append(_turn(streams, frames[way], seconds, pid))
            for way, taken in turns.items():
                row = {"streams": count, "way": way, **summary(taken)}
                rows.append(row | {"cloud_resident_mib": _resident_mib(pid)})
            progress(done, len(arguments.streams))
        return {
            "machine": machine(),
            "software_version": __version__,
            "bundle": bundle.digest.hex(),
            "seconds": arguments.seconds,
            "plans": {way: bundle.plan(digest).name for way, digest in chosen.items()},
            "frame_bytes": {
                way: round(statistics.mean(frame.ByteSize() for frame in sent))
                for way, sent in frames.items()
            },
            "rows": rows,
        }


def choose(bundle: Bundle) -> dict[str, bytes]:
    """The cheapest split plan with the context coder, and the JPEG upload.

    Raises:
        SplitpointError: If the bundle lacks one of them.
    """
    split, jpeg = cheapest_split(bundle.plans, ["context"]), upload(bundle.plans, "jpeg")
    if split is None or jpeg is None:
        raise SplitpointError(
            "expected a bundle with a JPEG upload and a split plan with the context coder"
        )
    return {"split": split, "JPEG": jpeg}


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """Summary of the turns of one plan; without any answer, only the number of failed frames."""
    errors = [error for turn in turns for error in turn.errors]
    told = {"failed": len(errors), "errors": list(dict.fromkeys(errors))[:3]}
    latencies_ms = [each.latency_ms for turn in turns for each in turn.answered]
    count, seconds = len(latencies_ms), sum(turn.seconds for turn in turns)
    if not count:
        return {"frames": 0, **told}
    p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99))
    return {
        "frames": count,
        **told,
        "frames_per_s": round(count / seconds, 2),
        "p50_ms": round(float(p50_ms), 2),
        "p99_ms": round(float(p99_ms), 2),
        "cloud_cpu_ms": round(sum(turn.cloud_cpu_ms for turn in turns) / count, 2),
        "load_cpu_ms": round(sum(turn.load_cpu_ms for turn in turns) / count, 2),
        "others_cores": round(sum(turn.others_ms for turn in turns) / seconds / 1e3, 3),
    }


def _connect(address: str, bundle_digest: bytes, number: int) -> CloudClient:
    hello = pb.Hello(edge_id=f"load-{number}", bundle_digest=bundle_digest, device="load")
    client = CloudClient(lambda: GrpcTransport(address), hello)
    client.connect()
    return client


def _frames(bundle: Bundle, digest: bytes, images: Path) -> list[pb.Frame]:
    """Frames as an edge would send them, of pictures spread over the folder."""
    opened = open_plans(bundle, [digest])[digest]
    geometry = bundle.manifest.task.image
    paths = list_images(images)
    frames = []
    for path in paths[:: max(1, len(paths) // _PICTURES)][:_PICTURES]:
        picture = read_image(path)
        cut = opened.cut(geometry.pixels(picture))
        frames.append(
            pb.Frame(
                plan_digest=digest,
                image_width=picture.shape[1],
                image_height=picture.shape[0],
                payloads=cut.payloads,
            )
        )
    return frames


def _turn(streams: Sequence[Stream], frames: Sequence[pb.Frame], seconds: float, pid: int) -> Turn:
    load = Load([threading.Event() for _ in streams])
    threads = [threading.Thread(target=each.run, args=(frames, load)) for each in streams]
    for thread in threads:
        thread.start()
    for event in load.had_one:
        event.wait()
    began_s, before_ms = time.perf_counter(), _clocks_ms(pid)
    time.sleep(seconds)
    ended_s, after_ms = time.perf_counter(), _clocks_ms(pid)
    load.ended.set()
    for thread in threads:
        thread.join()
    cloud, own, whole = (after - before for before, after in zip(before_ms, after_ms, strict=True))
    return Turn(
        seconds=ended_s - began_s,
        answered=[each for each in load.answered if began_s <= each.at_s < ended_s],
        errors=load.errors,
        cloud_cpu_ms=cloud,
        load_cpu_ms=own,
        all_cpu_ms=whole,
    )


def _clocks_ms(pid: int) -> tuple[float, float, float]:
    """CPU time so far, in ms: of a process, of this one, and of the whole machine."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, stolen = ticks
    busy_s = (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")
    return cpu_ms(pid), time.process_time() * 1e3, busy_s * 1e3


def _resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 2**20, 1)


def print_edges(found: Mapping[str, Any], console: Console) -> None:
    """Print the rows as a table."""
    table = Table("edges", "way", title="One cloud, many edges", title_justify="left")
    columns = {
        "frames_per_s": "frames/s",
        "p50_ms": "p50 ms",
        "p99_ms": "p99 ms",
        "cloud_cpu_ms": "cloud",
        "load_cpu_ms": "load",
        "others_cores": "others",
        "cloud_resident_mib": "MiB",
    }
    for column in columns.values():
        table.add_column(column, justify="right")
    for row in found["rows"]:
        cells = [f"{row[key]:.1f}" if key in row else "" for key in columns]
        table.add_row(f"{row['streams']}", row["way"], *cells)
    console.print(table)
    console.print("cloud, load: CPU ms for a frame; others: cores; MiB: resident in the cloud")
    failed = sum(row["failed"] for row in found["rows"])
    console.print(f"failed: {failed:,} frames", highlight=False)
    for way, plan in found["plans"].items():
        console.print(f"{way}: {plan}, {found['frame_bytes'][way]:,} bytes", highlight=False)
