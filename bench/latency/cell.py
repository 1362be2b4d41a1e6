"""One cell of `bench.run_latency`: all strategies in turn, frame by frame, at one bandwidth.

Whatever else the machine does hits all alike; every round has an order of its own, since a frame
takes longer behind one that left other things in the caches. Strategies that use the same plan
share its frames: sent twice they would differ by noise only, and the least of two noisy medians
flatters a baseline. Between two turns edge and link rest for the duration of an edge's last report,
and longer behind the adaptive planner, which may probe: both would else delay another strategy.
"""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from bench.bootstrap import percentile
from bench.harness import in_turn
from bench.latency.stage import BenchStage
from bench.latency.strategies import MAX_DROP, MEMORY, Cell, key_of
from bench.links.shaped import link_of
from bench.processes import cpu_ms
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.latency import costs

ADAPTIVE, FIXED = "Splitpoint, adaptive", "Splitpoint, fixed plan"
TUNED = "upload of tuned codec and quality"
"""Strategy: the fastest of the image uploads that our own search keeps."""
FLOAT, PLAIN = "edge-only, floating point", "plain FastAPI, JPEG q75"
_LEAST_FRAMES = 5
_FAR, _FAR_FRAMES = 1.5, 10
_WARM_UP = 2
_SETTLE = 10
_REPORT_BYTES, _REPORT_CPU_S = 3000, 0.002
PROBE_S = 0.15
"""Pause for the probes that a planner sends after a frame is answered."""


@dataclass
class StrategyRun:
    """Frames of one plan or planner in a cell, shared by the strategies that choose it.

    Attributes:
        roles: Strategies with the settings that each is meant for: "A", "B", or "AB".
        ask: Sends one picture.
        plan: The plan, if it has one that does not change.
        accurate: Whether it may be the best: it loses at most `MAX_DROP` points.
        pid: Id of the process that serves it.
        rows: One row for each frame that was answered.
        errors: One line for each frame that was not.
    """

    roles: dict[str, str]
    ask: Callable[[int], dict[str, Any]]
    plan: str | None = None
    accurate: bool = True
    pid: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def take_turn(self, image: int) -> dict[str, Any]:
        """Send one picture; gives the frame's row, or one with an "error"."""
        before_ms = cpu_ms(self.pid)
        try:
            row = self.ask(image)
        except SplitpointError as error:
            return {"error": str(error)}
        return {**row, "cloud_cpu_ms": cpu_ms(self.pid) - before_ms}

    def keep(self, row: dict[str, Any]) -> None:
        """Record the row or the error of a frame."""
        if "error" in row:
            self.errors.append(row["error"])
        else:
            self.rows.append(row)

    def has_enough(self, others: "Sequence[StrategyRun]", budget_s: float) -> bool:
        """Whether it needs no more frames: it is far from the best, or its budget is spent.

        A run that is close to the best in some setting is measured longer; for one that is
        half as slow again as an accurate one, a few frames are enough.
        """
        if len(self.rows) < _LEAST_FRAMES:
            return False
        if sum(row["latency_ms"] for row in self.rows) / 1e3 > budget_s:
            return True
        able = [other for other in others if other.rows and other.accurate]
        near_ms = max(
            min((o.median_ms() for o in able if setting in o.settings), default=math.inf)
            for setting in self.settings
        )
        return len(self.rows) >= _FAR_FRAMES and self.median_ms() > _FAR * near_ms

    @property
    def settings(self) -> str:
        """Settings that its strategies are meant for."""
        return "".join(self.roles.values())

    def median_ms(self) -> float:
        """Median latency of the frames so far."""
        return float(statistics.median(row["latency_ms"] for row in self.rows))


def measure_cell(
    stage: BenchStage, cell: Cell, frames: int, budget_s: float
) -> list[dict[str, Any]]:
    """Measure all strategies of a cell in turn; returns a row for each strategy.

    Args:
        stage: The running processes.
        cell: The cell, whose bandwidth the link has.
        frames: Frames of each run.
        budget_s: Time for the frames of one run, beyond the first few.
    """
    runs, infeasible = runs_of(stage, cell)
    rest_s = _REPORT_BYTES * 8e-6 / cell.mbit + _REPORT_CPU_S / cell.share
    for setting in stage.strategies["splitpoint"]:
        for k in range(_SETTLE):
            stage.edge.detect(k % len(stage.images), pilot=setting)
    for k, turn in in_turn(len(runs), _WARM_UP + frames):
        run = runs[turn]
        if run.has_enough(runs, budget_s):
            continue
        row = run.take_turn(k % len(stage.images))
        time.sleep(rest_s + PROBE_S * (ADAPTIVE in run.roles))
        if k >= _WARM_UP:
            run.keep(row)
    where = {"share": cell.share, "mbit": cell.mbit}
    found = [where | row for run in runs for row in rows_of(stage, run)]
    return found + [where | row for row in infeasible]


