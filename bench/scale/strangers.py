"""Latency of an honest edge while strangers flood the cloud, dawdle or send bombs.

    python -m bench.scale.strangers --bundle BUNDLE --images IMAGES [--json OUT]

    EdgeProcess, a frame in flight --> splitpoint cloud <-- uploads, abandoned uploads, slow bodies,
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
import json
import resource
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from bench.edge_process import EdgeProcess, EdgeProcessSettings
from bench.machine import machine
from bench.plan_choice import cheapest_split
from bench.processes import Service
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.images import list_images
from common.progress import Stages
from common.rpc.splitpoint_pb2_grpc import SplitServiceStub
from common.version import __version__

UPLOADS: Final = 200
ABANDONED: Final = 500
SLOW: Final = 100
SILENT: Final = 100
BOMBS: Final = 2

HEAD: Final = (
    *("beside", "answered", "failed", "median, ms", "p99, ms", "cloud, MiB"),
    *("/livez at worst, ms", "strangers met"),
)
"""Headings of the columns of `by_kind`."""

_RESULT = Path(__file__).parents[1] / "results" / "strangers.json"
_HOST = "127.0.0.1"
_PICTURES = 8
_FRAMES, _TURNS = 100, 3
_BODY_BYTES, _SENT_BYTES = 16 << 20, 15 << 20
_SCANS = 400
_PATIENCE_S = 60.0
_PAUSE_S = 1.0
_LIVE_S = 0.2


@dataclass
class Strangers:
    """State of the strangers of one kind: answers they got, and whether they are at work.

    Attributes:
        met: Number of answers by status code, or by how the connection ended.
        come: Set once they are at work, or have failed.
        error: Reason of their failure, if they failed.
    """

    met: Counter[str] = field(default_factory=Counter)
    come: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None


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
            strangers.met[status] += 1
            strangers.come.set()
            await asyncio.sleep(retry_s)

    await _together(client() for _ in range(UPLOADS))


async def abandoned(target: StrangersTarget, strangers: Strangers) -> None:
    """Whole requests whose senders hang up at once, a second's pause, and the same again."""
    while True:
        await _together(_send_and_leave(target, target.picture) for _ in range(ABANDONED))
        strangers.met["left"] += ABANDONED
        strangers.come.set()
        await asyncio.sleep(_PAUSE_S)


async def slow_bodies(target: StrangersTarget, strangers: Strangers) -> None:
    """Bodies that stop before their end; the same again once they are refused."""

    async def client() -> None:
        while True:
            status, retry_s = await _post(target, bytes(_SENT_BYTES), declared_bytes=_BODY_BYTES)
            strangers.met[status] += 1
            await asyncio.sleep(max(retry_s, _PAUSE_S))

    asyncio.get_running_loop().call_later(_PAUSE_S, strangers.come.set)
    await _together(client() for _ in range(SLOW))


async def silent_streams(target: StrangersTarget, strangers: Strangers) -> None:
    """Streams that never greet, opened anew when they are ended."""
    address = f"{_HOST}:{target.grpc_port}"
    async with grpc.aio.insecure_channel(address) as channel:
        stub = SplitServiceStub(channel)  # type: ignore[no-untyped-call]

        async def stream() -> None:
            while True:
                call = stub.Stream()
                strangers.come.set()
                code = await call.code()
                strangers.met[code.name] += 1
                await asyncio.sleep(_PAUSE_S)

        await _together(stream() for _ in range(SILENT))


