"""Who won, judged from rows as `bench.run_latency` writes them."""

from typing import Any

import pytest

from bench.latency.cell import ADAPTIVE, FIXED, TUNED
from bench.latency.report import markdown
from bench.latency.verdicts import codec_bytes, targets, verdicts

PLANS = {
    "jpeg": {"uplink_bytes": 20_000, "accuracy": 24.6},
    "webp": {"uplink_bytes": 12_000, "accuracy": 24.0},
    "split": {"uplink_bytes": 3_000, "accuracy": 24.3},
}
WHOLE = {"uplink_bytes": 0, "accuracy": 24.3}
KINDS = {"jpeg": "cloud-only", "webp": "cloud-only", "split": "split"}


def row(strategy: str, p50_ms: float, plan: str = "jpeg", **other: Any) -> dict[str, Any]:
    interval = {"value": p50_ms, "low": p50_ms, "high": p50_ms}
    return {
        "share": 0.25,
        "mbit": 1.0,
        "strategy": strategy,
        "settings": "AB",
        "plan": None if strategy == ADAPTIVE else plan,
        "plans": {plan: 20},
        "frames": 20,
        "failed": 0,
        "p50_ms": interval,
        "latencies_ms": [p50_ms] * 20,
        "uplink_bytes": PLANS.get(plan, WHOLE)["uplink_bytes"],
        "accuracy": PLANS.get(plan, WHOLE)["accuracy"],
        "cloud_cpu_ms": 10.0 if plan == "split" else 40.0,
        **other,
    }


def result(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux"},
        "reference_accuracy": 25.0,
        "memory": {"A": None, "B": 4 << 20},
        "plans": PLANS,
        "kinds": KINDS,
        "images": ["a.jpg"],
        "frames": 20,
        "rtt_ms": 20.0,
        "wire": "relay",
        "congestion_control": "cubic",
        "shares": {"0.25": {"measured": 0.25}},
        "cells": list(rows),
    }


OURS = row(ADAPTIVE, 60.0, "split")


@pytest.mark.parametrize(
    ("others", "best", "baseline"),
    [
        ([row("JPEG", 100.0), row("PNG", 200.0)], "JPEG", "JPEG"),  # the faster one
        ([row("JPEG", 100.0), row("WebP", 50.0, "webp")], "WebP", "WebP"),  # one point of AP less
        ([row("JPEG", 100.0), row("WebP", 50.0, accuracy=23.9)], "JPEG", "JPEG"),  # beyond it
        ([row("JPEG", 100.0), row("PNG", 50.0, failed=1)], "JPEG", "JPEG"),  # lost a frame
        (
            [row("JPEG", 100.0), row(FIXED, 50.0, "split")],
            FIXED,
            "JPEG",
        ),  # ours, but not adaptive
        ([row("JPEG", 100.0), row(TUNED, 50.0, "webp")], TUNED, "JPEG"),
    ],
)
def test_the_adaptive_planner_is_laid_beside_the_best_others(
    others: list[dict[str, Any]], best: str, baseline: str
) -> None:
    (verdict, _) = verdicts(result(OURS, *others))

    assert (verdict["best"], verdict["baseline"]) == (best, baseline)
    assert verdict["baseline_ratio"] == pytest.approx(60.0 / verdict["baseline_ms"])


def test_a_setting_sees_only_the_strategies_that_fit_it() -> None:
    whole = row("edge-only", 20.0, settings="A")

    found = {v["setting"]: v["best"] for v in verdicts(result(OURS, whole, row("JPEG", 100.0)))}

    assert found == {"A": "edge-only", "B": "JPEG"}


def test_a_strategy_that_never_answered_is_nobodys_best() -> None:
    silent = {k: v for k, v in row("raw", 1.0, failed=20).items() if k != "p50_ms"}

    assert {v["best"] for v in verdicts(result(OURS, silent, row("JPEG", 100.0)))} == {"JPEG"}


