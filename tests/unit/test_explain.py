"""What plans cost, from predictions and tables, and which one that makes the choice."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bundle.manifest import Plan, Tail
from common.codec.spec import CodecSpec, WireTensor
from common.latency import PlanCost, costs, lines
from common.link.crossover import Line
from common.link.link import Link, parse_link
from common.tables.rows import ENOUGH, LatencyRow, Side, Source, segments, to_json
from splitpoint.cli import main
from splitpoint.explain import explain
from tests import tiny

LINK = parse_link("8mbit/20ms")  # a kilobyte a millisecond


def _row(
    segment: str,
    bits: str,
    ms: float,
    source: Source = "profiled",
    *,
    n: int = 30,
    side: Side = "edge",
    device: str = "pi",
    seen_s: float = 1.0,
) -> LatencyRow:
    return LatencyRow(
        device=device,
        runtime="ort",
        threads=1,
        side=side,
        network=tiny.NETWORK,
        segment=segment,
        bits=bits,
        n=n,
        median_ms=ms,
        p90_ms=ms,
        low_ms=ms,
        high_ms=ms,
        source=source,
        last_seen_s=seen_s,
    )


def _plan(name: str = "plan") -> Plan:
    pixels = WireTensor(
        name="image", shape=(3, 4, 4), bits=8, to_symbol=tuple(range(256)), to_value=(0.0,) * 256
    )
    return Plan(
        name=name,
        network=tiny.NETWORK,
        cut=("image",),
        head=None,
        wire=(pixels,),
        codec=CodecSpec(name="png"),
        tail=Tail(file="tail.onnx"),
        predicted=tiny.PREDICTION,
    )


def _cost(name: str, fixed_ms: float, sent: float, accuracy: float = 50.0) -> PlanCost:
    prediction = tiny.PREDICTION.model_copy(update={"accuracy": accuracy})
    plan = _plan(name).model_copy(update={"predicted": prediction})
    return PlanCost(name.encode(), plan, fixed_ms, 0.0, sent)


class TestCosts:
    def test_predictions_alone(self, tmp_path: Path) -> None:
        bundle = tiny.build(tmp_path / "bundle")
        split, upload, edge_only = costs(bundle.plans)
        # preprocess, head and encode; decode, tail and postprocess
        assert (split.edge_ms, split.cloud_ms, split.uplink_bytes) == (3, 4, 1000)
        # no head
        assert (upload.edge_ms, upload.cloud_ms, upload.uplink_bytes) == (2, 4, 1000)
        # preprocess, head and postprocess
        assert (edge_only.edge_ms, edge_only.cloud_ms, edge_only.uplink_bytes) == (3, 0, 0)
        assert [c.needs_cloud for c in (split, upload, edge_only)] == [True, True, False]
        assert {s.source for s in split.stages} == {"predicted"}
        assert [s.stage for s in split.stages] == [s.stage for s in segments(split.plan)]

    def test_latency_is_the_path_of_a_frame(self, tmp_path: Path) -> None:
        split, _, edge_only = costs(tiny.build(tmp_path / "bundle").plans)
        assert split.latency_ms(LINK) == pytest.approx(3 + 1 + 20 + 4)
        assert edge_only.latency_ms(LINK) == 3
        assert lines([split, edge_only], 20) == [
            Line(tiny.SPLIT, 1000, 27),
            Line(tiny.EDGE_ONLY, 0, 3),
        ]

    def test_a_table_replaces_the_stages_that_it_knows(self) -> None:
        rows = [
            _row("letterbox", "8", 5.0),
            _row("boxes", "32", 7.0, "served", side="cloud", device="server"),
            _row("boxes", "32", 99.0),  # of the edge, which this plan does not use
            _row("tail from image", "8", 99.0, side="cloud"),  # of other bits
        ]
        (cost,) = costs({b"": _plan()}, rows)
        assert (cost.edge_ms, cost.cloud_ms) == (5 + 1, 1 + 2 + 7)
        told = {s.stage: (s.ms, s.source, s.n) for s in cost.stages}
        assert told["preprocess"] == (5.0, "profiled", 30)
        assert told["postprocess"] == (7.0, "served", 30)
        assert told["tail"] == (2.0, "predicted", 0)

    @pytest.mark.parametrize(
        ("rows", "expected"),
        [
            # enough served frames beat a newer profile
            ([("served", ENOUGH, 1.0), ("profiled", 9, 2.0), ("simulated", 1, 3.0)], 0),
            # few do not
            ([("served", ENOUGH - 1, 3.0), ("profiled", 9, 2.0), ("simulated", 1, 3.0)], 1),
            # but they beat a simulation
            ([("simulated", 1, 3.0), ("served", 1, 1.0)], 1),
            # of equals the newest
            ([("profiled", 9, 1.0), ("profiled", 9, 2.0), ("profiled", 9, 1.5)], 1),
        ],
    )
    def test_which_row_is_believed(
        self, rows: Sequence[tuple[Source, int, float]], expected: int
    ) -> None:
        table = [
            _row("letterbox", "8", float(index), source, n=n, seen_s=seen_s)
            for index, (source, n, seen_s) in enumerate(rows)
        ]
        (cost,) = costs({b"": _plan()}, table)
        assert cost.stages[0].ms == expected

    def test_only_the_edge_that_is_meant_counts(self) -> None:
        rows = [_row("letterbox", "8", 5.0), _row("letterbox", "8", 9.0, device="nano", seen_s=9)]
        rows += [_row("boxes", "32", 7.0, side="cloud", device="server")]
        (cost,) = costs({b"": _plan()}, rows, "pi")
        assert (cost.stages[0].ms, cost.stages[-1].ms) == (5.0, 7.0)


class TestChoice:
    PLANS = (
        _cost("lean", 60, 0, accuracy=50),
        _cost("split", 40, 5_000, accuracy=55),
        _cost("upload", 5, 20_000, accuracy=60),
    )

    def test_the_fastest_without_a_deadline(self) -> None:
        found = explain(self.PLANS, LINK)
        assert found.chosen.plan.name == "upload"
        assert [c.plan.name for c in found.fastest] == ["upload", "split", "lean"]
        assert found.reason.startswith(
            "the fastest over 8mbit/20ms: 45.0 ms; split would take 20.0"
        )
        assert [s.line.name for s in found.stretches] == ["lean", "split", "upload"]

    @pytest.mark.parametrize(
        ("deadline_ms", "name", "reason"),
        [
            (100, "upload", "the most accurate of 3 plans that answer within 100 ms"),
            (66, "upload", "the most accurate of 2 plans"),
            (46, "upload", "the only plan that answers within 46 ms"),
            (30, "upload", "no plan answers within 30 ms over 8mbit/20ms; this is the fastest: 45"),
        ],
    )
    def test_a_deadline(self, deadline_ms: float, name: str, reason: str) -> None:
        found = explain(self.PLANS, LINK, deadline_ms)
        assert found.chosen.plan.name == name
        assert found.reason.startswith(reason)

    def test_a_slower_plan_that_is_in_time_may_be_the_more_accurate(self) -> None:
        plans = [_cost("fast", 10, 0, accuracy=50), _cost("fine", 60, 0, accuracy=55)]
        assert explain(plans, LINK).chosen.plan.name == "fast"
        assert explain(plans, LINK, 90).chosen.plan.name == "fine"
        assert explain(plans, LINK, 70).chosen.plan.name == "fast"

    def test_a_single_plan_is_the_choice_everywhere(self) -> None:
        found = explain(self.PLANS[:1], LINK)
        assert found.reason == "the only plan: 80.0 ms over 8mbit/20ms"
        assert [(s.from_bps, s.to_bps) for s in found.stretches] == [(0.0, math.inf)]

    @given(
        plans=st.lists(
            st.tuples(st.integers(0, 99), st.integers(0, 40_000), st.integers(40, 45)),
            min_size=1,
            max_size=6,
        ),
        deadline_ms=st.integers(1, 300),
        mbit=st.lists(st.floats(0.01, 500), min_size=1, max_size=10),
    )
    def test_stretches_hold_the_choice_of_every_bandwidth(
        self, plans: list[tuple[int, int, int]], deadline_ms: int, mbit: list[float]
    ) -> None:
        made = [_cost(f"plan {i}", *each) for i, each in enumerate(plans)]
        stretches = explain(made, LINK, deadline_ms).stretches
        assert stretches[0].from_bps == 0
        assert stretches[-1].to_bps == math.inf
        assert all(a.to_bps == b.from_bps for a, b in pairwise(stretches))
        for rate in mbit:
            link = Link(rate * 1e6, 1e6, LINK.rtt_ms)
            near = [b for s in stretches for b in [s.from_bps] if b]
            if any(math.isclose(b, link.uplink_bps, rel_tol=1e-6) for b in near):
                continue
            (holder,) = [s.line for s in stretches if s.from_bps <= link.uplink_bps < s.to_bps]
            assert holder == explain(made, link, deadline_ms).chosen.line(link.rtt_ms)


class TestCommand:
    @pytest.fixture
    def bundle(self, tmp_path: Path) -> Path:
        tiny.build(tmp_path / "bundle")
        return tmp_path / "bundle"

    def test_it_prints_plans_and_bandwidths(
        self, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _run("--bundle", bundle) == 0
        printed = capsys.readouterr().out
        assert "edge-only: the fastest over 3mbit/20ms: 3.0 ms" in printed
        assert "at any bandwidth: edge-only (0 bytes)" in printed
        assert "unmarked: predicted by the search" in printed

    def test_json_with_a_table(
        self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tables = tmp_path / "tables.json"
        tables.write_text(to_json([_row("boxes", "32", 900.0, "served")]))
        options = ("--tables", tables, "--link", "1mbit/5ms", "--deadline", 500)
        assert _run("--bundle", bundle, *options, "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert document["plan"] == tiny.CLOUD_ONLY
        assert document["device"] == "pi"
        (slow,) = [plan for plan in document["plans"] if plan["plan"] == tiny.EDGE_ONLY]
        assert slow["stages_ms"] == {"preprocess": 1.0, "head": 1.0, "postprocess": 900.0}
        assert slow["sources"]["postprocess"] == "served"
        (split,) = [plan for plan in document["plans"] if plan["plan"] == tiny.SPLIT]
        assert sum(split["stages_ms"].values()) == pytest.approx(split["latency_ms"])
        assert document["bandwidths"][0]["from_bps"] == 0
        assert document["bandwidths"][-1]["to_bps"] is None

    @pytest.mark.parametrize(
        ("options", "code", "message"),
        [
            (["--link", "fast"], 64, "3mbit/20ms"),
            (["--deadline", "0"], 64, "above 0"),
            (["--deadline", "nan"], 64, "above 0"),
            (["--device", "pi"], 64, "belongs to --tables"),
            (["--tables", "{none}"], 65, "cannot be read"),
            (["--tables", "{tables}"], 64, "several edges: give --device, one of nano, pi"),
            (["--tables", "{tables}", "--device", "x"], 64, "it has nano, pi"),
        ],
    )
    def test_a_mistake_is_one_line(
        self,
        bundle: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        code: int,
        message: str,
    ) -> None:
        tables = tmp_path / "tables.json"
        tables.write_text(
            to_json([_row("letterbox", "8", 5.0), _row("letterbox", "8", 5.0, device="nano")])
        )
        names = {"tables": tables, "none": tmp_path / "none"}
        assert _run("--bundle", bundle, *(each.format(**names) for each in options)) == code
        error = capsys.readouterr().err
        assert len(error.strip().splitlines()) == 1
        assert message in error


def _run(*options: object) -> int:
    try:
        return main(["explain", *map(str, options)])
    except SystemExit as end:
        return int(end.code or 0)
