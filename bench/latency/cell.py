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
from bench.cpu import cpu_ms
from bench.latency.contenders import MEMORY, Cell, key_of
from bench.latency.stage import BenchStage
from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.errors import SplitpointError
from common.latency import costs
from common.link.link import Link

ADAPTIVE, FIXED = "Splitpoint, adaptive", "Splitpoint, fixed plan"
TUNED = "upload of tuned codec and quality"
"""Strategy: the fastest of the image uploads that our own search keeps."""
FLOAT, PLAIN = "edge-only, floating point", "plain FastAPI, JPEG q75"
WITHIN = 1.0
"""Points of AP against floating point that a baseline may lose at most."""
RTT_MS = 20.0
_LEAST_FRAMES = 5
_FAR, _FAR_FRAMES = 1.5, 10
_WARM_UP = 2
_SETTLE = 10
_REPORT_BYTES, _REPORT_CPU_S = 3000, 0.002
PROBE_S = 0.15
"""Pause for the probes that a planner sends after a frame is answered."""
_SEED = 0


@dataclass
class Contender:
    """One way to run frames in a cell, shared by the strategies that choose it.

    Attributes:
        roles: Strategies with the settings that each is meant for: "A", "B", or "AB".
        ask: Sends one picture.
        plan: The plan, if it has one that does not change.
        accurate: Whether it may be the best: it loses at most `WITHIN` points.
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

    def has_enough(self, others: "Sequence[Contender]", budget_s: float) -> bool:
        """Whether it needs no more frames: it is far from the best, or its budget is spent.

        A contender that is close to the best in some setting is measured longer; for one that is
        half as slow again as an accurate one, a few frames are enough.
        """
        if len(self.rows) < _LEAST_FRAMES:
            return False
        if sum(row["latency_ms"] for row in self.rows) / 1e3 > budget_s:
            return True
        near_ms = max(
            min(
                (
                    other.median_ms()
                    for other in others
                    if other.rows and other.accurate and setting in other.settings
                ),
                default=math.inf,
            )
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


def link_of(mbit: float) -> Link:
    """A link of this bench."""
    return Link(mbit * 1e6, mbit * 1e6, RTT_MS)


def measure_cell(
    stage: BenchStage, cell: Cell, frames: int, budget_s: float
) -> list[dict[str, Any]]:
    """Measure all contenders of a cell in turn; returns a row for each strategy.

    Args:
        stage: The running processes.
        cell: The cell, whose bandwidth the link has.
        frames: Frames of each contender.
        budget_s: Time for the frames of one contender, beyond the first few.
    """
    contenders, infeasible = who_runs(stage, cell)
    rest_s = _REPORT_BYTES * 8e-6 / cell.mbit + _REPORT_CPU_S / cell.share
    order = np.random.default_rng(_SEED)
    for setting in stage.who["splitpoint"]:
        for k in range(_SETTLE):
            stage.edge.detect(k % len(stage.images), pilot=setting)
    for k in range(_WARM_UP + frames):
        for turn in order.permutation(len(contenders)):
            contender = contenders[turn]
            if contender.has_enough(contenders, budget_s):
                continue
            row = contender.take_turn(k % len(stage.images))
            time.sleep(rest_s + PROBE_S * (ADAPTIVE in contender.roles))
            if k >= _WARM_UP:
                contender.keep(row)
    where = {"share": cell.share, "mbit": cell.mbit}
    found = [where | row for contender in contenders for row in rows_of(stage, contender)]
    return found + [where | row for row in infeasible]


def who_runs(stage: BenchStage, cell: Cell) -> tuple[list[Contender], list[dict[str, Any]]]:
    """Contenders of a cell, and rows of the strategies that have no plan."""
    who, edge = stage.who, stage.edge
    infeasible: list[dict[str, Any]] = []
    by_plan: dict[str, Contender] = {}

    def deploys(strategy: str, settings: str, plan: str) -> None:
        ask = partial(edge.detect, plan=stage.digests[plan])
        lost = stage.bundle.plan(stage.digests[plan]).predicted.accuracy_drop
        contender = by_plan.setdefault(
            plan, Contender({}, ask, plan, accurate=lost <= WITHIN, pid=stage.cloud_pid)
        )
        contender.roles[strategy] = contender.roles.get(strategy, "") + settings

    for name, plan in who["uploads"].items():
        deploys(name, "AB", plan)
    for whole in stage.bundle.plans.values():
        if whole.kind == "edge-only":
            deploys(f"edge-only, {_bits(whole)}", _fits(whole), whole.name)
    for name, cells in who["published"].items():
        for setting in MEMORY:
            told = cells[key_of(setting, cell)]
            if "plan" in told:
                deploys(name, setting, told["plan"])
            else:
                infeasible.append(_nothing(name, setting, told["infeasible"]))
    for setting, names in who["splitpoint"].items():
        deploys(FIXED, setting, _predicted_best(stage, names, cell))
        sent = [n for n in names if stage.bundle.plan(stage.digests[n]).kind == "cloud-only"]
        if sent:
            deploys(TUNED, setting, _predicted_best(stage, sent, cell))
    contenders = list(by_plan.values())
    contenders.append(Contender({FLOAT: "A"}, edge.in_float, pid=stage.cloud_pid))
    if stage.plain_pid is None:
        infeasible.append(_nothing(PLAIN, "AB", "HTTP does not pass an emulated link"))
    else:
        contenders.append(Contender({PLAIN: "AB"}, edge.plain, accurate=False, pid=stage.plain_pid))
    for setting in who["splitpoint"]:
        ask = partial(edge.detect, pilot=setting)
        contenders.append(Contender({ADAPTIVE: setting}, ask, pid=stage.cloud_pid))
    return contenders, infeasible


def rows_of(stage: BenchStage, contender: Contender) -> list[dict[str, Any]]:
    """Result rows of a contender, one for each of its strategies."""
    summary = {
        "plan": contender.plan,
        "frames": len(contender.rows),
        "failed": len(contender.errors),
        "errors": contender.errors[:3],
    }
    if contender.rows:
        summary |= _summary(stage, contender)
    return [
        {"strategy": name, "settings": settings, **summary}
        for name, settings in contender.roles.items()
    ]


def reference_accuracy(bundle: Bundle) -> float:
    """Accuracy of the floating-point network: a plan's accuracy plus its drop."""
    predicted = next(iter(bundle.plans.values())).predicted
    return predicted.accuracy + predicted.accuracy_drop


