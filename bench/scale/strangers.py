"""Latency of an honest edge while strangers flood the cloud, dawdle or send bombs.

    python -m bench.scale.strangers --bundle DIR --images DIR [--frames 100] [--turns 3]

    edge, a frame in flight --> splitpoint cloud <-- uploads, abandoned uploads, slow bodies,
                                                     silent streams, scan bombs

A real cloud, a real edge and real sockets, all on this machine, so that what strangers take of its
CPU counts as well. Each kind of stranger takes turns with none at all; a turn begins once its
strangers are at work. Frames go by the cheapest split plan, which needs the cloud: what the edge
answers alone counts as failed.
"""

import argparse
import asyncio
import contextlib
import io
import re
import resource
import tempfile
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc
import numpy as np
from anyio.from_thread import start_blocking_portal
from PIL import Image

from bench.edge_process import EdgeProcessSettings, edge_process
from bench.harness import Bench, Columns, Lines, Result, add_bundle_options, record, spread, table
from bench.plan_choice import cheapest_split
from bench.processes import Service, memory_mib
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.images import list_images
from common.progress import Stages
from common.rpc.splitpoint_pb2_grpc import SplitServiceStub

UPLOADS: Final = 200
ABANDONED: Final = 500
SLOW: Final = 100
SILENT: Final = 100
BOMBS: Final = 2

_HOST = "127.0.0.1"
_PICTURES = 8
_FRAMES, _TURNS = 100, 3
_BODY_BYTES, _SENT_BYTES = 16 << 20, 15 << 20
_SCANS = 400
_PATIENCE_S = 60.0
_PAUSE_S = 1.0
_DESCRIPTORS = 8192
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Strangers:
    """State of the strangers of one kind: answers they got, and whether they are at work.

    Attributes:
        met: Number of answers by status code, or by how the connection ended.
        come: Set once they are at work, or have failed.
    """

    met: Counter[str] = field(default_factory=Counter)
    come: threading.Event = field(default_factory=threading.Event)

    def meet(self, answer: str, count: int = 1) -> None:
        """Count an answer, which shows that they are at work."""
        self.met[answer] += count
        self.come.set()


Kind = Callable[["StrangersTarget", Strangers], Awaitable[None]]


@dataclass(frozen=True)
class StrangersTarget:
    """The cloud that strangers come to.

    Attributes:
        rest_port: Port of its REST API, on loopback.
        grpc_port: Port for edges.
        picture: An encoded image that it would serve.
    """

    rest_port: int
    grpc_port: int
    picture: bytes


async def uploads(target: StrangersTarget, strangers: Strangers) -> None:
    """Clients that send one picture after the other, and wait when they are asked to."""

    async def client() -> None:
        while True:
            status, retry_s = await _post(target, target.picture)
            strangers.meet(status)
            await asyncio.sleep(retry_s)

    await asyncio.gather(*(client() for _ in range(UPLOADS)))


async def abandoned(target: StrangersTarget, strangers: Strangers) -> None:
    """Whole requests whose senders hang up at once, a second's pause, and the same again."""
    while True:
        await asyncio.gather(*(_send_and_leave(target, target.picture) for _ in range(ABANDONED)))
        strangers.meet("left", ABANDONED)
        await asyncio.sleep(_PAUSE_S)


async def slow_bodies(target: StrangersTarget, strangers: Strangers) -> None:
    """Bodies that stop before their end; the same again once they are refused."""

    async def client() -> None:
        while True:
            status, retry_s = await _post(target, bytes(_SENT_BYTES), declared_bytes=_BODY_BYTES)
            strangers.meet(status)
            await asyncio.sleep(max(retry_s, _PAUSE_S))

    asyncio.get_running_loop().call_later(_PAUSE_S, strangers.come.set)
    await asyncio.gather(*(client() for _ in range(SLOW)))


