"""Winners of each cell of `bench.run_latency`, and the targets that are met.

A baseline is a strategy that is not ours, answered every frame and lost at most `MAX_DROP` points
of AP against floating point. *All others* are the baselines and the plans of our own search without
adaptation: a fixed plan, and the tuned upload. The tuned upload is
reported separately, since users who upload pictures of fixed quality lack it, but could have it.
"""

from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any

import numpy as np

from bench.bootstrap import ratio
from bench.harness import Result, Target
from bench.latency.cell import ADAPTIVE, FIXED, TUNED
from bench.latency.strategies import MAX_DROP
from common.codec.spec import LOSSLESS_UPLOADS

SLACK = 1.03
LEAD = 0.8
FEWER_BYTES = 3.0
CLOUD_SHARE = 0.75
TARGETED = (0.25, 0.1)
"""Shares of a core that targets are set for."""
_LOSSLESS = tuple(f" {spec}" for spec in LOSSLESS_UPLOADS)

Row = dict[str, Any]


def shares(result: Result) -> list[float]:
    """Shares of a core, the largest first."""
    return sorted({row["share"] for row in result["cells"]}, reverse=True)


def measured(result: Result, share: float, setting: str) -> dict[float, list[Row]]:
    """Measured rows of a share and setting by bandwidth."""
    found: dict[float, list[Row]] = {}
    for row in result["cells"]:
        if row["share"] == share and setting in row["settings"] and "p50_ms" in row:
            found.setdefault(row["mbit"], []).append(row)
    return found


def is_able(row: Row, reference: float) -> bool:
    """Whether a strategy answered every frame and keeps the accuracy."""
    return not row["failed"] and bool(row["accuracy"] >= reference - MAX_DROP)


def verdicts(result: Result) -> list[Row]:
    """Compare the adaptive planner with the best others, for every cell and setting."""
    return [
        {"share": share, "setting": setting, "mbit": mbit, **verdict}
        for share in shares(result)
        for setting in result["memory"]
        for mbit, rows in sorted(measured(result, share, setting).items())
        if (verdict := _verdict(result, rows))
    ]


def fastest_kind(result: Result, verdict: Row) -> str:
    """Kind of the fastest plan of a cell: the adaptive planner's, or that of the best other."""
    fastest = verdict["plan"] if verdict["ratio"] < 1 else verdict["best_plan"]
    return str(result["kinds"].get(fastest, "edge-only"))  # one in floating point has no plan


def codec_bytes(result: Result, accuracy: float) -> float | None:
    """Least bytes of any lossy image upload that was searched and is at least as accurate.

    If none is, those of the most accurate one, which are too few: an upload as accurate as this
    would take more. Lossless uploads take so many bytes that comparing with them would flatter us.
    """
    plans, kinds = result["plans"], result["kinds"]
    lossy = [
        plan
        for name, plan in plans.items()
        if kinds[name] == "cloud-only" and not name.endswith(_LOSSLESS)
    ]
    able = [plan for plan in lossy if plan["accuracy"] >= accuracy]
    able = able or sorted(lossy, key=lambda plan: plan["accuracy"])[-1:]
    return min((plan["uplink_bytes"] for plan in able), default=None)


def targets(result: Result) -> Iterator[Target]:
    """Targets, each judged by the worst case."""
    rows = [row for row in verdicts(result) if row["share"] in TARGETED]
    for setting in {row["setting"]: None for row in rows}:
        here = [row for row in rows if row["setting"] == setting]
        worst = max(here, key=lambda row: row["ratio"])
        late = [row for row in here if row["ratio"] > SLACK]
        undecided = sum(row["ratio_low"] <= SLACK for row in late)
        alike = sum(row["alike"] == 1.0 for row in late)
        yield Target(
            f"setting {setting}: adaptive at most {SLACK:g} x the best of all others, everywhere",
            f"{worst['ratio']:.3f} x [{worst['ratio_low']:.3f}, {worst['ratio_high']:.3f}]; "
            f"{len(here) - len(late)} of {len(here)} cells are within, {undecided} more may be by "
            f"their intervals; {alike} of the {len(late)} beyond used the best's plan throughout",
            f"{_cell(worst)} against {worst['best']}",
            worst["ratio"] <= SLACK,
        )
    limited = [row for row in rows if row["setting"] == "B"]
    for share in sorted({row["share"] for row in limited}, reverse=True):
        narrow = [row for row in limited if row["share"] == share]
        ahead = [row for row in narrow if row["baseline_ratio"] <= LEAD]
        best = min(narrow, key=lambda row: row["baseline_ratio"])
        yield Target(
            f"setting B, {share:g} of a core: 20 % ahead of the best baseline at 3 bandwidths "
            "or more",
            f"at {len(ahead)}; at best {best['baseline_ratio']:.2f} x; "
            f"of the others, {_pictures(result, [row for row in narrow if row not in ahead])}",
            f"{_cell(best)} against {best['baseline']}",
            len(ahead) >= 3,
        )
    yield from _bytes_target(result, limited)
    yield from _work_target(result)


