"""Every strategy over the same changing link, one after the other, each from the trace's start.

Frames follow each other without a pause. A frame that fails is counted and shown; the time that it
took to fail is lost for its strategy.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.latency.cell import StrategyRun, rows_of, runs_of
from bench.latency.stage import BenchStage
from bench.latency.strategies import MBITS, Cell
from bench.links.traces import FOLDER, replayed
from common.link.link import LinkTrace
from common.link.trace import read_trace


def measure_trace(
    stage: BenchStage, share: float, name: str, seconds: float, progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Measure all strategies over a trace; returns a row for each.

    Published strategies and the fixed plan choose for the trace's median bandwidth: a choice that
    is made once cannot follow the trace.

    Args:
        stage: The running processes.
        share: Share of a core, on the edge.
        name: Name of the trace.
        seconds: Duration of it.
        progress: Called after each run.
    """
    trace = read_trace(FOLDER / f"{name}.csv")
    runs, infeasible = runs_of(stage, Cell(share, usual_mbit(trace)))
    found: list[dict[str, Any]] = []
    for done, run in enumerate(runs, 1):
        _play(stage, run, trace, seconds)
        found += rows_of(stage, run)
        progress(done, len(runs))
    where = {"share": share, "trace": name, "seconds": seconds}
    return [where | row for row in found + infeasible]


def usual_mbit(trace: LinkTrace) -> float:
    """The bandwidth of the grid that is nearest to the median over a trace's steps."""
    known = [math.log(link.uplink_bps / 1e6) for _, link in trace.steps if link is not None]
    median = statistics.median(known)
    return min(MBITS, key=lambda mbit: abs(math.log(mbit) - median))


def _play(stage: BenchStage, run: StrategyRun, trace: LinkTrace, seconds: float) -> None:
    for k in range(2):  # not the first frames of a process, which are slower than all others
        run.take_turn(k)
    with replayed(stage.wire, trace) as started_s:
        k = 0
        while time.monotonic() - started_s < seconds:
            run.keep(run.take_turn(k % len(stage.images)))
            k += 1
