"""Every way to run the network, over bandwidths and slow edges: who is the fastest where.

    python -m bench.run_latency --images DIR --annotations FILE --calibration DIR --json OUT
    python -m bench.run_latency ... --quick        # under two minutes, once the plans are searched

Real processes and real packets: a cloud, a slowed edge (`bench.slow`), and two
network namespaces with a shaped wire between them (`bench.shaped`). Needs root and Linux.

In every cell of the grid all strategies take turns, frame by frame, so that whatever else the
machine does hits all alike. Each strategy is a plan through the same edge and cloud, so only the
decision differs; two are not, to compare with: the network in floating point on the edge, and a
plain FastAPI service (`bench.plain_service`) that takes JPEGs. A strategy that errs or has no plan
is shown as such.

Two settings: A, no limit on the edge's memory; B, 4 MiB, which the whole network in int8 exceeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.contenders import MEMORY, Cell, Grid, build, key_of
from bench.edge_process import EdgeProcess, EdgeSettings
from bench.latency_report import print_table, write_all
from bench.shaped import ShapedLink, shaped
from bench.slow import slowed
from common.bundle import Bundle
from common.costs import costs
from common.errors import BundleError, SplitpointError
from common.images import list_images
from common.link import Link
from common.manifest import Plan
from common.store_file import read_tables
from common.tables import LatencyRow
from search.weights import cache_folder
from splitpoint import __version__
from splitpoint.machine import machine
from splitpoint.processes import Service
from splitpoint.progress import Stages

SHARES = (1.0, 0.25, 0.1)
MBITS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0)
RTT_MS = 20.0
MAX_DROP = 1.0
_LEAST_FRAMES = 5
_WARM_UP = 2
_SETTLE = 10
_RESAMPLES = 1000
_SEED = 0


@dataclass
class Contender:
    """One strategy in one cell.

    Attributes:
        name: For people.
        setting: "A", "B", or "AB" where memory makes no difference to it.
        ask: Sends one picture.
        plan: The plan, if it has one that does not change.
        rows: One for each frame that was answered.
        errors: One line for each that was not.
    """

    name: str
    setting: str
    ask: Callable[[int], dict[str, Any]]
    plan: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def spent_s(self) -> float:
        """On its frames."""
        return float(sum(row["latency_ms"] for row in self.rows)) / 1e3


@dataclass(frozen=True)
class Stage:
    """The machines of one share: what is the same in all of its cells."""

    bundle: Bundle
    digests: dict[str, bytes]
    who: dict[str, Any]
    rows: list[LatencyRow]
    device: str
    fixed: EdgeProcess
    adaptive: dict[str, EdgeProcess]
    cloud_pid: int
    plain_pid: int


def measure(arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """All cells."""
    grid = Grid(arguments.shares, arguments.mbits, RTT_MS, MAX_DROP)
    bundle, who = _contenders(arguments, grid, stages)
    images = list_images(arguments.images)
    images = images[:: max(1, len(images) // arguments.send)][: arguments.send]
    result: dict[str, Any] = {
        "machine": machine(),
        "commit": _commit(),
        "seed": _SEED,
        "bundle": bundle.digest.hex(),
        "search": bundle.manifest.search.model_dump(mode="json"),
        "plans": {p.name: p.predicted.model_dump(mode="json") for p in bundle.plans.values()},
        "kinds": {p.name: p.kind for p in bundle.plans.values()},
        "who": who,
        "memory": MEMORY,
        "reference_accuracy": _reference(bundle),
        "images": [path.name for path in images],
        "frames": arguments.frames,
        "rtt_ms": RTT_MS,
        "shares": {},
        "cells": [],
    }
    cells = len(grid.cells())
    progress = stages.stage("measuring")
    began_s, done = time.monotonic(), 0
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wire = stack.enter_context(shaped(_link(grid.mbits[0])))
        for share in grid.shares:
            with _stage(wire, bundle, who, images, share, folder, result) as stage:
                for mbit in grid.mbits:
                    wire.change(_link(mbit))
                    cell = Cell(share, mbit)
                    result["cells"] += _cell(stage, cell, len(images), arguments)
                    done += 1
                    left_s = (time.monotonic() - began_s) / done * (cells - done)
                    progress(done, cells, f"{left_s / 60:.0f} min left")
    return result


def _contenders(
    arguments: argparse.Namespace, grid: Grid, stages: Stages
) -> tuple[Bundle, dict[str, Any]]:
    """The bundle of all contenders, searched for if there is none yet."""
    folder: Path = arguments.contenders
    told = folder.with_suffix(".json")
    try:
        bundle = Bundle.open(folder)
        return bundle, json.loads(told.read_text())
    except (BundleError, OSError, ValueError):
        pass  # none yet, or one that was cut off
    folder.parent.mkdir(parents=True, exist_ok=True)
    _, who = build(
        folder,
        calibration=arguments.calibration,
        evaluation=arguments.images,
        annotations=arguments.annotations,
        # For the whole grid, so that a later run of more of it needs no other search.
        grid=Grid(SHARES, MBITS, grid.rtt_ms, grid.max_drop),
        cache=cache_folder("search"),
        version=__version__,
        reporter=stages,
    )
    told.write_text(json.dumps(who, indent=1))
    return Bundle.open(folder), who


@contextmanager
def _stage(
    wire: ShapedLink,
    bundle: Bundle,
    who: dict[str, Any],
    images: Sequence[Path],
    share: float,
    folder: Path,
    result: dict[str, Any],
) -> Iterator[Stage]:
    """Cloud, plain service and edges of one share; the edges become slow once they are ready."""
    digests = {plan.name: digest for digest, plan in bundle.plans.items()}
    device, tables = f"{share:g} of a core", folder / f"{share:g}.json"
    with ExitStack() as stack:
        slow = None if share >= 1 else stack.enter_context(slowed(share))
        result["shares"][f"{share:g}"] = {"measured": 1.0 if slow is None else slow.measured}
        _profile(bundle, device, tables, () if slow is None else slow.prefix)
        command = ["cloud", "--bundle", str(bundle.root), "--host", wire.cloud.address]
        command += ["--grpc-port", "0", "--rest-port", "0"]
        cloud = Service(command, folder / f"cloud-{share:g}.log", prefix=wire.cloud.prefix)
        stack.enter_context(cloud)
        plain = stack.enter_context(_plain_service(wire, bundle))
        address = f"{wire.cloud.address}:{cloud.ready['grpc']}"

        def edge(name: str, plans: Sequence[bytes], *, adaptive: bool) -> EdgeProcess:
            settings = EdgeSettings(
                bundle=bundle.root,
                images=images,
                cloud=address,
                device=device if adaptive else name,
                tables=tables,
                adaptive=adaptive,
                plans=plans,
                plain=f"{wire.cloud.address}:{_PLAIN_PORT}",
            )
            process = EdgeProcess(settings, wire.edge.prefix)
            stack.enter_context(process)
            if slow is not None:
                slow.take(process.pid)
            return process

        adaptive = {
            setting: edge(setting, [digests[name] for name in names], adaptive=True)
            for setting, names in who["splitpoint"].items()
        }
        fixed = edge("fixed", [], adaptive=False)
        yield Stage(
            bundle=bundle,
            digests=digests,
            who=who,
            rows=read_tables(tables),
            device=device,
            fixed=fixed,
            adaptive=adaptive,
            cloud_pid=cloud.ready["pid"],
            plain_pid=plain,
        )


def _cell(
    stage: Stage, cell: Cell, images: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """All contenders of a cell in turn; returns a row for each."""
    contenders, infeasible = _who_runs(stage, cell)
    for each in stage.adaptive.values():
        for k in range(_SETTLE):
            each.detect(k % images)
    for k in range(_WARM_UP + arguments.frames):
        for contender in contenders:
            enough = len(contender.rows) >= _LEAST_FRAMES
            if enough and contender.spent_s() > arguments.budget:
                continue
            pid = stage.plain_pid if contender.name == PLAIN else stage.cloud_pid
            before_ms = _cpu_ms(pid)
            try:
                row = contender.ask(k % images)
            except SplitpointError as error:
                row = {"error": str(error)}
            if k < _WARM_UP:
                continue
            if "error" in row:
                contender.errors.append(row["error"])
            else:
                contender.rows.append({**row, "cloud_cpu_ms": _cpu_ms(pid) - before_ms})
    found = [_row(stage, cell, contender) for contender in contenders]
    return found + infeasible


FLOAT, PLAIN = "edge-only, floating point", "plain FastAPI, JPEG q75"


def _who_runs(stage: Stage, cell: Cell) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Contenders of a cell, and rows of those that have no plan."""
    who, fixed = stage.who, stage.fixed
    infeasible: list[dict[str, Any]] = []
    contenders = [
        Contender(name, "AB", _by(fixed, stage.digests[plan]), plan)
        for name, plan in who["uploads"].items()
    ]
    contenders.append(Contender(PLAIN, "AB", fixed.plain))
    contenders.append(Contender(FLOAT, "A", fixed.in_float))
    whole = [p for p in stage.bundle.plans.values() if p.kind == "edge-only"]
    for plan in whole:
        settings = _fits(plan)
        contenders.append(
            Contender(
                f"edge-only, {_bits(plan)}",
                settings,
                _by(fixed, stage.digests[plan.name]),
                plan.name,
            )
        )
    for name, cells in who["published"].items():
        chosen = {setting: cells[key_of(setting, cell)] for setting in MEMORY}
        for setting, told in chosen.items():
            if "plan" not in told:
                infeasible.append(_nothing(cell, name, setting, told["infeasible"]))
                continue
            same = [c for c in contenders if c.name == name and c.plan == told["plan"]]
            if same:
                same[0].setting += setting
                continue
            ask = _by(fixed, stage.digests[told["plan"]])
            contenders.append(Contender(name, setting, ask, told["plan"]))
    for setting, names in who["splitpoint"].items():
        best = _predicted_best(stage, names, cell)
        ask = _by(fixed, stage.digests[best])
        contenders.append(Contender("Splitpoint, fixed plan", setting, ask, best))
        adaptive = stage.adaptive[setting]
        contenders.append(Contender("Splitpoint, adaptive", setting, adaptive.detect))
    return contenders, infeasible


