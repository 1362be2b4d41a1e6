"""How the cloud serves more and more edges, and how the search takes larger and larger networks.

    python -m bench.scaling --bundle DIR --images DIR [--seconds 4] [--streams 1,2,4,8,16,32,64]
    python -m bench.scaling --only search              # what is not measured again is kept

Edges: a real `splitpoint cloud`, and N streams to it, each with one frame in flight over a gRPC
channel of its own. The streams are threads of this process, which does nothing else meanwhile;
their frames were cut before. On the same machine the cloud does not get what they take, so that is
told too (`load_cpu_ms`), and so is what others took (`others_cores`), which should be nothing. Two
plans take turns: the cheapest split plan with the context coder and the JPEG upload, as
`bench.parts` chooses them. A turn counts from when every stream has had an answer: then as many
frames wait as ever will.

Search: the stages that depend on the structure of a network alone, for the zoo's networks with
random weights. Structure alone decides how long they take, so no weights need be fetched. Costs of
the minimum cut and errors of the allocation are made up, from a seed.
"""

import argparse
import json
import os
import resource
import statistics
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.cpu import cpu_ms
from bench.parts import cheapest_split, upload
from common.bundle import Bundle
from common.errors import SplitpointError
from common.images import letterbox, list_images, read_image
from common.messages import microseconds
from common.rpc import splitpoint_pb2 as pb
from edge.client import CloudClient
from edge.head import open_plans
from edge.transport import GrpcTransport
from search.allocate.exact import solve_exact
from search.allocate.problem import Choice, Problem, narrowest
from search.cuts import enumerate_cuts, undominated
from search.graph import Graph
from search.importer import import_module
from search.passes import optimise
from search.quantization.widths import WIDTHS
from search.strategies.costs import CostGraph
from search.strategies.min_cut import dads, qdmp
from search.zoo.registry import load_model, zoo_model
from splitpoint import __version__
from splitpoint.machine import machine
from splitpoint.processes import Service
from splitpoint.progress import Stages

STREAMS = (1, 2, 4, 8, 16, 32, 64)
NETWORKS = ("yolov3-tiny", "yolov3", "yolov3-spp")
_RESULT = Path(__file__).parent / "results" / "scaling.json"
_PARTS = ("edges", "search")
_PICTURES = 16
_TURNS = 2
_PAUSE_S = 0.05
_ROUNDS = 3
_HEADER = struct.pack("<iiiQ", 0, 2, 0, 0)
"""Of a Darknet weights file: version 0.2.0, no images seen."""
_CHUNK = 1 << 20

T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """One frame: when its answer was read, by `time.perf_counter`, and how long it took."""

    at_s: float
    latency_ms: float


@dataclass(frozen=True)
class Turn:
    """One plan's turn.

    Attributes:
        seconds: That counted.
        answered: Frames that were answered in them.
        errors: One line for each frame that was not answered, of the whole turn.
        cloud_cpu_ms: CPU time of the cloud.
        load_cpu_ms: CPU time of this process.
        all_cpu_ms: CPU time of the whole machine, and what its host took from it.
    """

    seconds: float
    answered: list[Answered]
    errors: list[str]
    cloud_cpu_ms: float
    load_cpu_ms: float
    all_cpu_ms: float

    @property
    def others_ms(self) -> float:
        """CPU time of whoever else was at work, who should have been nobody."""
        return max(0.0, self.all_cpu_ms - self.cloud_cpu_ms - self.load_cpu_ms)


@dataclass
class Load:
    """What the streams of one turn share; appending to a list is atomic."""

    had_one: list[threading.Event]
    ended: threading.Event = field(default_factory=threading.Event)
    answered: list[Answered] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Stream:
    """One edge that has nothing to do but send and wait.

    Args:
        client: Its way to the cloud.
        number: Which stream it is, from zero; each begins with another picture.
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
        """As an edge does: the next frame tells the cloud what this one took."""
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
    """Throughput and latency by number of streams and plan."""
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
    """What the turns of one plan came to; without an answer, only how many frames failed."""
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
    """What an edge would send of pictures spread over the folder."""
    opened = open_plans(bundle, [digest])[digest]
    detector = bundle.manifest.detector
    paths = list_images(images)
    frames = []
    for path in paths[:: max(1, len(paths) // _PICTURES)][:_PICTURES]:
        picture = read_image(path)
        cut = opened.cut(letterbox(picture, (detector.input_height, detector.input_width)))
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


def measure_search(stages: Stages) -> dict[str, Any]:
    """How long the search's stages take, by network."""
    rows = []
    progress = stages.stage("searching larger networks")
    for done, name in enumerate(NETWORKS, 1):
        rows.append(_network_row(name))
        progress(done, len(NETWORKS))
    return {
        "machine": machine(),
        "software_version": __version__,
        "weights": "random",
        "rounds": _ROUNDS,
        "rows": rows,
    }


def _network_row(name: str) -> dict[str, Any]:
    """Medians of all stages for one network."""
    with random_weights(name) as weights:
        read_s, graph = _median_s(lambda: read_graph(name, weights))
    cuts_s, (cuts, kept) = _median_s(lambda: _cuts(graph))
    costs = [made_up_costs(graph, seed) for seed in range(_ROUNDS)]
    problems = [made_up_problem(graph, seed) for seed in range(_ROUNDS)]
    exact_s = [_timed_s(partial(solve_exact, problem))[0] for problem in problems]
    return {
        "network": name,
        "nodes": len(graph.nodes) - 1,
        "convolutions": sum(node.op == "conv" for node in graph.nodes),
        "parameters": sum(node.parameters for node in graph.nodes),
        "read_s": read_s,
        "cuts": cuts,
        "undominated_cuts": kept,
        "cuts_s": cuts_s,
        "dads_s": statistics.median(_timed_s(partial(dads, each))[0] for each in costs),
        "qdmp_s": statistics.median(_timed_s(partial(qdmp, each))[0] for each in costs),
        "allocation_s": statistics.median(exact_s),
        "allocations_s": exact_s,
    }