def _summary(stage: BenchStage, contender: Contender) -> dict[str, Any]:
    rows = contender.rows
    latencies = np.array([each["latency_ms"] for each in rows])
    stages: dict[str, list[float]] = {}
    for each in rows:
        for name, ms in each.get("times_ms", {}).items():
            stages.setdefault(name, []).append(ms)
    used = [each["plan"] for each in rows if "plan" in each]
    names = {digest.hex(): plan.name for digest, plan in stage.bundle.plans.items()}
    plans = {names[digest]: used.count(digest) for digest in dict.fromkeys(used)}
    return {
        "mean_ms": float(latencies.mean()),
        "p50_ms": percentile(latencies, 50),
        "p90_ms": percentile(latencies, 90),
        "p99_ms": percentile(latencies, 99),
        "latencies_ms": [round(float(ms), 2) for ms in latencies],
        "stages_ms": {name: statistics.median(values) for name, values in stages.items()},
        "uplink_bytes": statistics.mean(each["uplink_bytes"] for each in rows),
        "edge_cpu_ms": statistics.mean(each["cpu_ms"] for each in rows),
        "cloud_cpu_ms": statistics.mean(each["cloud_cpu_ms"] for each in rows),
        "accuracy": _accuracy(stage, contender, plans),
        "plans": plans,
    }


def _accuracy(stage: BenchStage, contender: Contender, plans: dict[str, int]) -> float:
    """AP on the evaluation images; of several plans, weighted by their frames."""
    if FLOAT in contender.roles:
        return reference_accuracy(stage.bundle)
    if PLAIN in contender.roles:
        plans = {stage.who["uploads"]["JPEG q75"]: 1}
    each = {n: stage.bundle.plans[stage.digests[n]].predicted.accuracy for n in plans}
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