def runs_of(stage: BenchStage, cell: Cell) -> tuple[list[StrategyRun], list[dict[str, Any]]]:
    """StrategyRuns of a cell, and rows of the strategies that have no plan."""
    strategies, edge = stage.strategies, stage.edge
    infeasible: list[dict[str, Any]] = []
    by_plan: dict[str, StrategyRun] = {}

    def deploys(strategy: str, settings: str, plan: str) -> None:
        ask = partial(edge.detect, plan=stage.digests[plan])
        lost = stage.bundle.plan(stage.digests[plan]).predicted.accuracy_drop
        made = StrategyRun(
            {}, ask, plan, accurate=lost is not None and lost <= MAX_DROP, pid=stage.cloud_pid
        )
        run = by_plan.setdefault(plan, made)
        run.roles[strategy] = run.roles.get(strategy, "") + settings

    for name, plan in strategies["uploads"].items():
        deploys(name, "AB", plan)
    for whole in stage.bundle.plans.values():
        if whole.kind == "edge-only":
            deploys(f"edge-only, {_bits(whole)}", _fits(whole), whole.name)
    for name, cells in strategies["published"].items():
        for setting in MEMORY:
            choice = cells[key_of(setting, cell)]
            if "plan" in choice:
                deploys(name, setting, choice["plan"])
            else:
                infeasible.append(_nothing(name, setting, choice["infeasible"]))
    for setting, names in strategies["splitpoint"].items():
        deploys(FIXED, setting, _predicted_best(stage, names, cell))
        sent = [n for n in names if stage.bundle.plan(stage.digests[n]).kind == "cloud-only"]
        if sent:
            deploys(TUNED, setting, _predicted_best(stage, sent, cell))
    runs = list(by_plan.values())
    runs.append(StrategyRun({FLOAT: "A"}, edge.in_float, pid=stage.cloud_pid))
    if stage.plain_pid is None:
        infeasible.append(_nothing(PLAIN, "AB", "HTTP does not pass an emulated link"))
    else:
        runs.append(StrategyRun({PLAIN: "AB"}, edge.plain, accurate=False, pid=stage.plain_pid))
    for setting in strategies["splitpoint"]:
        ask = partial(edge.detect, pilot=setting)
        runs.append(StrategyRun({ADAPTIVE: setting}, ask, pid=stage.cloud_pid))
    return runs, infeasible


def rows_of(stage: BenchStage, run: StrategyRun) -> list[dict[str, Any]]:
    """Result rows of a run, one for each of its strategies."""
    summary = {
        "plan": run.plan,
        "frames": len(run.rows),
        "failed": len(run.errors),
        "errors": run.errors[:3],
    }
    if run.rows:
        summary |= _summary(stage, run)
    return [
        {"strategy": name, "settings": settings, **summary} for name, settings in run.roles.items()
    ]


def reference_accuracy(bundle: Bundle) -> float:
    """Accuracy of the floating-point network: a plan's accuracy plus its drop."""
    predicted = next(iter(bundle.plans.values())).predicted
    return predicted.known_accuracy + (predicted.accuracy_drop or 0.0)


def _summary(stage: BenchStage, run: StrategyRun) -> dict[str, Any]:
    rows = run.rows
    latencies = np.array([each["latency_ms"] for each in rows])
    used = [each["plan"] for each in rows if "plan" in each]
    names = {digest: plan.name for digest, plan in stage.bundle.plans.items()}
    plans = {names[digest]: used.count(digest) for digest in dict.fromkeys(used)}
    return {
        "p50_ms": percentile(latencies, 50),
        "latencies_ms": [round(float(ms), 2) for ms in latencies],
        "uplink_bytes": statistics.mean(each["uplink_bytes"] for each in rows),
        "cloud_cpu_ms": statistics.mean(each["cloud_cpu_ms"] for each in rows),
        "accuracy": _accuracy(stage, run, plans),
        "plans": plans,
    }


def _accuracy(stage: BenchStage, run: StrategyRun, plans: dict[str, int]) -> float:
    """AP on the evaluation images; of several plans, weighted by their frames."""
    if FLOAT in run.roles:
        return reference_accuracy(stage.bundle)
    if PLAIN in run.roles:
        plans = {stage.strategies["uploads"]["JPEG q75"]: 1}
    each = {n: stage.bundle.plans[stage.digests[n]].predicted.known_accuracy for n in plans}
    return sum(each[name] * count for name, count in plans.items()) / sum(plans.values())


def _fits(plan: Plan) -> str:
    """Settings whose memory limit a plan keeps."""
    memory = plan.predicted.edge_memory_bytes
    return "".join(name for name, limit in MEMORY.items() if limit is None or memory <= limit)


def _bits(plan: Plan) -> str:
    widths = set() if plan.head is None else set(plan.head.bits.values())
    return "int8" if widths == {8} else f"W{min(widths)}-{max(widths)}"


def _predicted_best(stage: BenchStage, names: Sequence[str], cell: Cell) -> str:
    """The plan that `splitpoint explain` would name, by the profile of this edge."""
    plans = {stage.digests[name]: stage.bundle.plans[stage.digests[name]] for name in names}
    known = costs(plans, stage.rows, stage.device)
    return min(known, key=lambda cost: cost.latency_ms(link_of(cell.mbit))).plan.name


def _nothing(name: str, setting: str, why: str) -> dict[str, Any]:
    found = {"strategy": name, "settings": setting, "plan": None, "infeasible": why}
    return found | {"frames": 0, "failed": 0, "errors": []}