async def silent_streams(target: StrangersTarget, strangers: Strangers) -> None:
    """Streams that never greet, opened anew when they are ended."""
    address = f"{_HOST}:{target.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = SplitServiceStub(channel)  # type: ignore[no-untyped-call]

        async def stream() -> None:
            while True:
                call = stub.Stream()
                strangers.come.set()
                strangers.meet((await call.code()).name)
                await asyncio.sleep(_PAUSE_S)

        await asyncio.gather(*(stream() for _ in range(SILENT)))


async def scan_bombs(target: StrangersTarget, strangers: Strangers) -> None:
    """Pictures that cost far more than their bytes, abandoned after a second."""
    bomb = scan_bomb()
    while True:
        for _ in range(BOMBS):
            try:
                status, _ = await asyncio.wait_for(_post(target, bomb), _PAUSE_S)
                strangers.meet(status)
            except TimeoutError:
                strangers.meet("left")
        await asyncio.sleep(_PAUSE_S)


KINDS: Final[dict[str, Kind]] = {
    f"{UPLOADS} uploads at once": uploads,
    f"{ABANDONED} abandoned uploads": abandoned,
    f"{SLOW} slow bodies": slow_bodies,
    f"{SILENT} silent streams": silent_streams,
    "a scan bomb": scan_bombs,
}


def scan_bomb(scans: int = _SCANS) -> bytes:
    """Progressive JPEG whose last scan is repeated `scans` times."""
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    file = io.BytesIO()
    smooth = Image.fromarray(noise).resize((4000, 3000), Image.Resampling.BICUBIC)
    smooth.save(file, "JPEG", quality=1, progressive=True)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


@contextlib.contextmanager
def beside(kind: Kind | None, target: StrangersTarget) -> Iterator[Strangers]:
    """Run strangers of a kind in a thread of their own, for the length of the block."""
    strangers = Strangers()
    if kind is None:
        yield strangers
        return
    with start_blocking_portal() as portal:
        task = portal.start_task_soon(kind, target, strangers)
        task.add_done_callback(lambda _: strangers.come.set())
        strangers.come.wait(_PATIENCE_S)
        try:
            yield strangers
        finally:
            task.cancel()
    if not task.cancelled():
        raise SplitpointError(f"strangers failed: {task.exception()!r}")


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure latencies of the honest edge alone and beside each kind of stranger, in turns."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, _DESCRIPTORS)), hard))
    images = spread(list_images(arguments.images), _PICTURES)
    kinds: dict[str, Kind | None] = {"alone": None, **KINDS}
    turns: dict[str, list[Result]] = {kind: [] for kind in kinds}
    with Bundle.open(arguments.bundle) as bundle, ExitStack() as stack:
        plan = cheapest_split(bundle.plans, ["context", "zstd", "packed", "raw"])
        if plan is None:
            raise SplitpointError("expected a bundle with a split plan")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stages.stage("an honest edge beside strangers")
        for turn in range(arguments.turns):
            for number, (title, kind) in enumerate(kinds.items(), 1):
                # A cloud of its own for each turn: what strangers leave behind is not the next's.
                turns[title].append(_turn(bundle, plan, images, kind, folder, arguments.frames))
                progress(turn * len(kinds) + number, arguments.turns * len(kinds))
        return record(
            bundle=bundle.digest.hex(),
            plan=bundle.plan(plan).name,
            frames=arguments.frames * arguments.turns,
            rows=[summary(title, taken, turns["alone"]) for title, taken in turns.items()],
        )


def summary(title: str, turns: Sequence[Result], alone: Sequence[Result]) -> Result:
    """Row of one kind of stranger: percentiles over all turns, and ratios to the edge alone."""
    met: Counter[str] = Counter()
    for turn in turns:
        met.update(turn["met"])
    found: Result = {
        "beside": title,
        "answered": sum(len(turn["latencies_ms"]) for turn in turns),
        "failed": sum(turn["failed"] for turn in turns),
        "strangers_met": dict(sorted(met.items())),
        "cloud_peak_mib": max(turn["cloud_peak_mib"] for turn in turns),
    }
    mine, base = ([ms for turn in each for ms in turn["latencies_ms"]] for each in (turns, alone))
    for name, share in (("median", 50), ("p99", 99)):
        if mine and base:
            ms = float(np.percentile(mine, share))
            found[f"{name}_ms"] = round(ms, 1)
            found[f"{name}_ratio"] = round(ms / float(np.percentile(base, share)), 2)
    return found


