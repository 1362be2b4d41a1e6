"""Measurements of `bench.adaptation`, one function each."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bench.adaptation.scene import PILOT, Row, Scene, answered
from bench.bootstrap import ratio
from bench.edge_process import EdgeProcess
from bench.harness import in_turn
from bench.latency.cell import PROBE_S
from bench.links.shaped import link_of
from bench.links.traces import FOLDER, replayed
from common.link.link import Link, LinkTrace
from common.link.trace import read_trace

STEADY_MBIT = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0)
_SETTLE = 15
_LOOKS, _PLAUSIBLE = 4, 1.3
"""Frames of each plan for a first look; those that are too slow at a bandwidth are left out."""
_NEAR = 0.05
_STEP_MBIT, _STEP_S = (1.5, 6.0), 8.0
_JUMP_MBIT, _JUMP_S, _LOAD_S = (0.3, 20.0), 8.0, 30.0
_REPORT_S = 0.03
"""Pause for the report that an edge sends after a frame is answered."""


def predictions(
    scene: Scene, rounds: int, picture: Callable[[int], int], device: str = PILOT
) -> dict[str, Any]:
    """Prediction errors of every plan, in turn on a steady link, and coverage of intervals."""
    scene.wire.change(link_of(3.0))
    rows: dict[bytes, list[Row]] = {digest: [] for digest in scene.plans}
    progress = scene.stages.stage("predictions")
    with scene.edge(device) as edge:
        for round_ in range(rounds):
            image = picture(round_)
            for digest, seen in rows.items():
                seen.append(answered(edge.detect(image, digest)))
            progress(round_ + 1, rounds)
    after = min(50, rounds // 2)
    return {
        "after": after,
        "plans": {scene.name(d): _prediction_row(seen, seen[after:]) for d, seen in rows.items()},
    }


def _prediction_row(seen: Sequence[Row], late: Sequence[Row]) -> dict[str, Any]:
    """Errors of one plan over all frames, and over those after something was learnt."""
    middle_ms, late_ms = _middle(seen, "latency_ms"), _middle(late, "latency_ms")
    covered = [row["low_ms"] <= row["latency_ms"] <= row["high_ms"] for row in late]
    return {
        "profile_error": median(off(r["profile_ms"], r["latency_ms"]) for r in seen),
        "profile_error_of_the_median": off(_middle(seen, "profile_ms"), middle_ms),
        "learnt_error": median(off(r["expected_ms"], r["latency_ms"]) for r in late),
        "hindsight_error": median(off(late_ms, r["latency_ms"]) for r in late),
        "covered": sum(covered) / len(covered),
        "frames": len(seen),
        **_own(seen),
    }


def steady(scene: Scene, frames: int) -> list[dict[str, Any]]:
    """The planner and every plausible fixed plan, one frame each in turn, by bandwidth."""
    found = []
    progress = scene.stages.stage("steady links")
    for done, mbit in enumerate(STEADY_MBIT, 1):
        scene.wire.change(link_of(mbit))
        # All in one process: another process would start with colder caches.
        with scene.edge(beside=True) as edge:
            looks = range(_LOOKS)
            took = {d: min(_took(edge, scene.frame(k), d) for k in looks) for d in scene.plans}
            plausible = [d for d, ms in took.items() if ms <= _PLAUSIBLE * min(took.values())]
            for k in range(_SETTLE):
                answered(edge.detect(scene.frame(k), pilot=PILOT))
            ours: list[Row] = []
            fixed: dict[bytes, list[float]] = {digest: [] for digest in plausible}
            for k, turn in in_turn(1 + len(fixed), frames):
                if turn == len(fixed):
                    ours.append(answered(edge.detect(scene.frame(k), pilot=PILOT)))
                    time.sleep(PROBE_S)
                else:
                    digest = plausible[turn]
                    fixed[digest].append(_took(edge, scene.frame(k), digest))
                    time.sleep(_REPORT_S)
        by_name = {scene.name(d): np.array(times) for d, times in fixed.items()}
        best = min(by_name, key=lambda name: float(by_name[name].mean()))
        excess = ratio(np.array([row["latency_ms"] for row in ours]), by_name[best], np.mean)
        regret = {end: each - 1 for end, each in excess.items()}
        found.append({"mbit": mbit, "best": best, "regret_mean": regret})
        progress(done, len(STEADY_MBIT))
    return found


def _took(edge: EdgeProcess, image: int, digest: bytes) -> float:
    return float(answered(edge.detect(image, digest))["latency_ms"])


def steps(scene: Scene, cycles: int, known: dict[str, Any]) -> list[dict[str, Any]]:
    """Frames and seconds until a better plan is in use, after steps between two bandwidths.

    A plan is one of the better ones if, by its own measured times, it takes at most `_NEAR` more
    than the best at the new bandwidth.
    """
    progress = scene.stages.stage("steps")
    found = []
    with scene.edge() as edge:
        scene.wire.change(link_of(_STEP_MBIT[1]))
        scene.run_for(_STEP_S, lambda image: answered(edge.detect(image)))
        for done, mbit in enumerate(_STEP_MBIT * cycles, 1):
            scene.wire.change(link_of(mbit))
            began_s = time.monotonic()
            rows = scene.run_for(_STEP_S, lambda image: answered(edge.detect(image)))
            model = HindsightModel(known, LinkTrace(((0.0, link_of(mbit)),)).at)
            limit_ms = (1 + _NEAR) * model.best_ms(0.0)
            better = [name for name in known if model.latency_ms(name, 0.0) <= limit_ms]
            in_use = [scene.name(row["plan"]) in better for row in rows]
            first = in_use.index(True) if any(in_use) else len(rows) - 1
            seconds = rows[first]["began_s"] - began_s
            found.append({"to_mbit": mbit, "frames": first, "seconds": seconds})
            progress(done, 2 * cycles)
    return found


def on_trace(
    scene: Scene, name: str, seconds: float, fixed: Sequence[str], repeats: int
) -> dict[str, Any]:
    """The planner over a trace, and fixed plans over the same, in turn; several times.

    The times of each plan by itself are measured before every turn, since the speed of a machine
    varies.
    """
    trace = read_trace(FOLDER / f"{name}.csv")
    progress = scene.stages.stage(f"trace {name}")
    digests = {plan.name: digest for digest, plan in scene.plans.items()}
    runs: dict[str, list[list[Row]]] = {plan: [] for plan in ("adaptive", *fixed)}
    looks: dict[str, list[Row]] = {plan: [] for plan in digests}
    for done, (_, plan) in enumerate(itertools.product(range(repeats), runs), 1):
        scene.wire.change(link_of(3.0))
        with scene.edge() as edge:
            for k, look in itertools.product(range(_LOOKS), looks):
                looks[look].append(answered(edge.detect(scene.frame(k), digests[look])))
        with scene.edge() as edge, replayed(scene.wire, trace) as started_s:
            asked = digests.get(plan)
            rows = scene.run_for(seconds, lambda i: answered(edge.detect(i, asked)), started_s)  # noqa: B023
        runs[plan].append(rows)
        progress(done, repeats * len(runs))
    model = HindsightModel({plan: _own(rows) for plan, rows in looks.items()}, trace.at)
    for run in runs["adaptive"]:
        for row in run:
            row |= {"plan": scene.name(row["plan"]), "best_ms": model.best_ms(row["at_s"])}
            row |= {"model_ms": model.latency_ms(row["plan"], row["at_s"])}
    took = {p: [[r["latency_ms"] for r in rs] for rs in each] for p, each in runs.items()}
    pooled = {p: np.concatenate(each) for p, each in took.items()}
    every = [row for run in runs["adaptive"] for row in run]
    regrets = [_regret(run) for run in runs["adaptive"]]
    shown = sorted(range(repeats), key=regrets.__getitem__)[repeats // 2]
    return {
        "seconds": seconds,
        "frames": {p: [len(each) for each in found] for p, found in took.items()},
        "mean_ms": {p: float(each.mean()) for p, each in pooled.items()},
        "p90_ms": {p: float(np.percentile(each, 90)) for p, each in pooled.items()},
        "regret_to_every_moment": _regret(every),
        "regrets": regrets,
        "series": [
            {
                "at_s": round(row["at_s"], 3),
                "plan": row["plan"],
                "latency_ms": round(row["latency_ms"], 2),
                "best_ms": round(row["best_ms"], 2),
                "estimated_mbit": row["uplink_bps"] and row["uplink_bps"] / 1e6,
                "mbit": _mbit(trace.at(row["at_s"])),
            }
            for row in runs["adaptive"][shown]
        ],
    }


def _regret(rows: Sequence[Row]) -> float:
    """Excess of the chosen plans over the best of every moment, both by the model."""
    return float(sum(r["model_ms"] for r in rows) / sum(r["best_ms"] for r in rows) - 1)


@dataclass(frozen=True)
class HindsightModel:
    """Model of every plan's latency at a moment of a trace, from its own measured times.

    Attributes:
        plans: `own_ms` and `uplink_bytes` of each.
        at: Returns the link at a moment; None in an outage.
    """

    plans: dict[str, dict[str, float]]
    at: Callable[[float], Link | None]

    def latency_ms(self, name: str, at_s: float) -> float:
        """Latency of one plan; in an outage, or without uplink, its own time alone."""
        plan, now = self.plans[name], self.at(at_s)
        if not plan["uplink_bytes"] or now is None:
            return plan["own_ms"]
        return plan["own_ms"] + now.rtt_ms + plan["uplink_bytes"] * 8e3 / now.uplink_bps

    def best_ms(self, at_s: float) -> float:
        """Latency of the best plan."""
        return min(self.latency_ms(name, at_s) for name in self.plans)


def load(scene: Scene, switches: int, most_s: float) -> dict[str, Any]:
    """Two threads at once while the bandwidth jumps, until `switches` switches of plans."""
    ended = threading.Event()

    def jump() -> None:
        for mbit in itertools.cycle(_JUMP_MBIT):
            scene.wire.change(link_of(mbit))
            if ended.wait(_JUMP_S):
                return

    counted: Counter[str] = Counter()
    progress = scene.stages.stage("load")
    began_s, before = time.monotonic(), scene.frames_served()
    with scene.edge("loaded-edge") as edge:
        jumping = threading.Thread(target=jump)
        jumping.start()
        try:
            while counted["switches"] < switches and time.monotonic() - began_s < most_s:
                counted.update(edge.load(2, _LOAD_S))
                counted["switches"] = scene.switches("loaded-edge")
                progress(min(counted["switches"], switches), switches)
        finally:
            ended.set()
            jumping.join()
    counted["served"] = scene.frames_served() - before
    return dict(counted)


def _own(rows: Sequence[Row]) -> dict[str, float]:
    """Median time of a plan apart from the link, and its bytes."""
    links = ("uplink", "downlink")
    own_ms = [r["latency_ms"] - sum(r["times_ms"].get(name, 0.0) for name in links) for r in rows]
    return {"own_ms": median(own_ms), "uplink_bytes": _middle(rows, "uplink_bytes")}


def _middle(rows: Sequence[Row], key: str) -> float:
    return float(median(row[key] for row in rows))


def off(expected: float, measured: float) -> float:
    """Relative error of a prediction."""
    return abs(expected / measured - 1)


def _mbit(now: Link | None) -> float:
    return 0.0 if now is None else now.uplink_bps / 1e6