def test_bytes_are_those_of_the_smallest_upload_that_is_as_accurate() -> None:
    some = result(OURS)

    assert codec_bytes(some, 24.3) == 20_000
    assert codec_bytes(some, 24.0) == 12_000
    assert codec_bytes(some, 24.7) == 20_000  # more than any: the most accurate one
    some["plans"] = PLANS | {"cloud-only png": {"uplink_bytes": 200_000, "accuracy": 25.0}}
    some["kinds"] = KINDS | {"cloud-only png": "cloud-only"}
    assert codec_bytes(some, 24.7) == 20_000  # what loses nothing is left out
    some["kinds"] = {"split": "split"} | dict.fromkeys(("jpeg", "webp", "cloud-only png"), "split")
    assert codec_bytes(some, 24.0) is None


def test_frames_by_the_plan_of_the_best_other_are_counted() -> None:
    half = {**OURS, "plans": {"split": 10, "jpeg": 10}}
    found = verdicts(result(half, row("JPEG", 100.0), row(FIXED, 50.0, "split")))
    assert [verdict["alike"] for verdict in found] == [0.5, 0.5]

    whole = result({**OURS, "plans": {"whole": 20}}, row("edge-only, int8", 50.0, "whole, too"))
    whole["kinds"] = KINDS | {"whole": "edge-only", "whole, too": "edge-only"}
    assert [verdict["alike"] for verdict in verdicts(whole)] == [1.0, 1.0]


def test_targets_are_judged_by_their_worst_cell() -> None:
    cells = [
        {**row(ADAPTIVE, adaptive_ms, "split"), "mbit": mbit}
        for mbit, adaptive_ms in ((1.0, 60.0), (2.0, 104.0))
    ]
    cells += [{**row("JPEG", 100.0), "mbit": mbit} for mbit in (1.0, 2.0)]
    cells += [{**row("Neurosurgeon", 300.0, "split"), "mbit": mbit} for mbit in (1.0, 2.0)]

    found = list(targets(result(*cells)))

    assert not found[0].met
    assert found[0].worst.startswith("1.040 x [1.040, 1.040]; 1 of 2 cells are within, 0 more")
    assert found[0].worst.endswith("; 0 of the 1 beyond used the best's plan throughout")
    fewer = next(t for t in found if "fewer bytes" in t.what)
    assert fewer.met
    assert fewer.worst == (
        "6.7 x; 2 of 2 cells reach it; 6.7 to 6.7 x in the 2 that split; "
        "0 of 2 send mostly pictures"
    )
    work = next(t for t in found if "CPU time" in t.what)
    assert work.met
    assert work.worst == "0.25 x"


def test_bytes_are_judged_where_no_cell_splits() -> None:
    mine = row(ADAPTIVE, 60.0, "webp")

    (fewer,) = (t for t in targets(result(mine, row("JPEG", 100.0))) if "fewer bytes" in t.what)

    assert fewer.worst == "1.0 x; 0 of 1 cells reach it; 1 of 1 send mostly pictures"


def test_what_holds_up_both_in_a_round_does_not_widen_their_ratio() -> None:
    rounds = [float(ms) for ms in range(60, 100, 2)]
    mine = row(ADAPTIVE, 79.0, "split", latencies_ms=rounds)
    other = row("JPEG", 79.0, latencies_ms=rounds)
    fewer = row("JPEG", 79.0, latencies_ms=rounds[::2])

    (together, _), (apart, _) = verdicts(result(mine, other)), verdicts(result(mine, fewer))

    assert together["ratio_low"] == together["ratio_high"] == 1.0
    assert apart["ratio_low"] < 0.95
    assert apart["ratio_high"] > 1.05


def test_the_report_shows_failures_and_strategies_without_a_plan() -> None:
    nothing = row("DADS", 1.0, infeasible="takes 9 MiB")
    del nothing["p50_ms"]

    text = markdown(result(OURS, row("JPEG", 100.0, failed=3), nothing))

    assert "(3 failed)" in text
    assert "DADS, setting AB: takes 9 MiB" in text


@pytest.mark.parametrize(
    ("congestion", "words"), [("cubic", "cubic"), (None, "as the machine prefers")]
)
def test_the_report_says_how_tcp_controls_congestion(congestion: str | None, words: str) -> None:
    given = {**result(OURS, row("JPEG", 100.0)), "congestion_control": congestion}

    assert f"congestion control {words};" in markdown(given)