async def scan_bombs(target: StrangersTarget, strangers: Strangers) -> None:
    """Pictures that cost far more than their bytes, abandoned after a second."""
    bomb = scan_bomb()
    while True:
        for _ in range(BOMBS):
            try:
                async with asyncio.timeout(_PAUSE_S):
                    status, _ = await _post(target, bomb)
                    strangers.met[status] += 1
            except TimeoutError:
                strangers.met["left"] += 1
            strangers.come.set()
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
    loop = asyncio.new_event_loop()
    task = loop.create_task(_act(kind, target, strangers))
    thread = threading.Thread(target=_work, args=(loop, task), name="strangers", daemon=True)
    thread.start()
    strangers.come.wait(_PATIENCE_S)
    try:
        yield strangers
    finally:
        with contextlib.suppress(RuntimeError):  # the loop is closed: they have failed
            loop.call_soon_threadsafe(task.cancel)
        thread.join()
    if strangers.error is not None:
        raise SplitpointError(f"strangers failed: {strangers.error!r}")


async def _act(kind: Kind, target: StrangersTarget, strangers: Strangers) -> None:
    try:
        await kind(target, strangers)
    except Exception as error:  # noqa: BLE001 - raised once the turn is over
        strangers.error = error
    finally:
        strangers.come.set()


