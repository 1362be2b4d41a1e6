"""Every part of a frame's path by itself, as a ratio to a lower bound of its time.

    python -m bench.micro.parts --bundle DIR --images DIR [--json OUT]

    letterbox, encoders, boxes    beside a copy of the bytes that they read
    decoders                      beside a copy of the bytes that they make
    head, tail                    beside ONNX Runtime's own call with the same options
    stream                        beside a bare gRPC stream that echoes as many bytes, on loopback
    tail of four frames           beside one batch of four: what a batcher would save
    planner                       by itself

A part and its floor take turns, so that whatever else the machine does hits both alike. Parts are
called as the product calls them; heads and tails count the times that the product reports. All rows
come from the first picture of the folder; only the batch is of the first four.

Copies of a few hundred kilobytes take twice as long when other work has pushed them out of the
caches: ratios to a copy are good to an order of magnitude, those to a session or an echo to
percents.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.micro.echo import echo_client
from bench.micro.opened import Bare, Opened
from bench.plan_choice import cheapest_split, upload
from bench.processes import Service
from cloud.tails import TailRunner
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.imaging.images import list_images, read_image
from common.imaging.placement import fit_image
from common.latency import costs
from common.link.link import Link
from common.progress import Stages
from common.rpc import splitpoint_pb2 as pb
from common.runtime.base import Array, Session
from common.runtime.registry import open_model
from common.tables.timing import Timing, interleave_until_tight, probe_until_tight
from common.tasks.base import TaskResult
from common.version import __version__
from edge.head import INPUT
from edge.link.estimate import LinkEstimator, Transit
from edge.planning.planner import Planner
from edge.planning.predictor import Served
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport

_RESULT = Path(__file__).parents[1] / "results" / "parts.json"
_BATCH = 4
_PROBE_BYTES = (1024, 4096)
_FRAMES_BEFORE = 100
_LINK_BYTES = (100, 10_000)
"""Sizes of the messages, small and large, from which the link of the planner is estimated."""
_TOLERANCE, _WARM_UP, _LEAST, _MOST, _BUDGET_S = 0.02, 5, 100, 1000, 8.0
_LEAST_MESSAGES = 500


@dataclass(frozen=True)
class PartRow:
    """One part and its lower bound.

    Attributes:
        part: Name of the part.
        timing: Time of the part.
        plan: Plan that the part belongs to, if any.
        floor: Name of the lower bound; None if there is none.
        least: Time of the lower bound.
        note: Remark.
    """

    part: str
    timing: Timing
    plan: str | None = None
    floor: str | None = None
    least: Timing | None = None
    note: str | None = None

    @property
    def ratio(self) -> float | None:
        """Time of the part over that of its lower bound."""
        if self.least is None or self.least.median_ms <= 0:
            return None
        return self.timing.median_ms / self.least.median_ms

    def to_json(self) -> dict[str, Any]:
        """Row as JSON, times in microseconds."""
        timing, least = self.timing, self.least
        return {
            "part": self.part,
            "plan": self.plan,
            "median_us": _us(timing.median_ms),
            "low_us": _us(timing.low_ms),
            "high_us": _us(timing.high_ms),
            "n": timing.n,
            "floor": self.floor,
            "floor_us": None if least is None else _us(least.median_ms),
            "floor_low_us": None if least is None else _us(least.low_ms),
            "floor_high_us": None if least is None else _us(least.high_ms),
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "note": self.note,
        }


def choose(plans: Mapping[bytes, Plan]) -> dict[str, bytes]:
    """Plans to measure, by the codec that they stand for.

    Raises:
        SplitpointError: If there is no split plan with the context coder.
    """
    found = {
        "context": cheapest_split(plans, ["context"]),
        "zstd": cheapest_split(plans, ["packed+zstd", "symbols+zstd"]),
        "jpeg": upload(plans, "jpeg"),
        "webp": upload(plans, "webp"),
    }
    if found["context"] is None:
        raise SplitpointError("the bundle has no split plan with the context coder: search again")
    return {name: digest for name, digest in found.items() if digest is not None}


def measure(arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Measure all rows, and describe the machine, bundle and pictures."""
    with Bundle.open(arguments.bundle) as bundle:
        chosen = choose(bundle.plans)
        paths = list_images(arguments.images)[:_BATCH]
        pictures = [read_image(path) for path in paths]
        rows = []
        progress, total = stages.stage("timing parts"), 8 + 2 * len(chosen)
        for row in _rows(bundle, chosen, pictures):
            rows.append(row)
            progress(len(rows), total)
        return {
            "machine": machine(),
            "software_version": __version__,
            "bundle": bundle.digest.hex(),
            "plans": {name: bundle.plan(digest).name for name, digest in chosen.items()},
            "pictures": [path.name for path in paths],
            "rows": [row.to_json() for row in rows],
        }