@contextmanager
def random_weights(name: str, seed: int = 0) -> Iterator[Path]:
    """A weights file as long as a network's own; removed in the end.

    All values are positive, because variances are among them.
    """
    size_bytes = zoo_model(name).weights.size_bytes
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as folder:
        path = Path(folder) / f"{name}.weights"
        with path.open("wb") as file:
            file.write(_HEADER)
            left = (size_bytes - len(_HEADER)) // 4
            while left:
                values = rng.random(min(left, _CHUNK), np.float32) + np.float32(0.5)
                file.write(values.astype("<f4").tobytes())
                left -= len(values)
        yield path


def read_graph(name: str, weights: Path) -> Graph:
    """From a weights file to the graph that the search works on."""
    module = load_model(name, weights=weights)
    return optimise(import_module(module, module.input_size))


def made_up_costs(graph: Graph, seed: int) -> CostGraph:
    """About the times of a slow edge, a fast cloud and a 3 Mbit/s uplink at 1 bit per element."""
    rng = np.random.default_rng(seed)

    def around(value: float) -> float:
        return value * float(rng.lognormal(0, 0.5))

    edge_ms = {n.name: around(n.macs / 4e7 + n.elements / 1e6) for n in graph.nodes}
    return CostGraph(
        graph,
        edge_ms=edge_ms,
        cloud_ms={name: around(ms / 8) for name, ms in edge_ms.items()},
        transmit_ms={n.name: around(n.elements / 3e3) for n in graph.nodes},
        rtt_ms=20.0,
    )


def made_up_problem(graph: Graph, seed: int) -> Problem:
    """A width for the weights and the output of every convolution.

    Sizes are the network's, errors made up as in `bench.allocation`: about fourfold with each bit.
    """
    rng = np.random.default_rng(seed)
    layers = [node for node in graph.nodes if node.weight is not None]
    weights = tuple(
        _choice(rng, f"w {n.name}", n.weight.size) for n in layers if n.weight is not None
    )
    activations = tuple(_choice(rng, f"a {node.name}", node.elements) for node in layers)
    live = tuple(
        tuple(sorted({k, max(0, k - 1), max(0, k - int(rng.integers(1, 9)))}))
        for k in range(len(layers))
    )
    least = narrowest(Problem(weights, activations, live, memory_bits=None))
    needed_bits = least.weight_bits + least.peak_bits
    limit_bits = int(needed_bits * rng.uniform(1.05, 3.0))
    return Problem(weights, activations, live, memory_bits=limit_bits)


def _choice(rng: np.random.Generator, name: str, elements: int) -> Choice:
    scale = float(np.exp(rng.normal(0, 2)))
    errors = tuple(scale * 4.0**-bits * float(rng.uniform(0.7, 1.3)) for bits in WIDTHS)
    return Choice(name, elements, WIDTHS, errors)


def _cuts(graph: Graph) -> tuple[int, int]:
    """How many there are, and how many of them are worth looking at."""
    cuts = enumerate_cuts(graph)
    return len(cuts), len(undominated(graph, cuts))


def _median_s(call: Callable[[], T]) -> tuple[float, T]:
    """Median time of a few calls, and what the last one gave."""
    times_s = []
    for _ in range(_ROUNDS):
        took_s, result = _timed_s(call)
        times_s.append(took_s)
    return statistics.median(times_s), result


def _timed_s(call: Callable[[], T]) -> tuple[float, T]:
    started_s = time.perf_counter()
    result = call()
    return time.perf_counter() - started_s, result


def print_edges(found: Mapping[str, Any], console: Console) -> None:
    """For people."""
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


def print_search(found: Mapping[str, Any], console: Console) -> None:
    """For people."""
    title = f"The search's stages in seconds, random weights, medians of {found['rounds']}"
    table = Table("network", title=title, title_justify="left")
    columns = {
        "convolutions": "layers",
        "read_s": "read",
        "cuts": "cuts",
        "undominated_cuts": "kept",
        "cuts_s": "find",
        "dads_s": "DADS",
        "qdmp_s": "QDMP",
        "allocation_s": "widths",
    }
    for column in columns.values():
        table.add_column(column, justify="right")
    for row in found["rows"]:
        values = [row[key] for key in columns]
        cells = [f"{v:.4f}" if isinstance(v, float) else f"{v:,}" for v in values]
        table.add_row(row["network"], *cells)
    console.print(table)
    console.print("find: enumerate cuts; kept: not dominated by another; widths: exact allocation")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="that the cloud serves")
    parser.add_argument("--images", type=Path, help="pictures to send")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each plan and number")
    parser.add_argument("--streams", type=_numbers, default=STREAMS, help="numbers of edges")
    parser.add_argument("--only", choices=_PARTS, help="measure one of both, keep the other")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else list(_PARTS)
    if "edges" in wanted and None in (arguments.bundle, arguments.images):
        parser.error("edges are measured with --bundle and --images")
    path: Path = arguments.json
    result = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    with Stages() as stages:
        if "edges" in wanted:
            result["edges"] = measure_edges(arguments, stages)
        if "search" in wanted:
            result["search"] = measure_search(stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    if "edges" in wanted:
        print_edges(result["edges"], console)
    if "search" in wanted:
        print_search(result["search"], console)


if __name__ == "__main__":
    main()
