"""Corrections: factors learnt from measurements, robust, and intervals that hold their promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.planning.correction import Correction, Coverage


def teach(correction: Correction, key: str, factor: float, n: int, noise: float = 0.05) -> None:
    rng = np.random.default_rng(n)
    for _ in range(n):
        correction.step()
        correction.update(key, 40.0 * factor * float(np.exp(noise * rng.standard_normal())), 40.0)


def test_nothing_measured_corrects_nothing() -> None:
    assert Correction().factor("a") == 1.0


def test_fifty_measurements_find_the_factor() -> None:
    correction = Correction()
    teach(correction, "a", 1.3, 50)
    assert correction.factor("a") == pytest.approx(1.3, rel=0.04)


def test_a_plan_that_was_never_served_shares_the_side() -> None:
    correction = Correction()
    teach(correction, "a", 1.5, 50)
    assert correction.factor("b") == pytest.approx(1.5, rel=0.1)
    assert correction.spread("b") > correction.spread("a")


def test_each_plan_has_its_own_residual() -> None:
    correction = Correction()
    for _ in range(10):
        teach(correction, "a", 1.2, 20)
        teach(correction, "b", 1.0, 20)
    assert correction.factor("a") == pytest.approx(1.2, rel=0.06)
    assert correction.factor("b") == pytest.approx(1.0, rel=0.06)


def test_one_stray_frame_moves_little() -> None:
    correction = Correction()
    teach(correction, "a", 1.0, 100)
    before = correction.factor("a")
    correction.update("a", 4000.0, 40.0)
    assert correction.factor("a") == pytest.approx(before, rel=0.1)


def test_a_machine_that_becomes_slower_is_followed_and_flagged() -> None:
    correction = Correction()
    teach(correction, "a", 1.0, 200)
    assert correction.drifts == 0
    teach(correction, "a", 2.0, 15)
    assert correction.drifts >= 1
    assert correction.factor("a") == pytest.approx(2.0, rel=0.15)


def test_what_is_not_measured_becomes_less_certain() -> None:
    correction = Correction()
    teach(correction, "a", 1.0, 50)
    before = correction.spread("a")
    for _ in range(200):
        correction.step()
    assert correction.spread("a") > before


def test_what_earlier_frames_took_is_believed_at_once_and_by_how_many_they_were() -> None:
    few, many, far = Correction(), Correction(), Correction()
    few.seed("a", 60.0, 40.0, n=1)
    many.seed("a", 60.0, 40.0, n=10)
    far.seed("a", 4000.0, 40.0, n=10)
    assert 1.0 < few.factor("a") < many.factor("a") < 1.5
    assert far.factor("a") == pytest.approx(100.0, rel=0.2)


def test_what_was_served_here_is_not_begun_again() -> None:
    correction = Correction()
    teach(correction, "a", 1.0, 5)
    before = correction.factor("a")
    correction.seed("a", 4000.0, 40.0, n=10)
    assert correction.factor("a") == before


@pytest.mark.parametrize(("measured", "predicted"), [(0.0, 40.0), (-1.0, 40.0), (40.0, 0.0)])
def test_times_that_are_none_teach_nothing(measured: float, predicted: float) -> None:
    correction, coverage = Correction(), Coverage()
    correction.update("a", measured, predicted)
    coverage.update("a", measured, predicted)
    assert correction.n == 0
    assert coverage.n == 0


@pytest.mark.parametrize("noise", ["normal", "heavy tails", "skewed"])
def test_intervals_cover_what_they_promise(noise: str) -> None:
    rng = np.random.default_rng(3)
    draws = {
        "normal": lambda: 0.1 * rng.standard_normal(),
        "heavy tails": lambda: 0.05 * rng.standard_t(2.5),
        "skewed": lambda: 0.1 * rng.exponential(),
    }
    coverage = Coverage(0.95)
    for _ in range(3000):
        coverage.update("a", 50.0 * float(np.exp(draws[noise]())), 50.0)
    assert 0.90 <= coverage.covered / coverage.n <= 0.98


def test_intervals_stay_honest_when_noise_grows() -> None:
    rng = np.random.default_rng(4)
    coverage = Coverage(0.95)
    for k in range(3000):
        spread = 0.03 if k < 1500 else 0.15
        coverage.update("a", 50.0 * float(np.exp(spread * rng.standard_normal())), 50.0)
    assert 0.90 <= coverage.covered / coverage.n <= 0.98
    low, high = coverage.interval("a")
    assert low < 0.85
    assert high > 1.15


def test_of_little_known_the_interval_is_wide() -> None:
    low, high = Coverage().interval("a")
    assert low < 0.8
    assert high > 1.3


@given(st.lists(st.floats(-3, 3), max_size=60), st.integers(1, 20))
def test_intervals_know_the_last_errors_alone(errors: list[float], window: int) -> None:
    coverage = Coverage(window=window)
    for error in errors:
        coverage.update("a", math.exp(error), 1.0)
    assert coverage._own.keys() <= {"a"}
    for recent in (coverage._all, *coverage._own.values()):
        assert recent.ordered == pytest.approx(sorted(errors[-window:]))
