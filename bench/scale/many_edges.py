"""Scaling of one cloud with the number of edges: throughput, latency and CPU time.

    python -m bench.scale.many_edges --bundle DIR --images DIR [--seconds 4] [--streams 1,2,4,8]

A real `splitpoint cloud`, and N streams to it, each with one frame in flight over a gRPC channel of
its own. The streams are threads of this process, which does nothing else meanwhile; their frames
were cut before. They take CPU time from the cloud on the same machine. Two plans take turns: the
cheapest split plan with the context coder and the JPEG upload. A turn counts once every stream has
had an answer, when the queue is at its steady length.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from bench.harness import (
    Bench,
    Lines,
    Result,
    add_bundle_options,
    listed,
    record,
    spread,
    table,
)
from bench.plan_choice import cheapest_split, upload
from bench.processes import Service, cpu_ms, memory_mib
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.images import list_images, read_image
from common.progress import Stages
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds
from edge.head import open_plans
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport

STREAMS = (1, 2, 4, 8, 16, 32, 64)
_PICTURES = 16
_TURNS = 2
_PAUSE_S = 0.05


@dataclass(frozen=True)
class Turn:
    """One plan's turn.

    Attributes:
        seconds: Duration that counts.
        latencies_ms: Latencies of the frames that were answered in that time.
        errors: One line for each frame that was not answered, of the whole turn.
        cloud_cpu_ms: CPU time of the cloud.
    """

    seconds: float
    latencies_ms: list[float]
    errors: list[str]
    cloud_cpu_ms: float


@dataclass
class Load:
    """State shared by the streams of one turn; appending to a list is atomic.

    Attributes:
        had_one: Whether each stream has had an answer.
        ended: Set when streams shall end.
        answered: Of each frame the time its answer was read, by `time.perf_counter`, and its
            latency in ms.
        errors: One line for each frame that was not answered.
    """

    had_one: list[threading.Event]
    ended: threading.Event = field(default_factory=threading.Event)
    answered: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def stream(client: CloudClient, number: int, frames: Sequence[pb.Frame], load: Load) -> None:
    """Send one frame after the other until the load ends; each stream begins with another one."""
    try:
        for frame in islice(cycle(frames), number % len(frames), None):
            _send(client, frame, load)
            load.had_one[number].set()
            if load.ended.is_set():
                return
    finally:
        load.had_one[number].set()  # a stream that broke must not be waited for


def _send(client: CloudClient, frame: pb.Frame, load: Load) -> None:
    """Send a frame like an edge does: the next frame reports the times of this one."""
    message = pb.Frame()
    message.CopyFrom(frame)  # a message belongs to its stream
    sent_s = time.perf_counter()
    try:
        answer = client.request(message)
    except SplitpointError as error:
        load.errors.append(str(error))
        time.sleep(_PAUSE_S)
        return
    at_s = time.perf_counter()
    load.answered.append((at_s, (at_s - sent_s) * 1e3))
    took_us = microseconds(answer.round_trip_ms)
    uplink_us = microseconds(answer.passage.uplink_ms)
    answer.measured(pb.EdgeTimes(round_trip_us=took_us, uplink_us=uplink_us, total_us=took_us))


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure throughput and latency by number of streams and plan."""
    with Bundle.open(arguments.bundle) as bundle, ExitStack() as stack:
        chosen = choose(bundle)
        frames = {kind: _frames(bundle, d, arguments.images) for kind, d in chosen.items()}
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(Service.cloud(bundle.root, folder / "cloud.log"))
        address, pid = f"127.0.0.1:{cloud.ready['grpc']}", cloud.ready["pid"]
        clients: list[CloudClient] = []
        rows = []
        progress = stages.stage("loading the cloud")
        for done, count in enumerate(sorted(arguments.streams), 1):
            while len(clients) < count:
                clients.append(_connect(address, bundle.digest, len(clients)))
                stack.callback(clients[-1].close)
            turns: dict[str, list[Turn]] = {kind: [] for kind in chosen}
            for kind in [*chosen] * _TURNS:
                seconds = arguments.seconds / _TURNS
                turns[kind].append(_turn(clients, frames[kind], seconds, pid))
            for kind, taken in turns.items():
                row = {"streams": count, "kind": kind, **summary(taken)}
                rows.append(row | {"cloud_resident_mib": memory_mib(pid)})
            progress(done, len(arguments.streams))
        return record(
            bundle=bundle.digest.hex(),
            seconds=arguments.seconds,
            plans={kind: bundle.plan(digest).name for kind, digest in chosen.items()},
            frame_bytes={
                kind: round(statistics.mean(frame.ByteSize() for frame in sent))
                for kind, sent in frames.items()
            },
            rows=rows,
        )


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