def _work(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    asyncio.set_event_loop(loop)
    with contextlib.suppress(asyncio.CancelledError):
        loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def measure(arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Measure latencies of the honest edge alone and beside each kind of stranger, in turns."""
    images = list_images(arguments.images)
    images = images[:: max(1, len(images) // _PICTURES)][:_PICTURES]
    kinds: dict[str, Kind | None] = {"alone": None, **KINDS}
    turns: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
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
        return {
            "machine": machine(),
            "software_version": __version__,
            "bundle": bundle.digest.hex(),
            "plan": bundle.plan(plan).name,
            "frames": arguments.frames * arguments.turns,
            "rows": [summary(title, taken, turns["alone"]) for title, taken in turns.items()],
        }


def summary(
    title: str, turns: Sequence[dict[str, Any]], alone: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Row of one kind of stranger: percentiles over all turns, and ratios to the edge alone."""
    met: Counter[str] = Counter()
    for turn in turns:
        met.update(turn["met"])
    found: dict[str, Any] = {
        "beside": title,
        "answered": sum(len(turn["latencies_ms"]) for turn in turns),
        "failed": sum(turn["failed"] for turn in turns),
        "strangers_met": dict(sorted(met.items())),
        "cloud_peak_mib": max(turn["cloud_peak_mib"] for turn in turns),
        "livez_worst_ms": max(turn["livez_worst_ms"] for turn in turns),
    }
    for name, share in (("median", 50), ("p99", 99)):
        mine, base = (_percentile(each, share) for each in (turns, alone))
        found[f"{name}_ms"] = None if mine is None else round(mine, 1)
        found[f"{name}_ratio"] = None if mine is None or not base else round(mine / base, 2)
    return found


def _percentile(turns: Sequence[dict[str, Any]], share: float) -> float | None:
    values = [ms for turn in turns for ms in turn["latencies_ms"]]
    return float(np.percentile(values, share)) if values else None


def _turn(
    bundle: Bundle, plan: bytes, images: Sequence[Path], kind: Kind | None, folder: Path, count: int
) -> dict[str, Any]:
    ports = ("--grpc-port", "0", "--rest-port", "0")
    command = ["cloud", "--bundle", str(bundle.root), *ports]
    with Service(command, folder / "cloud.log") as cloud:
        target = StrangersTarget(cloud.ready["rest"], cloud.ready["grpc"], images[0].read_bytes())
        settings = EdgeProcessSettings(
            bundle.root,
            images,
            f"{_HOST}:{target.grpc_port}",
            "edge",
            adaptive=False,
            plans=[plan],
        )
        with contextlib.ExitStack() as stack:
            # Silent streams are there before the edge is; all others come to one that is served.
            first = kind is silent_streams
            strangers = stack.enter_context(beside(kind, target)) if first else None
            edge = stack.enter_context(EdgeProcess(settings))
            for number in range(len(images)):
                edge.detect(number, plan)
            if strangers is None:
                strangers = stack.enter_context(beside(kind, target))
            live = stack.enter_context(_Live(target.rest_port))
            answers = [edge.detect(k % len(images), plan) for k in range(count)]
        return {
            "latencies_ms": [a["latency_ms"] for a in answers if "error" not in a],
            "failed": sum("error" in answer for answer in answers),
            "met": dict(strangers.met),
            "cloud_peak_mib": _peak_mib(cloud.ready["pid"]),
            "livez_worst_ms": round(live.worst_ms, 1),
        }


class _Live:
    """Polls /livez and keeps the longest time of an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.worst_ms = 0.0

    def __enter__(self) -> "_Live":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _ask(self) -> None:
        target = StrangersTarget(self._port, 0, b"")
        while not self._ended.wait(_LIVE_S):
            began_s = time.perf_counter()
            with contextlib.suppress(OSError, TimeoutError):
                asyncio.run(_request(target, b"GET /livez HTTP/1.1\r\n", b""))
            self.worst_ms = max(self.worst_ms, (time.perf_counter() - began_s) * 1e3)


async def _post(
    target: StrangersTarget, body: bytes, declared_bytes: int | None = None
) -> tuple[str, float]:
    """Send an image; returns the status or "disconnected", and seconds until a retry."""
    length = len(body) if declared_bytes is None else declared_bytes
    head = f"POST /v1/detect HTTP/1.1\r\nContent-Length: {length}\r\n".encode()
    try:
        return await _request(target, head, body)
    except (OSError, EOFError, ValueError, IndexError, asyncio.LimitOverrunError):
        return "disconnected", _PAUSE_S


async def _request(target: StrangersTarget, head: bytes, body: bytes) -> tuple[str, float]:
    reader, writer = await asyncio.open_connection(_HOST, target.rest_port)
    try:
        writer.write(head + b"Host: splitpoint\r\nConnection: close\r\n\r\n" + body)
        # A server may answer before it has read everything, and then it reads no more.
        sending = asyncio.ensure_future(_drained(writer))
        try:
            status = (await reader.readuntil(b"\r\n")).split()[1].decode()
            rest = await reader.readuntil(b"\r\n\r\n")
        finally:
            sending.cancel()  # and not waited for: that would swallow a cancellation of our own
        lines = rest.decode("latin-1").lower().split("\r\n")
        hints = [line.partition(":")[2] for line in lines if line.startswith("retry-after:")]
        return status, float(hints[0]) if hints else 0.0
    finally:
        writer.close()


async def _drained(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.drain()


async def _send_and_leave(target: StrangersTarget, body: bytes) -> None:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(_HOST, target.rest_port)
        head = (
            f"POST /v1/detect HTTP/1.1\r\nHost: splitpoint\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()


async def _together(coroutines: Iterator[Awaitable[None]]) -> None:
    await asyncio.gather(*coroutines)


def _peak_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return round(kib / 1024, 1)


def by_kind(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Cells of a table with the columns of `HEAD`, one row for each kind of stranger."""
    for row in rows:
        met = ", ".join(f"{count:,} x {what}" for what, count in row["strangers_met"].items())
        yield (
            row["beside"],
            *(f"{row[key]:,}" for key in ("answered", "failed")),
            *(f"{row[f'{name}_ms']} ({row[f'{name}_ratio']} x)" for name in ("median", "p99")),
            f"{row['cloud_peak_mib']:.0f}",
            f"{row['livez_worst_ms']:.0f}",
            met,
        )


def print_strangers(found: dict[str, Any], console: Console) -> None:
    """Print the rows as a table."""
    table = Table(*HEAD, title="An honest edge beside strangers", title_justify="left")
    for cells in by_kind(found["rows"]):
        table.add_row(*cells)
    console.print(table)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--frames", type=int, default=_FRAMES, help="of the edge, in each turn")
    parser.add_argument("--turns", type=int, default=_TURNS, help="of each kind of stranger")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)), hard))
    with Stages() as stages:
        found = measure(arguments, stages)
    print_strangers(found, Console(width=160))
    arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
