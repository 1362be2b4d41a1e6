"""Latency of every way to run the network, over bandwidths and slow edges.

    splitpoint bench latency --images DIR --annotations FILE --calibration DIR --json OUT
    python -m bench.run_latency ...                # the same
    ... --quick                                    # two cells, once the plans are searched

Real processes and real packets: a cloud, a slowed edge (`bench.slow`), and two network namespaces
with a shaped wire between them (`bench.links.shaped`). That needs root and Linux; without, links
are emulated in the edge's process (`--emulate`) and only a whole core can be measured.

In every cell of the grid all strategies take turns, frame by frame (`bench.latency.cell`). Each is
a plan through the same edge and cloud, so only the decision differs; two are not, to compare with:
the network in floating point on the edge, and a plain FastAPI service (`bench.micro.plain_service`)
that takes JPEGs. Over traces of changing links they run one after the other
(`bench.latency.trace`). A strategy that errs or has no plan is shown as such.

Two settings: A, no limit on the edge's memory; B, 4 MiB, which the whole network in int8 exceeds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.latency.cell import RTT_MS, link_of, measure_cell, reference_accuracy
from bench.latency.contenders import MBITS, MEMORY, SHARES, Cell, LatencyGrid, build
from bench.latency.report import print_table, write_all
from bench.latency.stage import BenchStage, stage
from bench.latency.trace import measure_trace
from bench.links.shaped import ShapedLink, can_shape, emulated, shaped
from bench.links.traces import TRACES
from bench.machine import machine
from common.bundle.bundle import Bundle
from common.errors import BundleError, SettingsError, SplitpointError
from common.imaging.images import list_images
from common.progress import Stages
from common.version import __version__
from search.zoo.download import cache_folder

MAX_DROP = 1.0
TRACED_SHARE = 0.25
TRACE_S = 30.0
PROFILE_S, QUICK_PROFILE_S = 40.0, 8.0


def measure(arguments: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Measure all cells, then all traces."""
    grid = LatencyGrid(arguments.shares, arguments.mbits, RTT_MS, MAX_DROP)
    bundle, who = _contenders(arguments, grid, stages)
    images = list_images(arguments.images)
    images = images[:: max(1, len(images) // arguments.send)][: arguments.send]
    result = _described(arguments, bundle, who, images)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        real = None if arguments.emulate else stack.enter_context(shaped(link_of(grid.mbits[0])))
        progress = stages.stage("measuring")
        cells, began_s = grid.cells(), time.monotonic()
        for share, mbits in _groups(grid, real):
            wire = real or emulated(link_of(mbits[0]))
            result["congestion_control"] = wire.congestion
            profile_s = QUICK_PROFILE_S if arguments.quick else PROFILE_S
            with stage(wire, bundle, who, images, share, folder, profile_s) as running:
                result["shares"][f"{share:g}"] = {"measured": running.share}
                for mbit in mbits:
                    wire.change(link_of(mbit))
                    cell = Cell(share, mbit)
                    result["cells"] += measure_cell(
                        running, cell, arguments.frames, arguments.budget
                    )
                    # A run that is cut off leaves what it has measured.
                    arguments.json.write_text(json.dumps(result) + "\n")
                    done = 1 + cells.index(cell)
                    left_s = (time.monotonic() - began_s) / done * (len(cells) - done)
                    progress(done, len(cells), f"{left_s / 60:.0f} min left")
                if share == TRACED_SHARE:
                    result["traces"] += _traces(running, share, arguments, stages)
    return result


def _groups(grid: LatencyGrid, real: ShapedLink | None) -> Iterator[tuple[float, Sequence[float]]]:
    """Group bandwidths by the processes that serve them: all of a share, if the wire can change."""
    for share in grid.shares:
        if real is not None:
            yield share, grid.mbits
        else:
            yield from ((share, [mbit]) for mbit in grid.mbits)


def _traces(
    running: BenchStage, share: float, arguments: argparse.Namespace, stages: Stages
) -> list[dict[str, Any]]:
    if running.wire.left_to_edges is not None:
        return []
    return [
        row
        for name in arguments.traces
        for row in measure_trace(
            running, share, name, arguments.trace_seconds, stages.stage(f"trace {name}")
        )
    ]


def _described(
    arguments: argparse.Namespace, bundle: Bundle, who: dict[str, Any], images: Sequence[Path]
) -> dict[str, Any]:
    """A result without its measurements."""
    return {
        "machine": machine(),
        "software_version": __version__,
        "commit": _commit(),
        "bundle": bundle.digest.hex(),
        "search": bundle.manifest.search.model_dump(mode="json"),
        "plans": {p.name: p.predicted.model_dump(mode="json") for p in bundle.plans.values()},
        "kinds": {p.name: p.kind for p in bundle.plans.values()},
        "who": who,
        "memory": MEMORY,
        "reference_accuracy": reference_accuracy(bundle),
        "images": [path.name for path in images],
        "frames": arguments.frames,
        "budget_s": arguments.budget,
        "rtt_ms": RTT_MS,
        "wire": "emulated in the edge's process" if arguments.emulate else "relay",
        "shares": {},
        "cells": [],
        "traces": [],
    }


def _contenders(
    arguments: argparse.Namespace, grid: LatencyGrid, stages: Stages
) -> tuple[Bundle, dict[str, Any]]:
    """Open the bundle of all contenders; search for it if there is none yet."""
    folder: Path = arguments.contenders
    told = folder.with_suffix(".json")
    try:
        known = Bundle.open(folder), json.loads(told.read_text())
    except (BundleError, OSError, ValueError):
        pass  # none yet, or one that was cut off
    else:
        found = datetime.fromtimestamp(told.stat().st_mtime).astimezone()
        stages.stage(f"taking contenders found {found:%Y-%m-%d %H:%M}")(1, 1, f"from {folder}")
        return known
    folder.parent.mkdir(parents=True, exist_ok=True)
    _, who = build(
        folder,
        calibration=arguments.calibration,
        evaluation=arguments.images,
        annotations=arguments.annotations,
        # The whole grid, so that a later run of more of it needs no other search.
        grid=LatencyGrid(SHARES, MBITS, grid.rtt_ms, grid.max_drop),
        cache=cache_folder("search"),
        version=__version__,
        reporter=stages,
    )
    told.write_text(json.dumps(who, indent=1))
    return Bundle.open(folder), who


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    return done.stdout.strip() or "unknown"


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in _words(text))


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("latency", description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="COCO-format pictures")
    parser.add_argument("--annotations", type=Path, required=True, help="their instances file")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--contenders", type=Path, default=cache_folder("contenders") / "bundle")
    parser.add_argument("--shares", type=_numbers, default=SHARES, help="cores of the edge")
    parser.add_argument("--mbits", type=_numbers, default=MBITS)
    parser.add_argument("--frames", type=int, default=40, help="of each strategy in each cell")
    parser.add_argument("--budget", type=float, default=16.0, help="seconds for each, at the most")
    parser.add_argument("--send", type=int, default=24, help="pictures to send, spread evenly")
    parser.add_argument(
        "--traces", type=_words, default=("drive", "outage"), help="at a quarter of a core"
    )
    parser.add_argument("--trace-seconds", type=float, default=TRACE_S)
    parser.add_argument("--emulate", action="store_true", help="links in the edge's process")
    parser.add_argument("--quick", action="store_true", help="two cells, few frames")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.shares, arguments.mbits, arguments.traces = (0.25,), (3.0, 16.0), ()
        arguments.frames, arguments.budget = 5, 1.0
    if not arguments.emulate and not can_shape():
        sys.stderr.write("links are emulated in the edge's process: shaping real ones needs root\n")
        arguments.emulate = True
    if arguments.emulate:
        arguments.shares = (1.0,)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Validate the arguments before minutes have passed.

    Raises:
        SettingsError: If something cannot be measured.
    """
    unknown = set(arguments.traces) - set(TRACES)
    if unknown:
        raise SettingsError(f"--traces {', '.join(unknown)}: expected some of {', '.join(TRACES)}")
    for name, values, known in (
        ("--mbits", arguments.mbits, MBITS),
        ("--shares", arguments.shares, SHARES),
    ):
        if not values or set(values) - set(known):
            raise SettingsError(
                f"{name}: expected some of {', '.join(f'{each:g}' for each in known)}, "
                "which the contenders are searched for"
            )
    if not (arguments.frames > 0 and arguments.budget > 0 and arguments.send > 0):
        raise SettingsError("--frames, --budget and --send: expected positive numbers")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write.

    Raises:
        SplitpointError: If something cannot be measured, or measured honestly.
    """
    arguments = _parsed(words)
    with Stages() as stages:
        result = measure(arguments, stages)
    write_all(result, arguments.json)
    print_table(result)


if __name__ == "__main__":
    try:
        main()
    except SplitpointError as error:
        sys.exit(f"error: {error}")
