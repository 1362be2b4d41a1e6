"""The fastest plan of every bandwidth, against trying them all."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.link.crossover import Line, Stretch, crossovers, in_words

_BPS = st.floats(3, 12).map(lambda exponent: 10**exponent)
_COSTS = st.tuples(st.integers(0, 50_000).map(float), st.floats(0, 500))
_LINES = st.lists(_COSTS, min_size=1, max_size=8).map(
    lambda costs: [Line(f"plan {index}", *each) for index, each in enumerate(costs)]
)


@given(_LINES, st.lists(_BPS, min_size=1, max_size=20))
def test_at_every_bandwidth_the_stretch_holds_the_fastest_plan(
    lines: list[Line], rates: list[float]
) -> None:
    stretches = crossovers(lines)
    for bps in rates:
        (holder,) = [s.line for s in stretches if s.from_bps <= bps < s.to_bps]
        best_ms = min(line.latency_ms(bps) for line in lines)
        assert holder.latency_ms(bps) == pytest.approx(best_ms, rel=1e-9)


@given(_LINES)
def test_stretches_cover_all_bandwidths_once_and_plans_meet_where_they_change(
    lines: list[Line],
) -> None:
    stretches = crossovers(lines)
    assert stretches[0].from_bps == 0
    assert stretches[-1].to_bps == math.inf
    assert len({s.line.name for s in stretches}) == len(stretches)
    for slower, faster in pairwise(stretches):
        assert slower.from_bps < slower.to_bps == faster.from_bps
        if 1e3 <= faster.from_bps <= 1e12:
            assert slower.line.latency_ms(faster.from_bps) == pytest.approx(
                faster.line.latency_ms(faster.from_bps), rel=1e-9
            )


def test_a_plan_that_is_never_the_fastest_has_no_stretch() -> None:
    lean, beaten, quick = Line("a", 0, 60), Line("b", 5000, 40), Line("c", 9900, 0)
    assert [s.line for s in crossovers([lean, beaten, quick])] == [lean, quick]
    assert beaten not in [s.line for s in crossovers([quick, beaten, lean])]


def test_of_plans_that_cost_the_same_the_first_is_meant() -> None:
    first, second = Line("first", 500, 10), Line("second", 500, 10)
    assert crossovers([first, second]) == [Stretch(first, 0.0, math.inf)]


def test_no_plans_have_no_stretches() -> None:
    assert crossovers([]) == []
    assert in_words([]) == []


A, B, C = Line("edge-only", 0, 60), Line("conv_8", 5300, 40), Line("upload", 21_800, 0, 100)
_A_WORDS = "edge-only (0 bytes)"
_B_WORDS = "conv_8 (5,300 bytes)"
_C_WORDS = "upload (21,700 bytes)"


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
    assert in_words(crossovers([B])) == [f"at any bandwidth: {_B_WORDS}"]
