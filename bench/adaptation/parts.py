"""Measurements of `bench.adaptation`, one function each."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.adaptation.scene import PILOT, Scene, answered, link, median
from bench.bootstrap import Values, ratio
from bench.edge_process import EdgeProcess
from bench.latency.cell import PROBE_S
from bench.links.traces import FOLDER, replayed
from common.link.link import Link, LinkTrace
from common.link.trace import read_trace

STEADY_MBIT = (1.0, 2.0, 3.0, 5.0, 8.0, 16.0)
_SETTLE = 15
_LOOKS, _PLAUSIBLE = 4, 1.3
"""Frames of each plan for a first look; those that are too slow at a bandwidth are left out."""
_NEAR = 0.05
_JUMP_S, _LOAD_S = 8.0, 30.0
_REPORT_S = 0.03
"""Pause for the report that an edge sends after a frame is answered."""
_SEED = 0


def predictions(
    scene: Scene, rounds: int, picture: Callable[[int], int], device: str = PILOT
) -> dict[str, Any]:
    """Prediction errors of every plan, in turn on a steady link, and coverage of intervals."""
    scene.wire.change(link(3.0))
    rows: dict[str, list[dict[str, Any]]] = {digest: [] for digest in scene.plans}
    progress = scene.stages.stage("predictions")
    with scene.edge(device) as edge:
        for round_ in range(rounds):
            image = picture(round_)
            for digest, seen in rows.items():
                seen.append(answered(edge.detect(image, bytes.fromhex(digest))))
            progress(round_ + 1, rounds)
    learnt = min(50, rounds // 2)
    found = {}
    for digest, seen in rows.items():
        late = seen[learnt:]
        middle_ms = median([r["latency_ms"] for r in late])
        found[scene.name(digest)] = {
            "latency_ms": median([r["latency_ms"] for r in seen]),
            "profile_error": median([off(r["profile_ms"], r["latency_ms"]) for r in seen]),
            "profile_error_of_the_median": off(
                median([r["profile_ms"] for r in seen]), median([r["latency_ms"] for r in seen])
            ),
            "learnt_error": median([off(r["expected_ms"], r["latency_ms"]) for r in late]),
            "hindsight_error": median([off(middle_ms, r["latency_ms"]) for r in late]),
            "covered": float(
                np.mean([r["low_ms"] <= r["latency_ms"] <= r["high_ms"] for r in late])
            ),
            "frames": len(seen),
            "own_ms": own_ms(seen),
            "uplink_bytes": median([r["uplink_bytes"] for r in seen]),
        }
    return {"after": learnt, "plans": found}


def steady(scene: Scene, frames: int) -> list[dict[str, Any]]:
    """The planner and every plausible fixed plan, one frame each in turn, by bandwidth."""
    found = []
    progress = scene.stages.stage("steady links")
    for done, mbit in enumerate(STEADY_MBIT, 1):
        scene.wire.change(link(mbit))
        # All in one process: another process would start with colder caches.
        with scene.edge(beside=True) as edge:
            looks = [
                {d: _took(edge, scene.frame(k), d) for d in scene.plans} for k in range(_LOOKS)
            ]
            took = {d: min(look[d] for look in looks) for d in scene.plans}
            best = min(took.values())
            plausible = [d for d, ms in took.items() if ms <= _PLAUSIBLE * best]
            for k in range(_SETTLE):
                answered(edge.detect(scene.frame(k), pilot=PILOT))
            ours: list[dict[str, Any]] = []
            theirs: dict[str, list[float]] = {digest: [] for digest in plausible}
            order = np.random.default_rng(_SEED)
            for k in range(frames):
                image = scene.frame(k)
                # A new order every time: latency depends on which frame went before.
                for turn in order.permutation(1 + len(theirs)):
                    if turn == len(theirs):
                        ours.append(answered(edge.detect(image, pilot=PILOT)))
                        time.sleep(PROBE_S)
                    else:
                        digest = plausible[turn]
                        theirs[digest].append(_took(edge, image, digest))
                        time.sleep(_REPORT_S)
            state = edge.state(PILOT)
        found.append(_steady_row(scene, mbit, ours, theirs, state))
        progress(done, len(STEADY_MBIT))
    return found


def _took(edge: EdgeProcess, image: int, digest: str) -> float:
    return float(answered(edge.detect(image, bytes.fromhex(digest)))["latency_ms"])


def _steady_row(
    scene: Scene,
    mbit: float,
    ours: Sequence[dict[str, Any]],
    theirs: dict[str, list[float]],
    state: dict[str, Any],
) -> dict[str, Any]:
    latencies = np.array([row["latency_ms"] for row in ours])
    fixed = {digest: np.array(times) for digest, times in theirs.items()}
    best = min(fixed, key=lambda digest: float(fixed[digest].mean()))
    chosen = [row["plan"] for row in ours]
    return {
        "mbit": mbit,
        "estimated_mbit": None if state["uplink_bps"] is None else state["uplink_bps"] / 1e6,
        "estimated_rtt_ms": state["rtt_ms"],
        "burst_bytes": state["burst_bytes"],
        "adaptive_mean_ms": float(latencies.mean()),
        "adaptive_p50_ms": median(latencies),
        "best": scene.name(best),
        "best_mean_ms": float(fixed[best].mean()),
        "best_p50_ms": median(fixed[best]),
        "regret_mean": _excess(latencies, fixed[best], np.mean),
        "regret_p50": _excess(latencies, fixed[best], np.median),
        "fixed_mean_ms": {scene.name(d): float(t.mean()) for d, t in fixed.items()},
        "chosen": {scene.name(d): chosen.count(d) for d in set(chosen)},
    }


def steps(scene: Scene, cycles: int, known: dict[str, Any]) -> list[dict[str, Any]]:
    """Frames and seconds until a better plan is in use, after steps between two bandwidths.

    A plan is one of the better ones if, by its own measured times, it takes at most `_NEAR` more
    than the best at the new bandwidth.
    """
    low, high, phase_s = 1.5, 6.0, 8.0
    progress = scene.stages.stage("steps")
    found = []
    with scene.edge() as edge:
        scene.wire.change(link(high))
        _run_for(edge, scene, phase_s)
        for done in range(2 * cycles):
            mbit = high if done % 2 else low
            scene.wire.change(link(mbit))
            began_s = time.monotonic()
            rows = _run_for(edge, scene, phase_s)
            model = HindsightModel(known, LinkTrace(((0.0, link(mbit)),)).at)
            best_ms = model.best_ms(0.0)
            better = [n for n in known if model.latency_ms(n, 0.0) <= (1 + _NEAR) * best_ms]
            in_use = [scene.name(row["plan"]) in better for row in rows]
            first = in_use.index(True) if any(in_use) else len(rows) - 1
            found.append(
                {
                    "to_mbit": mbit,
                    "better": better,
                    "frames": first,
                    "seconds": rows[first]["began_s"] - began_s,
                    "held": sum(in_use[first:]) / len(in_use[first:]),
                    "plans": [scene.name(row["plan"]) for row in rows],
                }
            )
            progress(done + 1, 2 * cycles)
    return found


def _run_for(edge: EdgeProcess, scene: Scene, seconds: float) -> list[dict[str, Any]]:
    until_s = time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    while time.monotonic() < until_s:
        rows.append(answered(edge.detect(scene.frame(len(rows)))))
    return rows


def on_trace(
    scene: Scene, name: str, seconds: float, fixed: Sequence[str], repeats: int
) -> dict[str, Any]:
    """The planner over a trace, and fixed plans over the same, in turn; several times.

    The times of each plan by itself are measured before every turn, since the speed of a machine
    varies.
    """
    trace = read_trace(FOLDER / f"{name}.csv")
    progress = scene.stages.stage(f"trace {name}")
    runs: dict[str, list[list[dict[str, Any]]]] = {plan or "adaptive": [] for plan in ("", *fixed)}
    looks: dict[str, list[dict[str, Any]]] = {digest: [] for digest in scene.plans}
    for done, (_, plan) in enumerate(itertools.product(range(repeats), ("", *fixed)), 1):
        scene.wire.change(link(3.0))
        with scene.edge() as edge:
            for k, digest in itertools.product(range(_LOOKS), looks):
                looks[digest].append(answered(edge.detect(scene.frame(k), bytes.fromhex(digest))))
        told = next((d for d, p in scene.plans.items() if p.name == plan), None)
        with scene.edge() as edge, replayed(scene.wire, trace) as started_s:
            rows: list[dict[str, Any]] = []
            while (at_s := time.monotonic() - started_s) < seconds:
                asked = None if told is None else bytes.fromhex(told)
                row = answered(edge.detect(scene.frame(len(rows)), asked))
                rows.append({**row, "at_s": at_s})
        runs[plan or "adaptive"].append(rows)
        progress(done, repeats * len(runs))
    known = {
        scene.name(digest): {
            "own_ms": own_ms(rows),
            "uplink_bytes": median([row["uplink_bytes"] for row in rows]),
        }
        for digest, rows in looks.items()
    }
    model = HindsightModel(known, lambda at_s: trace.at(at_s))
    ours = [_Told.of(scene, model, rows) for rows in runs["adaptive"]]
    order = sorted(range(repeats), key=lambda k: ours[k].regret)
    shown = order[repeats // 2]
    took = {p: [[r["latency_ms"] for r in rs] for rs in each] for p, each in runs.items()}
    pooled = {p: np.concatenate(each) for p, each in took.items()}
    chosen_ms = sum(each.chosen_ms for each in ours)
    return {
        "seconds": seconds,
        "plans": known,
        "frames": {p: [len(each) for each in found] for p, found in took.items()},
        "mean_ms": {p: float(each.mean()) for p, each in pooled.items()},
        "p90_ms": {p: float(np.percentile(each, 90)) for p, each in pooled.items()},
        "model_over_measured": chosen_ms / float(pooled["adaptive"].sum()),
        "regret_to_every_moment": chosen_ms / sum(sum(each.best_ms) for each in ours) - 1,
        "regrets": [each.regret for each in ours],
        "switches": [
            sum(a["plan"] != b["plan"] for a, b in itertools.pairwise(rows))
            for rows in runs["adaptive"]
        ],
        "series": [
            {
                "at_s": round(r["at_s"], 3),
                "plan": scene.name(r["plan"]),
                "latency_ms": round(r["latency_ms"], 2),
                "best_ms": round(b, 2),
                "estimated_mbit": None if r["uplink_bps"] is None else r["uplink_bps"] / 1e6,
                "mbit": _mbit(trace.at(r["at_s"])),
            }
            for r, b in zip(runs["adaptive"][shown], ours[shown].best_ms, strict=True)
        ],
    }


@dataclass(frozen=True)
class _Told:
    """Model times of a run over a trace.

    Attributes:
        chosen_ms: Total latency of all frames by the plans that were chosen.
        best_ms: Latency of each frame by the best plan.
    """

    chosen_ms: float
    best_ms: list[float]

    @classmethod
    def of(cls, scene: Scene, model: "HindsightModel", rows: Sequence[dict[str, Any]]) -> "_Told":
        chosen = (model.latency_ms(scene.name(r["plan"]), r["at_s"]) for r in rows)
        return cls(sum(chosen), [model.best_ms(r["at_s"]) for r in rows])

    @property
    def regret(self) -> float:
        return self.chosen_ms / sum(self.best_ms) - 1


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


def outage(scene: Scene, seconds: float) -> dict[str, Any]:
    """The planner over a trace with an outage."""
    trace = read_trace(FOLDER / "outage.csv")
    with scene.edge() as edge, replayed(scene.wire, trace) as started_s:
        rows: list[dict[str, Any]] = []
        failed = 0
        while (at_s := time.monotonic() - started_s) < seconds:
            row = edge.detect(scene.frame(len(rows)))
            failed += "error" in row
            if "error" not in row:
                rows.append({**row, "at_s": at_s})
    within = [row["latency_ms"] for row in rows if trace.at(row["at_s"]) is None]
    return {
        "seconds": seconds,
        "frames": len(rows),
        "failed": failed,
        "p50_ms": median([row["latency_ms"] for row in rows]),
        "frames_begun_in_the_outage": len(within),
        "longest_ms": max(row["latency_ms"] for row in rows),
        "p50_in_the_outage_ms": median(within) if within else None,
    }


def load(scene: Scene, switches: int, most_s: float) -> dict[str, Any]:
    """Two threads at once while the bandwidth jumps, until `switches` switches of plans."""
    ended = threading.Event()

    def jump() -> None:
        fast = False
        while not ended.is_set():
            scene.wire.change(link(20.0 if fast else 0.3))
            fast = not fast
            ended.wait(_JUMP_S)

    counted: Counter[str] = Counter()
    by_plan: Counter[str] = Counter()
    progress = scene.stages.stage("load")
    began_s, before = time.monotonic(), scene.frames_served()
    with scene.edge("loaded-edge") as edge:
        jumping = threading.Thread(target=jump)
        jumping.start()
        try:
            while counted["switches"] < switches and time.monotonic() - began_s < most_s:
                found = edge.load(2, _LOAD_S)
                by_plan.update({scene.name(d): n for d, n in found.pop("by_plan").items()})
                counted.update(found)
                counted["switches"] = scene.switches("loaded-edge")
                progress(min(counted["switches"], switches), switches)
        finally:
            ended.set()
            jumping.join()
    counted["served"] = scene.frames_served() - before
    return {**counted, "by_plan": dict(by_plan), "seconds": time.monotonic() - began_s}


def own_ms(rows: Sequence[dict[str, Any]]) -> float:
    """Median time of a plan apart from the link."""
    ways = ("uplink", "downlink")
    return median([r["latency_ms"] - sum(r["times_ms"].get(w, 0.0) for w in ways) for r in rows])


def off(expected: float, measured: float) -> float:
    """Relative error of a prediction."""
    return abs(expected / measured - 1)


def _excess(ours: Values, theirs: Values, of: Callable[..., Any]) -> dict[str, float]:
    """Relative excess of our latencies over theirs, with its interval over paired frames."""
    return {end: each - 1 for end, each in ratio(ours, theirs, of).items()}


def _mbit(now: Link | None) -> float:
    return 0.0 if now is None else now.uplink_bps / 1e6