def _bytes_target(result: Result, rows: Sequence[Row]) -> Iterator[Target]:
    sent = [row for row in rows if row["fewer_bytes"] is not None]
    if not sent:
        return
    least = min(sent, key=lambda row: row["fewer_bytes"])
    enough = sum(row["fewer_bytes"] >= FEWER_BYTES for row in sent)
    split = [row["fewer_bytes"] for row in sent if result["kinds"][row["plan"]] == "split"]
    by_splits = ""
    if split:
        by_splits = f"; {min(split):.1f} to {max(split):.1f} x in the {len(split)} that split"
    yield Target(
        f"setting B: {FEWER_BYTES:g} x fewer bytes than the best image codec of equal AP",
        f"{least['fewer_bytes']:.1f} x; {enough} of {len(sent)} cells reach it{by_splits}; "
        f"{_pictures(result, sent)}",
        f"{_cell(least)}, {least['plan']}",
        least["fewer_bytes"] >= FEWER_BYTES,
    )


def _work_target(result: Result) -> Iterator[Target]:
    for share in TARGETED:
        work, kinds = _cloud_ms(result, share), result["kinds"]
        used = {row["plan"] for row in verdicts(result) if row["share"] == share}
        ours = [plan for plan in work if kinds[plan] == "split" and plan in used]
        uploads = [plan for plan in work if kinds[plan] == "cloud-only"]
        if not ours or not uploads:
            continue
        most, least = max(ours, key=work.__getitem__), min(uploads, key=work.__getitem__)
        ratio = work[most] / work[least]
        yield Target(
            f"{share:g} of a core: the cloud's CPU time at most {CLOUD_SHARE:g} x cloud-only's",
            f"{ratio:.2f} x",
            f"{most} against {least}",
            ratio <= CLOUD_SHARE,
        )


def _cloud_ms(result: Result, share: float) -> dict[str, float]:
    """Mean CPU time of the cloud for a frame, by plan, over all bandwidths."""
    by_plan: dict[str, list[float]] = {}
    for row in result["cells"]:
        if row["share"] == share and "p50_ms" in row and row["plan"]:
            by_plan.setdefault(row["plan"], []).append(row["cloud_cpu_ms"])
    return {name: mean(each) for name, each in by_plan.items()}


def _verdict(result: Result, rows: Sequence[Row]) -> Row | None:
    mine = next((row for row in rows if row["strategy"] == ADAPTIVE), None)
    able = [row for row in rows if is_able(row, result["reference_accuracy"])]
    others = sorted((row for row in able if row["strategy"] != ADAPTIVE), key=_p50)
    baselines = [row for row in others if row["strategy"] not in (FIXED, TUNED)]
    tuned = next((_p50(row) for row in others if row["strategy"] == TUNED), None)
    if mine is None or not baselines:
        return None
    equal = codec_bytes(result, mine["accuracy"])
    sent = mine["uplink_bytes"]
    to_best, to_baseline = (
        ratio(np.array(mine["latencies_ms"]), np.array(other["latencies_ms"]))
        for other in (others[0], baselines[0])
    )
    return {
        "adaptive_ms": _p50(mine),
        "alike": _alike(result["kinds"], mine["plans"], others[0]["plan"]),
        "plan": max(mine["plans"], key=mine["plans"].__getitem__),
        "accuracy": mine["accuracy"],
        "best": others[0]["strategy"],
        "best_ms": _p50(others[0]),
        "best_plan": others[0]["plan"],
        "ratio": _p50(mine) / _p50(others[0]),
        "ratio_low": to_best["low"],
        "ratio_high": to_best["high"],
        "baseline": baselines[0]["strategy"],
        "baseline_ms": _p50(baselines[0]),
        "baseline_ratio": _p50(mine) / _p50(baselines[0]),
        "baseline_low": to_baseline["low"],
        "baseline_high": to_baseline["high"],
        "tuned_ratio": None if tuned is None else _p50(mine) / tuned,
        "fewer_bytes": equal / sent if sent and equal is not None else None,
    }


def _pictures(result: Result, rows: Sequence[Row]) -> str:
    """Count the cells that sent pictures more often than tensors, in words."""
    count = sum(result["kinds"][row["plan"]] == "cloud-only" for row in rows)
    return f"{count} of {len(rows)} send mostly pictures"


def _alike(kinds: dict[str, str], used: dict[str, int], other: str | None) -> float:
    """Share of frames by the same plan as another strategy's; the whole network is one plan."""
    whole = kinds.get(other or "") == "edge-only"
    same = {n for n in used if n == other or (whole and kinds[n] == "edge-only")}
    return sum(used[n] for n in same) / sum(used.values())


def _p50(row: Row) -> float:
    return float(row["p50_ms"]["value"])


def _cell(row: Row) -> str:
    return f"{row['share']:g} of a core, {row['mbit']:g} Mbit/s"