def _turn(
    bundle: Bundle, plan: bytes, images: Sequence[Path], kind: Kind | None, folder: Path, count: int
) -> Result:
    with Service.cloud(bundle.root, folder / "cloud.log") as cloud:
        target = StrangersTarget(cloud.ready["rest"], cloud.ready["grpc"], images[0].read_bytes())
        address = f"{_HOST}:{target.grpc_port}"
        settings = EdgeProcessSettings(bundle.root, images, address, "edge", [plan], adaptive=False)
        with contextlib.ExitStack() as stack:
            # Silent streams are there before the edge is; all others come to one that is served.
            first = kind is silent_streams
            strangers = stack.enter_context(beside(kind, target)) if first else None
            edge = stack.enter_context(edge_process(settings))
            for number in range(len(images)):
                edge.detect(number, plan)
            if strangers is None:
                strangers = stack.enter_context(beside(kind, target))
            answers = [edge.detect(k % len(images), plan) for k in range(count)]
        return {
            "latencies_ms": [a["latency_ms"] for a in answers if "error" not in a],
            "failed": sum("error" in answer for answer in answers),
            "met": dict(strangers.met),
            "cloud_peak_mib": memory_mib(cloud.ready["pid"], peak=True),
        }


async def _sent(target: StrangersTarget, body: bytes, declared_bytes: int) -> _Connection:
    """Open a connection and begin to send an image to it."""
    reader, writer = await asyncio.open_connection(_HOST, target.rest_port)
    head = f"POST /v1/detect HTTP/1.1\r\nHost: splitpoint\r\nContent-Length: {declared_bytes}\r\n"
    writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
    return reader, writer


async def _post(
    target: StrangersTarget, body: bytes, declared_bytes: int | None = None
) -> tuple[str, float]:
    """Send an image; returns the status or "disconnected", and seconds until a retry."""
    try:
        reader, writer = await _sent(target, body, declared_bytes or len(body))
        # A server may answer before it has read everything: whatever it leaves stays unsent.
        with contextlib.closing(writer):
            status, rest = await reader.readuntil(b"\r\n"), await reader.readuntil(b"\r\n\r\n")
            hint = re.search(rb"(?im)^retry-after: *(\d+)", rest)
            return status.split()[1].decode(), float(hint[1]) if hint else 0.0
    except (OSError, EOFError, IndexError):
        return "disconnected", _PAUSE_S


async def _send_and_leave(target: StrangersTarget, body: bytes) -> None:
    with contextlib.suppress(OSError):
        _, writer = await _sent(target, body, len(body))
        await writer.drain()
        writer.close()


def section(found: Result) -> Lines:
    """Section of the page."""
    yield (
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores, which cloud, edge and "
        f"strangers share. {found['frames']} frames of one edge by {found['plan']}, one at a "
        "time, in turns with each kind of stranger; in brackets the ratio to the edge alone in the "
        "same run. What strangers met: a status, how a stream or connection ended, or how many "
        "left."
    )
    yield ""
    columns: Columns = {
        "beside": "{beside}",
        "answered": "{answered:,}",
        "failed": "{failed:,}",
        "median, ms": "{median_ms} ({median_ratio} x)",
        "p99, ms": "{p99_ms} ({p99_ratio} x)",
        "cloud, MiB": "{cloud_peak_mib:.0f}",
        "strangers met:": lambda row: ", ".join(
            f"{count:,} x {what}" for what, count in row["strangers_met"].items()
        ),
    }
    yield from table(found["rows"], columns)


def _options(parser: argparse.ArgumentParser) -> None:
    add_bundle_options(parser)
    parser.add_argument("--frames", type=int, default=_FRAMES, help="of the edge, in each turn")
    parser.add_argument("--turns", type=int, default=_TURNS, help="of each kind of stranger")


BENCH = Bench(__doc__, "strangers", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
