"""The fastest plan of every bandwidth, against trying them all."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.link import parse_link
from common.manifest import CodecSpec
from search.candidates import FRAME_OVERHEAD_BYTES, Candidate, Judged, World, judge, predict
from search.crossover import Stretch, crossovers, in_words
from search.cuts import Cut
from search.devices import DeviceProfile
from search.graph import Node
from search.latency import CutTimes
from search.timing import Timing

WORLD = World(parse_link("1mbit/20ms"), DeviceProfile("slow", 2.0), 2.0, 1.0)
NODE = Node("t", "conv", (), (4, 2, 2))
_BPS = st.floats(3, 12).map(lambda exponent: 10**exponent)


@dataclass(frozen=True)
class _Costs:
    sent: float
    head_ms: float
    tail_ms: float
    edge_only: bool = False


_COSTS = st.builds(
    _Costs,
    st.integers(0, 50_000).map(float),
    st.floats(0, 200),
    st.floats(0, 200),
    st.booleans(),
)


def _plan(index: int, costs: _Costs) -> Judged:
    cut = Cut((f"t{index}",), (NODE,), () if costs.edge_only else (NODE,))
    codec = None if costs.edge_only else CodecSpec(name="packed")
    candidate = Candidate(cut, (), codec, costs.sent, 0.5, 0.25, 0, 0, label=f"plan {index}")
    times = CutTimes(
        Timing(costs.head_ms, costs.head_ms, 9), Timing(costs.tail_ms, costs.tail_ms, 9)
    )
    return Judged(candidate, predict(candidate, times, WORLD).latency_ms, times)


def _plans(*costs: _Costs) -> list[Judged]:
    return [_plan(index, each) for index, each in enumerate(costs)]


def _at(bps: float) -> World:
    return replace(WORLD, link=replace(WORLD.link, uplink_bps=bps))


def _latency_ms(judged: Judged, bps: float) -> float:
    return predict(judged.candidate, judged.times, _at(bps)).latency_ms


@given(st.lists(_COSTS, min_size=1, max_size=8), st.lists(_BPS, min_size=1, max_size=20))
def test_at_every_bandwidth_the_stretch_holds_the_fastest_plan(
    costs: list[_Costs], rates: list[float]
) -> None:
    plans = _plans(*costs)
    stretches = crossovers(plans, WORLD)
    times = {plan.candidate.cut.name: plan.times for plan in plans}
    for bps in rates:
        (holder,) = [s.judged for s in stretches if s.from_bps <= bps < s.to_bps]
        best = judge([plan.candidate for plan in plans], times, _at(bps))[0]
        assert _latency_ms(holder, bps) == pytest.approx(best.latency_ms, rel=1e-9)


@given(st.lists(_COSTS, min_size=1, max_size=8))
def test_stretches_cover_all_bandwidths_once_and_plans_meet_where_they_change(
    costs: list[_Costs],
) -> None:
    stretches = crossovers(_plans(*costs), WORLD)
    assert stretches[0].from_bps == 0
    assert stretches[-1].to_bps == math.inf
    assert len({s.judged.candidate.name for s in stretches}) == len(stretches)
    for slower, faster in pairwise(stretches):
        assert slower.from_bps < slower.to_bps == faster.from_bps
        if 1e3 <= faster.from_bps <= 1e12:
            assert _latency_ms(slower.judged, faster.from_bps) == pytest.approx(
                _latency_ms(faster.judged, faster.from_bps), rel=1e-9
            )


def test_a_plan_that_is_never_the_fastest_has_no_stretch() -> None:
    lean, beaten, quick = plans = _plans(_Costs(0, 60, 0), _Costs(5000, 40, 0), _Costs(9900, 0, 0))
    assert [s.judged for s in crossovers(plans, WORLD)] == [lean, quick]
    assert beaten not in [s.judged for s in crossovers([quick, beaten, lean], WORLD)]


def test_of_plans_that_cost_the_same_the_first_is_meant() -> None:
    first, second = _plans(_Costs(500, 10, 0), _Costs(500, 10, 0))
    assert crossovers([first, second], WORLD) == [Stretch(first, 0.0, math.inf)]


def test_edge_only_sends_nothing_before_it_answers() -> None:
    edge, split = _plans(_Costs(700, 60, 0, edge_only=True), _Costs(900, 10, 0))
    slow, fast = crossovers([split, edge], WORLD)
    assert (slow.judged, fast.judged) == (edge, split)
    saved_ms = (
        predict(edge.candidate, edge.times, WORLD).latency_ms
        - predict(split.candidate, split.times, _at(1e12)).latency_ms
    )
    bits = (900 + FRAME_OVERHEAD_BYTES) * 8
    assert fast.from_bps == pytest.approx(bits * 1e3 / saved_ms)


def test_nothing_kept_has_no_stretches() -> None:
    assert crossovers([], WORLD) == []
    assert in_words([]) == []


A, B, C = _plans(_Costs(0, 60, 0, edge_only=True), _Costs(5300, 40, 0), _Costs(21_700, 0, 0))
_A_WORDS = "edge-only (0 bytes)"
_B_WORDS = "t1 plan 1 packed (5,300 bytes)"
_C_WORDS = "t2 plan 2 packed (21,700 bytes)"


@pytest.mark.parametrize(
    ("bounds", "ranges"),
    [
        # one unit is written once
        ((2.34e6, 11.2e6), ("below 2.3 Mbit/s", "from 2.3 to 11 Mbit/s", "above 11 Mbit/s")),
        # two are not
        ((8e5, 2e6), ("below 800 kbit/s", "from 800 kbit/s to 2 Mbit/s", "above 2 Mbit/s")),
        # what is rounded up changes its unit
        ((5.0, 999.9e3), ("below 5 bit/s", "from 5 bit/s to 1 Mbit/s", "above 1 Mbit/s")),
        # close bounds take more digits
        ((2.31e6, 2.32e6), ("below 2.31 Mbit/s", "from 2.31 to 2.32 Mbit/s", "above 2.32 Mbit/s")),
    ],
)
def test_stretches_in_words(bounds: tuple[float, float], ranges: tuple[str, str, str]) -> None:
    low, high = bounds
    words = in_words([Stretch(A, 0.0, low), Stretch(B, low, high), Stretch(C, high, math.inf)])
    assert words == [
        f"{ranges[0]}: {_A_WORDS}",
        f"{ranges[1]}: {_B_WORDS}",
        f"{ranges[2]}: {_C_WORDS}",
    ]


def test_one_plan_wins_at_any_bandwidth() -> None:
    assert in_words(crossovers([B], WORLD)) == [f"at any bandwidth: {_B_WORDS}"]