def _by(edge: EdgeProcess, digest: bytes) -> Callable[[int], dict[str, Any]]:
    return lambda image: edge.detect(image, digest)


def _fits(plan: Plan) -> str:
    """Settings whose memory a plan keeps."""
    memory = plan.predicted.edge_memory_bytes
    return "".join(name for name, limit in MEMORY.items() if limit is None or memory <= limit)


def _bits(plan: Plan) -> str:
    widths = set() if plan.head is None else set(plan.head.bits.values())
    return "int8" if widths == {8} else f"W{min(widths)}-{max(widths)}"


def _predicted_best(stage: Stage, names: Sequence[str], cell: Cell) -> str:
    """The plan that `splitpoint explain` would name, by the profile of this edge."""
    plans = {stage.digests[name]: stage.bundle.plans[stage.digests[name]] for name in names}
    known = costs(plans, stage.rows, stage.device)
    return min(known, key=lambda cost: cost.latency_ms(_link(cell.mbit))).plan.name


def _row(stage: Stage, cell: Cell, contender: Contender) -> dict[str, Any]:
    """What a contender came to."""
    rows = contender.rows
    row: dict[str, Any] = {
        "share": cell.share,
        "mbit": cell.mbit,
        "strategy": contender.name,
        "settings": contender.setting,
        "plan": contender.plan,
        "frames": len(rows),
        "errors": contender.errors[:3],
        "failed": len(contender.errors),
    }
    if not rows:
        return row
    latencies = np.array([each["latency_ms"] for each in rows])
    stages: dict[str, list[float]] = {}
    for each in rows:
        for name, ms in each.get("times_ms", {}).items():
            stages.setdefault(name, []).append(ms)
    used = [each["plan"] for each in rows if "plan" in each]
    names = {digest.hex(): plan.name for digest, plan in stage.bundle.plans.items()}
    plans = {names[digest]: used.count(digest) for digest in dict.fromkeys(used)}
    return row | {
        "p50_ms": _with_interval(latencies, 50),
        "p90_ms": _with_interval(latencies, 90),
        "p99_ms": _with_interval(latencies, 99),
        "latencies_ms": [round(float(ms), 2) for ms in latencies],
        "stages_ms": {name: statistics.median(values) for name, values in stages.items()},
        "uplink_bytes": statistics.mean(each["uplink_bytes"] for each in rows),
        "edge_cpu_ms": statistics.mean(each["cpu_ms"] for each in rows),
        "cloud_cpu_ms": statistics.mean(each["cloud_cpu_ms"] for each in rows),
        "accuracy": _accuracy(stage, contender, plans),
        "plans": plans,
    }


