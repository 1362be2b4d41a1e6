"""Allocation: the exact solver against a brute force, the Lagrangian against its own theory."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import NoFeasiblePlanError, SettingsError
from search.allocate.exact import RELATIVE_GAP, solve_exact
from search.allocate.lagrangian import at_multiplier, lagrangian, lagrangian_problem, multiplier
from search.allocate.problem import (
    Allocation,
    Problem,
    TensorChoice,
    evaluate,
    is_feasible,
    narrowest,
    raise_free,
    select,
)

WIDTHS = st.sets(st.sampled_from((1, 2, 4, 5, 8)), min_size=2, max_size=3).map(
    lambda widths: tuple(sorted(widths))
)


@st.composite
def choices(draw: st.DrawFn, name: str, *, timed: bool, falling: bool) -> TensorChoice:
    widths = draw(WIDTHS)
    scale = 10.0 ** draw(st.integers(-6, 3))
    errors = [
        draw(st.integers(0, 64)) * scale * (4.0**-width if falling else 1) for width in widths
    ]
    if falling:
        errors.sort(reverse=True)
    times = tuple(draw(st.integers(0, 9)) / 4 for _ in widths) if timed else ()
    return TensorChoice(name, draw(st.integers(1, 20)), widths, tuple(errors), times)


@st.composite
def problems(
    draw: st.DrawFn, *, timed: bool = False, falling: bool = True, feasible: bool = False
) -> Problem:
    weights, activations = (
        tuple(
            draw(choices(f"{kind}{index}", timed=timed, falling=falling))
            for index in range(draw(st.integers(kind == "w", 3)))
        )
        for kind in "wa"
    )
    steps = st.sets(st.integers(0, len(activations) - 1)) if activations else st.just(set[int]())
    live = draw(st.lists(steps.map(lambda step: tuple(sorted(step))), max_size=4))
    free = Problem(weights, activations, tuple(live), None, overhead_bits=draw(st.integers(0, 9)))
    low = narrowest(free)
    high = select(free, lambda choice: len(choice.widths) - 1)

    def limit(least: int, most: int) -> int | None:
        lowest = least if feasible else max(0, least - 1)
        return draw(st.none() | st.integers(lowest, most + 5))

    return replace(
        free,
        memory_bits=limit(
            low.weight_bits + low.peak_bits + free.overhead_bits,
            high.weight_bits + high.peak_bits + free.overhead_bits,
        ),
        weight_bits=limit(low.weight_bits, high.weight_bits),
        activation_peak_bits=limit(low.peak_bits, high.peak_bits),
        time_limit_ms=draw(st.integers(0, 30)) / 4 if timed else None,
    )


def every_allocation(problem: Problem) -> Iterator[Allocation]:
    everything = (*problem.weights, *problem.activations)
    for widths in itertools.product(*(choice.widths for choice in everything)):
        split = len(problem.weights)
        yield evaluate(
            problem,
            {c.name: w for c, w in zip(problem.weights, widths[:split], strict=True)},
            {c.name: w for c, w in zip(problem.activations, widths[split:], strict=True)},
        )


def least_error_by_brute_force(problem: Problem) -> float:
    feasible = (a.error for a in every_allocation(problem) if is_feasible(problem, a))
    return min(feasible, default=math.inf)


def exact_error(problem: Problem) -> float:
    try:
        allocation = solve_exact(problem)
    except NoFeasiblePlanError:
        return math.inf
    assert is_feasible(problem, allocation)
    return allocation.error


@settings(max_examples=150, deadline=None)
@given(problems())
def test_exact_is_the_optimum_under_every_kind_of_memory_limit(problem: Problem) -> None:
    assert exact_error(problem) == pytest.approx(
        least_error_by_brute_force(problem), rel=2 * RELATIVE_GAP, abs=0
    )


@settings(max_examples=100, deadline=None)
@given(problems(timed=True, falling=False))
def test_exact_is_the_optimum_under_time_and_errors_that_do_not_fall(problem: Problem) -> None:
    assert exact_error(problem) == pytest.approx(
        least_error_by_brute_force(problem), rel=2 * RELATIVE_GAP, abs=0
    )


@settings(max_examples=60, deadline=None)
@given(problems(feasible=True))
def test_exact_is_never_worse_than_the_lagrangian_and_both_are_feasible(problem: Problem) -> None:
    exact, hull = solve_exact(problem), lagrangian_problem(problem)
    assert is_feasible(problem, exact)
    assert is_feasible(problem, hull)
    assert exact.error <= hull.error


def test_exact_without_time_to_search_is_still_as_good_as_the_lagrangian() -> None:
    problem = _network(12)
    assert solve_exact(problem, time_limit_s=0).error <= lagrangian_problem(problem).error


def test_exact_finds_what_lies_off_the_hull() -> None:
    # The middle width lies above the line from narrowest to widest, which fits neither tensor.
    weights = tuple(TensorChoice(name, 1, (2, 4, 8), (10.0, 9.0, 0.0)) for name in "ab")
    problem = Problem(weights, (), (), memory_bits=9)
    assert lagrangian_problem(problem).weights == {"a": 2, "b": 2}
    assert sorted(solve_exact(problem).weights.values()) == [4, 4]


def test_tensors_that_are_never_alive_together_share_memory() -> None:
    activations = tuple(TensorChoice(name, 10, (2, 8), (1.0, 0.0)) for name in "abc")
    apart = Problem((), activations, ((0,), (1,), (2,)), memory_bits=80)
    together = replace(apart, live=((0, 1), (2,)))
    assert solve_exact(apart).activations == {"a": 8, "b": 8, "c": 8}
    assert solve_exact(together).activations == {"a": 2, "b": 2, "c": 8}


def test_errors_of_very_different_size_all_count() -> None:
    weights = (
        TensorChoice("large", 1, (2, 8), (1e6, 1e-6)),
        TensorChoice("small", 1, (2, 4), (2e-6, 1e-6)),
        TensorChoice("tiny", 1, (2, 4), (2e-7, 1e-7)),
    )
    problem = Problem(weights, (), (), memory_bits=12 + 2)
    assert solve_exact(problem).weights == {"large": 8, "small": 4, "tiny": 2}


def test_a_limit_between_tensors_of_very_different_size_is_kept() -> None:
    # One bit too few for all three at their widest, in a hundred million.
    weights = (
        TensorChoice("huge", 12_345_678, (4, 8), (9.0, 0.0)),
        TensorChoice("small", 999, (4, 8), (2.0, 0.0)),
        TensorChoice("single", 1, (1, 2), (1.0, 0.0)),
    )
    problem = Problem(weights, (), (), memory_bits=8 * (12_345_678 + 999) + 1)
    allocation = solve_exact(problem)
    assert is_feasible(problem, allocation)
    assert allocation.weights["huge"] == 8


def test_without_limits_every_tensor_takes_its_least_error() -> None:
    problem = replace(_network(3), memory_bits=None)
    widest = solve_exact(problem)
    assert {*widest.weights.values(), *widest.activations.values()} == {8}
    assert lagrangian_problem(problem) == widest


@settings(deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_a_free_raise_costs_nothing_and_leaves_nothing_free(
    problem: Problem, random: Random
) -> None:
    before = select(problem, lambda choice: random.randrange(len(choice.widths)))
    after = raise_free(problem, before)
    assert after.weights == before.weights
    assert after.peak_bits == before.peak_bits
    assert after.error <= before.error
    assert all(after.activations[name] >= width for name, width in before.activations.items())
    for choice in problem.activations:
        for width in choice.widths:
            if width > after.activations[choice.name]:
                wider = evaluate(problem, after.weights, after.activations | {choice.name: width})
                assert wider.peak_bits > before.peak_bits


def test_a_free_raise_keeps_the_time_limit() -> None:
    activations = (TensorChoice("a", 1, (2, 4, 8), (2.0, 1.0, 0.0), (1.0, 2.0, 3.0)),)
    problem = Problem((), activations, (), None, time_limit_ms=2.5)
    assert raise_free(problem, narrowest(problem)).activations == {"a": 4}


@given(problems(falling=False), st.integers(0, 300))
def test_nothing_of_as_little_memory_has_less_error_than_the_lagrangian(
    problem: Problem, room: int
) -> None:
    limit = sum(choice.bits(0) for choice in problem.weights) + room
    value = multiplier(problem.weights, limit)
    found = lagrangian(problem.weights, limit)
    assert found == at_multiplier(problem.weights, value)
    memory, error = _cost(problem.weights, found)
    assert memory <= limit
    for widths in itertools.product(*(choice.widths for choice in problem.weights)):
        other_memory, other_error = _cost(problem.weights, widths)
        tolerance = 1e-9 * (error + value * memory)
        assert other_error + value * other_memory >= error + value * memory - tolerance
        if other_memory <= memory:
            assert other_error >= error - tolerance


def test_the_lagrangian_walks_to_the_hull_point_below_the_limit() -> None:
    weights = (
        TensorChoice("a", 10, (2, 4, 8), (16.0, 4.0, 0.0)),
        TensorChoice("b", 10, (2, 8), (3.0, 0.0)),
    )
    assert [lagrangian(weights, limit) for limit in (40, 59, 60, 100, 159, 160)] == [
        (2, 2),
        (2, 2),
        (4, 2),
        (8, 2),
        (8, 2),
        (8, 8),
    ]


def test_the_walk_tells_apart_corners_of_the_hull_within_one_doubling() -> None:
    # Ten tensors that gain 1.05, 1.15 ... 1.95 per bit: those that gain most are raised first.
    gains = [1.05 + 0.1 * index for index in range(10)]
    weights = tuple(TensorChoice(f"{gain}", 10, (2, 4), (20 * gain, 0.0)) for gain in gains)
    for raised in range(11):
        assert lagrangian(weights, 200 + 20 * raised) == (2,) * (10 - raised) + (4,) * raised


WEIGHTS = (
    TensorChoice("conv_0", 100, (2, 4), (1.0, 0.0)),
    TensorChoice("conv_1", 800, (2, 4), (1.0, 0.0)),
)
OUTPUTS = (TensorChoice("conv_0 out", 400, (4, 8), (1.0, 0.0)),)
FAST_IS_WIDE = (TensorChoice("conv_0", 100, (2, 8), (1.0, 0.0), (5.0, 1.0)),)


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        # Weights 225 bytes, peak 200, overhead 10.
        (
            Problem(WEIGHTS, OUTPUTS, ((0,),), 8 * 400, overhead_bits=80),
            (
                "weights and activations: 435 bytes at the narrowest widths, limit 400; the "
                "largest is conv_1 with 200: allow 35 bytes more"
            ),
        ),
        (
            Problem(WEIGHTS, OUTPUTS, ((0,),), None, weight_bits=8 * 200),
            (
                "weights: 225 bytes at the narrowest widths, limit 200; the largest is conv_1 with "
                "200: allow 25 bytes more"
            ),
        ),
        (
            Problem(WEIGHTS, OUTPUTS, ((0,),), None, activation_peak_bits=8 * 100),
            (
                "live activations: 200 bytes at the narrowest widths, limit 100; the largest is "
                "conv_0 out with 200: allow 100 bytes more"
            ),
        ),
        (
            Problem(FAST_IS_WIDE, (), (), None, time_limit_ms=0.5),
            "edge time: 1.000 ms at the fastest widths, limit 0.500: allow 0.500 ms more",
        ),
        # Each limit alone can be kept, both together not.
        (
            Problem(FAST_IS_WIDE, (), (), 200, time_limit_ms=2),
            (
                "edge time: 5.000 ms at the fastest widths that fit in memory, limit 2.000: allow "
                "3.000 ms more"
            ),
        ),
    ],
)
def test_what_cannot_be_says_which_limit_binds_and_what_would_help(
    problem: Problem, told: str
) -> None:
    with pytest.raises(NoFeasiblePlanError) as caught:
        solve_exact(problem)
    assert str(caught.value) == told


@pytest.mark.parametrize(
    "problem", [Problem(WEIGHTS, (), (), 100), Problem((), OUTPUTS, ((0,),), 1)]
)
def test_the_lagrangian_says_what_does_not_fit(problem: Problem) -> None:
    with pytest.raises(NoFeasiblePlanError, match="the largest is conv_"):
        lagrangian_problem(problem)


def test_one_limit_too_low_for_the_narrowest_is_refused() -> None:
    with pytest.raises(NoFeasiblePlanError, match="memory: 225 bytes at the narrowest widths"):
        lagrangian(WEIGHTS, 8 * 225 - 1)


@pytest.mark.parametrize(
    ("elements", "widths", "errors", "times"),
    [
        (0, (2,), (1.0,), ()),
        (1, (), (), ()),
        (1, (4, 2), (0.0, 1.0), ()),
        (1, (2, 2), (1.0, 0.0), ()),
        (1, (0, 2), (1.0, 0.0), ()),
        (1, (2, 4), (1.0,), ()),
        (1, (2, 4), (1.0, math.inf), ()),
        (1, (2, 4), (1.0, -1.0), ()),
        (1, (2, 4), (1.0, 0.0), (1.0,)),
        (1, (2,), (1.0,), (math.nan,)),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(
    elements: int, widths: tuple[int, ...], errors: tuple[float, ...], times: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=r"^conv: "):
        TensorChoice("conv", elements, widths, errors, times)


def test_a_problem_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        Problem(WEIGHTS[:1] * 2, (), (), None)
    with pytest.raises(ValueError, match="indices of activations"):
        Problem((), OUTPUTS, ((1,),), None)
    with pytest.raises(SettingsError, match="limits"):
        Problem(WEIGHTS, (), (), memory_bits=-1)


def _cost(weights: tuple[TensorChoice, ...], widths: tuple[int, ...]) -> tuple[int, float]:
    taken = [(c, c.widths.index(width)) for c, width in zip(weights, widths, strict=True)]
    return sum(c.bits(i) for c, i in taken), math.fsum(c.errors[i] for c, i in taken)


def _network(layers: int) -> Problem:
    """A chain whose layers are all different; half the memory that the widest widths need."""
    widths = (2, 4, 6, 8)
    weights, activations = (
        tuple(
            TensorChoice(
                f"{index}",
                17 + index * step % 41,
                widths,
                tuple(7.0**-w * (index + 1) for w in widths),
            )
            for index in range(layers)
        )
        for step in (13, 29)
    )
    live = tuple((max(index - 1, 0), index) if index else (0,) for index in range(layers))
    problem = Problem(weights, activations, live, None)
    widest = select(problem, lambda _: 3)
    return replace(problem, memory_bits=(widest.weight_bits + widest.peak_bits) // 2)
