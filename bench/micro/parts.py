"""Times of every part of a frame's path, to compare before and after a change.

    python -m bench.micro.parts --bundle DIR --images DIR [--json OUT]

    frame      letterbox, head, encode, decode, tail and boxes of some plans, in turn, by the clocks
               of the product's own stages, on the first picture of the folder
    planner    choice of a frame's plan; predictions of all plans after an observation
    stream     a message to a cloud on loopback and its answer

Medians with 95 % intervals. Compare two runs of one machine that does nothing else.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness import Bench, Lines, Result, add_bundle_options, record, table
from bench.plan_choice import cheapest_split, upload
from bench.processes import Service
from cloud.tails import TailRunner, Tails
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.imaging.images import list_images, read_image
from common.latency import costs
from common.link.link import Link
from common.progress import Stages
from common.rpc import splitpoint_pb2 as pb
from common.tables.timing import Timing, interleave_until_tight, probe_until_tight
from common.tasks.base import ImageInput
from edge.head import EdgePlan, open_plans
from edge.link.estimate import LinkEstimator, Transit
from edge.planning.planner import Planner
from edge.planning.predictor import Served
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport

PARTS = ("letterbox", "head", "encode", "decode", "tail", "boxes")
_PROBE_BYTES = (1024, 4096)
_FRAMES_BEFORE = 100
_LINK_BYTES = (100, 10_000)
"""Sizes of the messages, small and large, from which the link of the planner is estimated."""
_LIMITS: dict[str, Any] = {"tolerance": 0.02, "warm_up": 5, "most": 1000}
_BUDGET_S, _FRAMES_BUDGET_S = 8.0, 60.0
_LEAST, _LEAST_MESSAGES = 100, 500


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


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure all rows, and describe the machine, bundle and picture."""
    with Bundle.open(arguments.bundle) as bundle:
        chosen = choose(bundle.plans)
        path = list_images(arguments.images)[0]
        progress, total = stages.stage("timing parts"), 4 + len(PARTS) * len(chosen)
        rows = []
        for row in _rows(bundle, list(chosen.values()), read_image(path)):
            rows.append(row)
            progress(len(rows), total)
        plans = {name: bundle.plan(digest).name for name, digest in chosen.items()}
        return record(bundle=bundle.digest.hex(), plans=plans, picture=path.name, rows=rows)


def _rows(bundle: Bundle, digests: list[bytes], picture: NDArray[np.uint8]) -> Iterator[Result]:
    opened, tails = open_plans(bundle, digests), Tails(bundle)
    geometry = bundle.manifest.task.image
    frames = [partial(frame_ms, opened[d], tails.runner(d), picture, geometry) for d in digests]
    limits = {**_LIMITS, "least": _LEAST, "budget_s": _FRAMES_BUDGET_S}
    for digest, timings in zip(digests, probe_until_tight(frames, **limits), strict=True):
        for part, timing in zip(PARTS, timings, strict=True):
            yield row_of(part, timing, bundle.plan(digest).name)
    yield from _planner_rows(bundle)
    yield from _stream_rows(bundle)


def frame_ms(
    edge: EdgePlan, tail: TailRunner, picture: NDArray[np.uint8], geometry: ImageInput
) -> list[float]:
    """Pass one frame through a plan on both sides; returns the times of `PARTS` in ms.

    Args:
        edge: The edge's half.
        tail: The cloud's half.
        picture: (H, W, 3) RGB.
        geometry: How it becomes the network's input.
    """
    height, width = picture.shape[:2]
    started_s = perf_counter()
    frame = geometry.pixels(picture)
    boxed_ms = (perf_counter() - started_s) * 1e3
    cut = edge.cut(frame)
    message = pb.Frame(image_width=width, image_height=height, payloads=cut.payloads)
    done = tail.finish(message)
    own_ms = [cut.head_ms, cut.encode_ms, done.decode_ms, done.tail_ms, done.postprocess_ms]
    return [boxed_ms, *own_ms]


def row_of(part: str, timing: Timing, plan: str = "") -> Result:
    """Row of one part, in microseconds."""
    times = {end: getattr(timing, f"{end}_ms") * 1e3 for end in ("median", "low", "high")}
    times_us = {f"{end}_us": round(us, 2) for end, us in times.items()}
    return {"part": part, "plan": plan, **times_us, "n": timing.n}


def _planner_rows(bundle: Bundle) -> Iterator[Result]:
    """Rows of the planner: the choice of a frame's plan, and the predictions after its answer."""
    planner = experienced_planner(bundle)

    def foresee() -> None:
        planner.probed(0.0)  # an observation, which invalidates the predictions
        planner.foresee(perf_counter())

    choice, foresight = _timed([lambda: planner.choose(perf_counter()), foresee], _LEAST)
    yield row_of("choice of a frame's plan", choice)
    yield row_of(f"predictions of {len(bundle.plans)} plans after a frame", foresight)


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


def _stream_rows(bundle: Bundle) -> Iterator[Result]:
    """Rows of a message to a cloud and its answer, by size."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cloud = stack.enter_context(Service.cloud(bundle.root, folder / "cloud.log"))
        hello = pb.Hello(edge_id="bench.micro.parts", bundle_digest=bundle.digest)
        address = f"127.0.0.1:{cloud.ready['grpc']}"
        client = CloudClient(lambda: GrpcTransport(address), hello)
        stack.callback(client.close)
        client.connect()
        probes = [pb.Probe(padding=bytes(size)) for size in _PROBE_BYTES]
        # All sizes in turn: both ends get faster over their first hundreds of messages.
        timings = _timed([partial(client.request, probe) for probe in probes], _LEAST_MESSAGES)
        for size, timing in zip(_PROBE_BYTES, timings, strict=True):
            yield row_of(f"stream, a probe of {size:,} bytes", timing)


def _timed(calls: list[Callable[[], object]], least: int) -> list[Timing]:
    return interleave_until_tight(calls, least=least, budget_s=_BUDGET_S, **_LIMITS)


def section(result: Result) -> Lines:
    """Table of the parts."""
    columns = {
        "part": "{part}",
        "plan:": "{plan}",
        "median, us": "{median_us:,.0f}",
        "95 % interval": "{low_us:,.0f} to {high_us:,.0f}",
    }
    return table(result["rows"], columns)


BENCH = Bench(__doc__, "parts", add_bundle_options, measure, section)

if __name__ == "__main__":
    BENCH.main()
