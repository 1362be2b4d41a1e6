"""The kept plans of a search by bandwidth, against judging them all."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.codec.spec import CodecSpec
from common.link.crossover import in_words
from common.link.link import parse_link
from common.tables.timing import Timing
from search.network.cuts import Cut
from search.network.graph import Node
from search.prediction.candidates import (
    FRAME_OVERHEAD_BYTES,
    Candidate,
    CostModel,
    RankedCandidate,
    predict,
    rank_candidates,
)
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile
from search.reports.crossover import fastest

COST_MODEL = CostModel(parse_link("1mbit/20ms"), DeviceProfile("slow", 2.0), 2.0, 1.0)
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


def _plan(index: int, costs: _Costs) -> RankedCandidate:
    cut = Cut((f"t{index}",), (NODE,), () if costs.edge_only else (NODE,))
    codec = None if costs.edge_only else CodecSpec(name="packed")
    candidate = Candidate(cut, (), codec, costs.sent, 0.5, 0.25, 0, 0, label=f"plan {index}")
    return RankedCandidate(candidate, predict(candidate, _times(costs), COST_MODEL))


def _times(costs: _Costs) -> CutTimes:
    return CutTimes(
        Timing(costs.head_ms, costs.head_ms, 9), Timing(costs.tail_ms, costs.tail_ms, 9)
    )


def _plans(*costs: _Costs) -> list[RankedCandidate]:
    return [_plan(index, each) for index, each in enumerate(costs)]


def _at(bps: float) -> CostModel:
    return replace(COST_MODEL, link=replace(COST_MODEL.link, uplink_bps=bps))


@given(st.lists(_COSTS, min_size=1, max_size=8), st.lists(_BPS, min_size=1, max_size=20))
def test_at_every_bandwidth_the_stretch_holds_the_fastest_plan(
    costs: list[_Costs], rates: list[float]
) -> None:
    plans = _plans(*costs)
    stretches = fastest(plans)
    times = {p.candidate.cut.name: _times(each) for p, each in zip(plans, costs, strict=True)}
    for bps in rates:
        (holder,) = [s.line for s in stretches if s.from_bps <= bps < s.to_bps]
        best = rank_candidates([plan.candidate for plan in plans], times, _at(bps))[0]
        assert holder.latency_ms(bps) == pytest.approx(best.latency_ms, rel=1e-9)


def test_edge_only_sends_nothing_before_it_answers() -> None:
    thin = _Costs(900, 10, 0)
    edge, split = _plans(_Costs(700, 60, 0, edge_only=True), thin)
    slow, fast = fastest([split, edge])
    assert [s.line.name for s in (slow, fast)] == [p.candidate.name for p in (edge, split)]
    saved_ms = edge.latency_ms - predict(split.candidate, _times(thin), _at(1e12)).latency_ms
    bits = (900 + FRAME_OVERHEAD_BYTES) * 8
    assert fast.from_bps == pytest.approx(bits * 1e3 / saved_ms)


def test_words_tell_the_payload_alone() -> None:
    (split,) = _plans(_Costs(5300, 40, 0))
    assert in_words(fastest([split])) == ["at any bandwidth: t0 plan 0 packed (5,300 bytes)"]