def summary(turns: Sequence[Turn]) -> Result:
    """Summary of the turns of one plan; without any answer, only the number of failed frames."""
    errors = [error for turn in turns for error in turn.errors]
    latencies_ms = [ms for turn in turns for ms in turn.latencies_ms]
    count, seconds = len(latencies_ms), sum(turn.seconds for turn in turns)
    found = {"frames": count, "failed": len(errors), "errors": list(dict.fromkeys(errors))[:3]}
    if not count:
        return found
    p50_ms, p99_ms = np.percentile(latencies_ms, (50, 99))
    return {
        **found,
        "frames_per_s": round(count / seconds, 2),
        "p50_ms": round(float(p50_ms), 2),
        "p99_ms": round(float(p99_ms), 2),
        "cloud_cpu_ms": round(sum(turn.cloud_cpu_ms for turn in turns) / count, 2),
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

    def frame(path: Path) -> pb.Frame:
        picture = read_image(path)
        return pb.Frame(
            plan_digest=digest,
            image_width=picture.shape[1],
            image_height=picture.shape[0],
            payloads=opened.cut(geometry.pixels(picture)).payloads,
        )

    return [frame(path) for path in spread(list_images(images), _PICTURES)]


def _turn(
    clients: Sequence[CloudClient], frames: Sequence[pb.Frame], seconds: float, pid: int
) -> Turn:
    load = Load([threading.Event() for _ in clients])
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(stream, c, n, frames, load) for n, c in enumerate(clients)]
        for event in load.had_one:
            event.wait()
        began_s, before_ms = time.perf_counter(), cpu_ms(pid)
        time.sleep(seconds)
        ended_s, after_ms = time.perf_counter(), cpu_ms(pid)
        load.ended.set()
        for each in running:
            each.result()  # which raises what broke it
    latencies_ms = [ms for at_s, ms in load.answered if began_s <= at_s < ended_s]
    return Turn(ended_s - began_s, latencies_ms, load.errors, after_ms - before_ms)


def section(found: Result) -> Lines:
    """Section of the page."""
    sent = ", ".join(
        f"{kind}: {name}, {found['frame_bytes'][kind]:,} bytes"
        for kind, name in found["plans"].items()
    )
    yield f"Streams to one cloud, each with one frame in flight, on loopback. {sent}."
    yield ""
    columns = {
        "streams": "{streams}",
        "plan:": "{kind}",
        "frames/s": "{frames_per_s:.1f}",
        "p50, ms": "{p50_ms:.0f}",
        "p99, ms": "{p99_ms:.0f}",
        "cloud CPU, ms": "{cloud_cpu_ms:.1f}",
        "MiB": "{cloud_resident_mib:.0f}",
        "failed": "{failed:,}",
    }
    yield from table(found["rows"], columns)


def _options(parser: argparse.ArgumentParser) -> None:
    add_bundle_options(parser)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each plan and number")
    parser.add_argument("--streams", type=listed(int), default=STREAMS, help="numbers of edges")


BENCH = Bench(__doc__, "many_edges", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