def _rows(
    bundle: Bundle, chosen: Mapping[str, bytes], pictures: Sequence[NDArray[np.uint8]]
) -> Iterator[PartRow]:
    split = Opened(bundle, chosen["context"], pictures[0])
    yield _letterbox_row(pictures[0], split.size)
    yield _head_row(split)
    for name, digest in chosen.items():
        opened = split if name == "context" else Opened(bundle, digest, pictures[0])
        yield from codec_rows(opened)
    yield from _tail_rows(split)
    yield _batch_row([Opened(bundle, chosen["context"], picture) for picture in pictures])
    yield from _planner_rows(bundle)
    yield from _stream_rows(bundle)


def _letterbox_row(picture: NDArray[np.uint8], size: tuple[int, int]) -> PartRow:
    part, floor = _compared(lambda: fit_image(picture, size), copying([picture]))
    where = f"{picture.shape[1]}x{picture.shape[0]}"
    return PartRow(f"letterbox of {where}", part, None, _copy_of([picture]), floor)


def codec_rows(opened: Opened) -> Iterator[PartRow]:
    """Rows of one plan: look-up and encoding, then decoding and look-up."""
    name, codec = opened.plan.name, str(opened.plan.codec)
    payloads = opened.encode()
    values = opened.decode(payloads)
    sent = f"{sum(len(payload.data) for payload in payloads):,} bytes"
    part, floor = _compared(opened.encode, copying(opened.codes))
    yield PartRow(f"{codec}: look-up, encode", part, name, _copy_of(opened.codes), floor, sent)
    part, floor = _compared(lambda: opened.decode(payloads), copying(values))
    yield PartRow(f"{codec}: decode, look-up", part, name, _copy_of(values), floor, sent)


def _head_row(opened: Opened) -> PartRow:
    bare, inputs = opened.bare_head, {INPUT: opened.frame[None]}
    if bare is None:
        raise SplitpointError(f"plan {opened.plan.name} has no head")

    def floor() -> float:
        took_ms = bare.run_ms(inputs)
        opened.encode()  # like the part does: both begin with the same caches
        return took_ms

    part, least = _told(lambda: opened.edge.cut(opened.frame).head_ms, floor)
    return PartRow("head", part, opened.plan.name, "session.run", least)


def _tail_rows(opened: Opened) -> Iterator[PartRow]:
    """Rows of the tail, and of decoding boxes behind it."""
    plan, where, task = opened.plan, opened.where, opened.task
    model = open_model(opened.tail_file)
    runner = TailRunner(plan, opened.edge.digest, task, opened.codecs, model)
    bare, symbols, names = Bare(opened.tail_file), opened.symbols(), [w.name for w in plan.wire]
    inputs = opened.inputs()
    maps = [output[0] for output in model.run(inputs)]

    def boxes() -> TaskResult:
        return task.decode(maps, where)

    def floor() -> float:
        values = runner.values(symbols)
        took_ms = bare.run_ms({n: v[None] for n, v in zip(names, values, strict=True)})
        boxes()  # like the part does: both begin with the same caches
        return took_ms

    part, least = _told(lambda: runner.run(symbols, where).tail_ms, floor)
    yield PartRow("tail", part, plan.name, "session.run", least)
    part, least = _compared(boxes, copying(maps))
    note = f"{len(boxes())} objects"
    yield PartRow("decode boxes, suppress", part, plan.name, _copy_of(maps), least, note)


def _batch_row(opened: Sequence[Opened]) -> PartRow:
    """Row of frames one after the other, against one batch that has to be joined first."""
    model, name = open_model(opened[0].tail_file), opened[0].plan.name
    frames = [each.inputs() for each in opened]
    part = f"tail of {len(frames)} frames in turn"
    if not takes_batches(model):
        (timing,) = _timed([lambda: [model.run(inputs) for inputs in frames]])
        return PartRow(part, timing, name, note="the tail's batch is fixed: none to compare with")

    def batched() -> None:
        model.run({port.name: np.concatenate([f[port.name] for f in frames]) for port in ports})

    ports = model.inputs
    timing, batch = _compared(lambda: [model.run(inputs) for inputs in frames], batched)
    note = "above 1 a batcher would pay; one thread"
    return PartRow(part, timing, name, f"one batch of {len(frames)}", batch, note)


def takes_batches(model: Session) -> bool:
    """Whether every input's batch may vary."""
    return all(port.shape[0] is None for port in model.inputs)


def _planner_rows(bundle: Bundle) -> Iterator[PartRow]:
    """Rows of the planner: the choice of a frame's plan, and the predictions after its answer."""
    planner = experienced_planner(bundle)

    def foresee() -> None:
        planner.probed(0.0)  # an observation, which invalidates the predictions
        planner.foresee(perf_counter())

    choice, foresight = _timed([lambda: planner.choose(perf_counter()), foresee])
    note = f"{len(bundle.plans)} plans, after {_FRAMES_BEFORE} frames"
    yield PartRow("choice of a frame's plan", choice, note=note)
    yield PartRow("what to expect of all plans, after a frame", foresight, note=note)