def _accuracy(stage: Stage, contender: Contender, plans: dict[str, int]) -> float | None:
    """AP on the evaluation images; of several plans, weighted by their frames."""
    if contender.name == FLOAT:
        return _reference(stage.bundle)
    if contender.name == PLAIN:
        name = stage.who["uploads"]["JPEG q75"]
        return stage.bundle.plans[stage.digests[name]].predicted.accuracy
    each = {n: stage.bundle.plans[stage.digests[n]].predicted.accuracy for n in plans}
    return sum(each[name] * count for name, count in plans.items()) / sum(plans.values())


def _nothing(cell: Cell, name: str, setting: str, why: str) -> dict[str, Any]:
    return {
        "share": cell.share,
        "mbit": cell.mbit,
        "strategy": name,
        "settings": setting,
        "plan": None,
        "frames": 0,
        "failed": 0,
        "errors": [],
        "infeasible": why,
    }


def _with_interval(values: np.ndarray[Any, Any], percentile: float) -> dict[str, float]:
    """A percentile with its bootstrap 95 % interval."""
    rng = np.random.default_rng(_SEED)
    picks = rng.integers(0, len(values), (_RESAMPLES, len(values)))
    low, high = np.percentile(np.percentile(values[picks], percentile, axis=1), (2.5, 97.5))
    value = float(np.percentile(values, percentile))
    return {"value": value, "low": float(low), "high": float(high)}


