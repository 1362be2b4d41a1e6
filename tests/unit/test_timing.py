"""Timing calls: what a median's interval covers, what is left out, and when it is enough."""

from collections.abc import Callable, Iterator
from math import comb, inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.tables import timing
from common.tables.timing import (
    NO_TIME,
    Timing,
    interleave,
    interleave_until_tight,
    median_interval,
    probe_until_tight,
)


class Clock:
    """A clock that only goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def call(self, *durations_ms: float) -> Callable[[], None]:
        """Something that takes these times in turn, then the last one for ever."""

        def endless() -> Iterator[float]:
            yield from durations_ms
            while True:
                yield durations_ms[-1]

        left = endless()

        def run() -> None:
            self.now_s += next(left) / 1e3

        return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "perf_counter", clock)
    return clock


@given(st.integers(1, 1500))
def test_the_interval_of_a_median_is_as_short_as_it_may_be(n: int) -> None:
    low, high = median_interval(n)
    assert 0 <= low <= high < n
    assert low + high == n - 1 or n >= 1000
    if 6 <= n < 200:
        outside = 2 * sum(comb(n, k) for k in range(low + 1)) / 2**n
        shorter = 2 * sum(comb(n, k) for k in range(low + 2)) / 2**n
        assert outside <= 0.05 < shorter


def test_intervals_cover_medians_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        made = Timing.of(rng.lognormal(3.0, 0.5, 40).tolist())
        covered += made.low_ms <= np.exp(3.0) <= made.high_ms
    assert 0.92 < covered / 400 < 0.995


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_a_summary_is_in_order_whatever_it_is_of(samples: list[float]) -> None:
    for made in (Timing.of(samples), Timing.of_runs(samples)):
        assert made.low_ms <= made.median_ms <= made.high_ms
        assert made.median_ms <= made.p90_ms
        assert made.n + made.outliers == len(samples)
        assert made.outliers <= len(samples) / 4


def test_runs_that_something_else_held_up_are_left_out_and_counted() -> None:
    runs = [10.0, 10.1, 10.2, 10.3, 10.4, 10.5, 10.6, 10.7, 500.0]
    assert Timing.of_runs(runs) == Timing.of(runs[:-1])._replace(outliers=1)
    assert Timing.of(runs).p90_ms > 100
    assert Timing.of_runs([1.0, 1.0, 900.0]).n == 3  # of so few, nobody knows which is odd


def test_what_is_not_known_is_not_made_up() -> None:
    assert Timing(1.0, 2.0, 3).high_ms == inf
    assert not Timing(1.0, 2.0, 3).is_tight(0.5)
    assert Timing.pooled([]) == Timing.pooled([NO_TIME]) == NO_TIME


def test_the_same_thing_timed_twice_is_one_timing() -> None:
    once, again = Timing(1.0, 2.0, 10, 0.9, 1.2, 1), Timing(4.0, 5.0, 30, 3.9, 4.2)
    assert Timing.pooled([once, again]) == pytest.approx((3.25, 4.25, 40, 3.15, 3.45, 1))
    assert Timing.pooled([once]) == once


@given(st.lists(st.lists(st.floats(0, 1e6), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_pool_is_in_order_too(samples: list[list[float]]) -> None:
    made = Timing.pooled([Timing.of(each) for each in samples])
    assert made.low_ms <= made.median_ms <= made.high_ms


def test_calls_are_interleaved() -> None:
    order = ""

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            nonlocal order
            order += name

        return run

    made = interleave([call("a"), call("b")], rounds=3, warm_up=1)
    assert order == "abababab"
    assert [each.n for each in made] == [3, 3]


def test_rounds_end_when_every_median_is_known(clock: Clock) -> None:
    steady = clock.call(10.0)
    restless = clock.call(*(10.0 + (k * 7 % 10) / 2 for k in range(100)))
    told: list[tuple[int, int]] = []

    first, second = interleave_until_tight(
        [steady, restless], progress=lambda done, most: told.append((done, most))
    )

    assert first.n == second.n
    assert 9 < second.n < 200
    assert second.is_tight(0.03)
    assert told[-2:] == [(second.n, 200), (200, 200)]


def test_what_never_settles_ends_all_the_same(clock: Clock) -> None:
    wild = clock.call(*(5.0 + 10.0 * (k % 2) for k in range(500)))
    (made,) = interleave_until_tight([wild], most=40)
    assert made.n == 40


def test_differences_that_decide_nothing_are_not_chased(clock: Clock) -> None:
    tiny = clock.call(*(0.001 + 0.001 * (k % 2) for k in range(500)))
    (made,) = interleave_until_tight([tiny])
    assert made.n == 9


def test_the_budget_is_kept_and_everything_has_a_time(clock: Clock) -> None:
    made = interleave_until_tight([clock.call(1000.0), clock.call(3000.0)], budget_s=9.0)
    assert [each.median_ms for each in made] == pytest.approx([1000.0, 3000.0])
    assert [each.n for each in made] == [1, 1]
    made = interleave_until_tight([clock.call(1000.0)], budget_s=0.0)
    assert made[0].n == 1


def test_a_probe_tells_of_each_of_its_stages() -> None:
    ((head, encode),) = probe_until_tight([lambda: (4.0, 0.5)])
    assert (head.median_ms, encode.median_ms) == (4.0, 0.5)