def experienced_planner(bundle: Bundle) -> Planner:
    """Planner of all plans, with observations close to its predictions up to now."""
    search = bundle.manifest.search
    link = Link(search.uplink_bps, search.uplink_bps, search.rtt_ms)
    estimator, rng = LinkEstimator(), np.random.default_rng(0)
    planner = Planner(costs(bundle.plans), link, estimator)
    now_s = perf_counter() - _FRAMES_BEFORE
    for _ in range(_FRAMES_BEFORE):
        now_s += 1.0
        expected = planner.choose(now_s).expected
        cost, stretch = expected.cost, float(rng.lognormal(0, 0.05))
        for size in _LINK_BYTES:
            up_s = link.rtt_ms / 2e3 + size * 8 / link.uplink_bps * stretch
            back_s = now_s + up_s + link.rtt_ms / 2e3
            estimator.passed(Transit(now_s, now_s + up_s, now_s + up_s, back_s, size))
        planner.served(
            expected,
            Served(
                edge_ms=cost.edge_ms * stretch,
                cloud_ms=cost.cloud_ms * stretch,
                queue_ms=0.0,
                uplink_bytes=cost.uplink_bytes,
                latency_ms=expected.latency_ms * stretch,
            ),
        )
    return planner


def _stream_rows(bundle: Bundle) -> Iterator[PartRow]:
    """Rows of a message and its answer, through the product and through bare gRPC."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        command = ["cloud", "--bundle", str(bundle.root), "--grpc-port", "0", "--rest-port", "0"]
        cloud = stack.enter_context(Service(command, folder / "cloud.log"))
        echo = stack.enter_context(echo_client())
        hello = pb.Hello(edge_id="bench.micro.parts", bundle_digest=bundle.digest)
        address = f"127.0.0.1:{cloud.ready['grpc']}"
        client = CloudClient(lambda: GrpcTransport(address), hello)
        stack.callback(client.close)
        client.connect()
        calls: list[Callable[[], object]] = []
        for size in _PROBE_BYTES:
            probe = pb.Probe(padding=bytes(size))
            wrapped = pb.EdgeMessage(probe=probe).SerializeToString()
            calls += [partial(client.request, probe), partial(echo, wrapped)]
        # All sizes in turn: both ends get faster over their first hundreds of messages.
        timings = _timed(calls, least=_LEAST_MESSAGES)
        for size, part, floor in zip(_PROBE_BYTES, timings[::2], timings[1::2], strict=True):
            yield PartRow(f"stream, a probe of {size:,} bytes", part, None, "gRPC echo", floor)


def copying(arrays: Sequence[Array]) -> Callable[[], None]:
    """Return a call that copies the arrays' bytes into memory allocated before."""
    pairs = [(np.empty_like(array), array) for array in arrays]

    def copy() -> None:
        for target, source in pairs:
            np.copyto(target, source)

    return copy


def _compared(part: Callable[[], object], floor: Callable[[], object]) -> tuple[Timing, Timing]:
    first, second = _timed([part, floor])
    return first, second


def _timed(calls: Sequence[Callable[[], object]], *, least: int = _LEAST) -> list[Timing]:
    return interleave_until_tight(
        calls, tolerance=_TOLERANCE, warm_up=_WARM_UP, least=least, most=_MOST, budget_s=_BUDGET_S
    )


def _told(part: Callable[[], float], floor: Callable[[], float]) -> tuple[Timing, Timing]:
    """Timings of calls that return their own time in ms."""
    (first,), (second,) = probe_until_tight(
        [lambda: (part(),), lambda: (floor(),)],
        tolerance=_TOLERANCE,
        warm_up=_WARM_UP,
        least=_LEAST,
        most=_MOST,
        budget_s=_BUDGET_S,
    )
    return first, second


def _copy_of(arrays: Sequence[Array]) -> str:
    return f"copy of {sum(array.nbytes for array in arrays):,} bytes"


def _us(ms: float) -> float:
    return round(ms * 1e3, 2)


def print_rows(result: dict[str, Any], console: Console) -> None:
    """Print the rows as a table."""
    table = Table("part", title="Parts of a frame's path, medians", title_justify="left")
    for column in ("us", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("floor")
    for column in ("us", "ratio"):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(
            row["part"],
            f"{row['median_us']:,.1f}",
            f"{row['low_us']:,.1f} - {row['high_us']:,.1f}",
            row["floor"] or "",
            "" if row["floor_us"] is None else f"{row['floor_us']:,.1f}",
            "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        )
    console.print(table)
    for name, plan in result["plans"].items():
        console.print(f"{name}: {plan}", highlight=False)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True, help="pictures to send")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    with Stages() as stages:
        result = measure(arguments, stages)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print_rows(result, Console())


if __name__ == "__main__":
    main()