def _reference(bundle: Bundle) -> float:
    """AP of the network in floating point: that of a plan plus what it lost."""
    predicted = next(iter(bundle.plans.values())).predicted
    return predicted.accuracy + predicted.accuracy_drop


def _cpu_ms(pid: int) -> float:
    """CPU time of all threads of a process so far."""
    total_ns = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        try:
            total_ns += int(path.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            continue  # a thread that has just ended
    return total_ns / 1e6


_PLAIN_PORT = 18_080


@contextmanager
def _plain_service(wire: ShapedLink, bundle: Bundle) -> Iterator[int]:
    """The rival in the cloud's namespace, where no other port is taken; gives its pid."""
    command = [*wire.cloud.prefix, sys.executable, "-m", "bench.plain_service"]
    command += ["--bundle", str(bundle.root), "--host", wire.cloud.address]
    command += ["--port", str(_PLAIN_PORT)]
    with subprocess.Popen(command) as process:  # noqa: S603 - our own
        try:
            _wait_for_port(wire, process)
            yield process.pid
        finally:
            process.terminate()


def _wait_for_port(wire: ShapedLink, process: "subprocess.Popen[bytes]") -> None:
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
    command = [*wire.cloud.prefix, sys.executable, "-c", code]
    command += [wire.cloud.address, str(_PLAIN_PORT)]
    until_s = time.monotonic() + 60
    while subprocess.run(command, capture_output=True, check=False).returncode:  # noqa: S603
        if process.poll() is not None or time.monotonic() > until_s:
            raise SplitpointError("the plain service did not start")
        time.sleep(0.2)


def _profile(bundle: Bundle, device: str, tables: Path, prefix: Sequence[str]) -> None:
    command = [sys.executable, "-m", "splitpoint.cli", "profile", "--bundle", str(bundle.root)]
    command += ["--device", device, "--tables", str(tables), "--budget", "40"]
    for start, options in ((prefix, []), ((), ["--cloud-side"])):
        extra = ["--device", "cloud-machine"] if options else []
        done = [*start, *command, *extra, *options]
        subprocess.run(done, check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"


def _link(mbit: float) -> Link:
    return Link(mbit * 1e6, mbit * 1e6, RTT_MS)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="COCO-format pictures")
    parser.add_argument("--annotations", type=Path, required=True, help="their instances file")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--contenders", type=Path, default=cache_folder("contenders") / "bundle")
    parser.add_argument("--shares", type=_numbers, default=SHARES, help="cores of the edge")
    parser.add_argument("--mbits", type=_numbers, default=MBITS)
    parser.add_argument("--frames", type=int, default=20, help="of each strategy in each cell")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for each, at the most")
    parser.add_argument("--send", type=int, default=24, help="pictures to send, spread evenly")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shares, arguments.mbits = (0.25,), (1.0, 8.0)
        arguments.frames, arguments.budget = 5, 1.0
    with Stages() as stages:
        result = measure(arguments, stages)
    write_all(result, arguments.json)
    print_table(result)


if __name__ == "__main__":
    main()
