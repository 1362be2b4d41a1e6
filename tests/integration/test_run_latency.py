"""The comparison of strategies, by real processes over an emulated link, on a tiny network."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.latency.cell import ADAPTIVE, FIXED, FLOAT, PLAIN, measure_cell
from bench.latency.report import write_all
from bench.latency.stage import BenchStage, stage
from bench.latency.strategies import MEMORY, Cell, key_of
from bench.links.shaped import ShapingError, emulated, link_of
from bench.run_latency import main
from common.errors import SettingsError
from common.runtime.registry import runtime_name
from common.tables.rows import LatencyRow, to_json
from tests import tiny

CELL = Cell(1.0, 8.0)
PROFILED = LatencyRow(
    device="1 of a core",
    runtime=runtime_name(1),
    threads=1,
    side="edge",
    network=tiny.NETWORK,
    segment="head to map",
    bits="8",
    n=10,
    median_ms=1.0,
    p90_ms=1.0,
    low_ms=1.0,
    high_ms=1.0,
    source="profiled",
    last_seen_s=0.0,
)
STRATEGIES: dict[str, Any] = {
    "uploads": {"PNG": tiny.CLOUD_ONLY},
    "splitpoint": {"A": list(tiny.ALL_PLANS), "B": [tiny.SPLIT, tiny.CLOUD_ONLY]},
    "published": {
        "dads": {
            key_of("A", CELL): {"plan": tiny.CLOUD_ONLY},
            key_of("B", CELL): {"infeasible": "chooses nothing"},
        }
    },
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BenchStage]:
    folder = tmp_path_factory.mktemp("latency")
    bundle = tiny.build(folder / "bundle")
    images = [folder / f"{k}.png" for k in range(2)]
    for k, path in enumerate(images):
        Image.fromarray(tiny.image(k)).save(path)
    (folder / "1.json").write_text(to_json([PROFILED]))
    with stage(
        emulated(link_of(CELL.mbit)), bundle, STRATEGIES, images, CELL.share, folder
    ) as made:
        yield made


@pytest.fixture(scope="module")
def rows(running: BenchStage) -> list[dict[str, Any]]:
    return measure_cell(running, CELL, frames=3, budget_s=5.0)


def test_every_strategy_is_measured_or_says_why_not(rows: list[dict[str, Any]]) -> None:
    measured = {(row["strategy"], row["settings"]) for row in rows if "p50_ms" in row}
    nothing = {row["strategy"]: row["infeasible"] for row in rows if "infeasible" in row}

    assert {
        ("PNG", "AB"),
        ("dads", "A"),
        (FLOAT, "A"),
        (ADAPTIVE, "A"),
        (ADAPTIVE, "B"),
    } <= measured
    assert {strategy for strategy, _ in measured} >= {FIXED}
    assert nothing == {"dads": "chooses nothing", PLAIN: "HTTP does not pass an emulated link"}
    assert not any(row["failed"] for row in rows)


def test_strategies_with_one_plan_share_its_frames(rows: list[dict[str, Any]]) -> None:
    by_name = {row["strategy"]: row for row in rows if row["settings"] in {"A", "AB"}}

    assert by_name["PNG"]["latencies_ms"] == by_name["dads"]["latencies_ms"]
    assert len(by_name["PNG"]["latencies_ms"]) == 3


def test_uploads_take_the_link_s_time_and_the_edge_alone_does_not(
    rows: list[dict[str, Any]],
) -> None:
    by_name = {row["strategy"]: row for row in rows}

    assert by_name["PNG"]["p50_ms"]["value"] > 20.0  # the emulated round trip
    assert by_name["PNG"]["uplink_bytes"] > 0
    assert by_name[FLOAT]["uplink_bytes"] == 0


def test_the_report_is_written_whole(
    running: BenchStage, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    plans = running.bundle.plans.values()
    result = {
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux"},
        "reference_accuracy": 91.0,
        "memory": MEMORY,
        "strategies": STRATEGIES,
        "plans": {p.name: p.predicted.model_dump(mode="json") for p in plans},
        "kinds": {p.name: p.kind for p in plans},
        "images": ["0.png"],
        "frames": 3,
        "rtt_ms": 20.0,
        "wire": "emulated",
        "congestion_control": None,
        "shares": {"1": {"measured": 1.0}},
        "cells": rows,
    }
    path = tmp_path / "some.json"

    write_all(result, path)

    assert json.loads(path.read_text()) == result
    assert "8 Mbit/s" in path.with_suffix(".md").read_text()
    assert [p.name for p in tmp_path.glob("*.png")] == ["some-1.png"]


def test_an_emulated_link_does_not_change_under_a_running_edge() -> None:
    wire = emulated(link_of(1.0))

    wire.change(link_of(1.0))
    with pytest.raises(ShapingError, match="start them anew"):
        wire.change(link_of(2.0))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mbits", "7"], "--mbits: expected some of 0.5, 1"),  # nobody chose a plan for it
        (["--frames", "0"], "expected positive numbers"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(words: list[str], message: str) -> None:
    usual = ["--images", "i", "--annotations", "a", "--calibration", "c", "--json", "o"]

    with pytest.raises(SettingsError, match=message):
        main([*usual, *words])
