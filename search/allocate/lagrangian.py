"""Allocation under one memory limit by a Lagrange multiplier, as the original Auto-Split does it.

Minimise the sum of D_i(b_i) subject to the sum of s_i b_i <= limit: for a multiplier, each tensor
takes on its own the width of least D_i(b) + multiplier * s_i b. The result lies on the lower convex
hull of error over memory: nothing has less error in as many bits, but solutions between two
corners of the hull are never found. `exact` finds those.

Y. Shoham and A. Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE
Transactions on Acoustics, Speech and Signal Processing 36(9), 1988.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import NoFeasiblePlanError
from search.allocate.problem import (
    Allocation,
    Problem,
    TensorChoice,
    check_limits,
    evaluate,
    is_feasible,
    raise_free,
    too_large,
)

STEPS = 15
"""Number of steps of the walk through the bracket."""


def lagrangian(choices: Sequence[TensorChoice], limit_bits: float) -> tuple[int, ...]:
    """Widths of small error whose memory is within a limit.

    Raises:
        NoFeasiblePlanError: If the narrowest widths do not fit.
    """
    return at_multiplier(choices, multiplier(choices, limit_bits))


def at_multiplier(choices: Sequence[TensorChoice], value: float) -> tuple[int, ...]:
    """Widths that minimise error + value * bits; of equals the narrowest."""
    picks = _Table(choices).picks(value)
    return tuple(choice.widths[pick] for choice, pick in zip(choices, picks, strict=True))


def multiplier(choices: Sequence[TensorChoice], limit_bits: float) -> float:
    """The multiplier (error per bit) whose widths fit: zero if those of least error do.

    From |sum D(narrowest) - sum D(widest)| / volume it is doubled or halved until two neighbours
    bracket the limit, then the bracket is walked in `STEPS` steps. The original walks from the side
    whose memory is nearer to the limit, which costs fewer steps; as memory never grows with the
    multiplier, both walks end at the same step, so this one always comes from below. Unlike there,
    the walk ends on the side that fits.

    Raises:
        NoFeasiblePlanError: If the narrowest widths do not fit.
    """
    needed = sum(choice.bits(0) for choice in choices)
    if needed > limit_bits:
        raise NoFeasiblePlanError(too_large("memory", needed, limit_bits, choices))
    table = _Table(choices)
    if table.memory(0.0) <= limit_bits:
        return 0.0
    volume = sum(choice.elements for choice in choices)
    drop = abs(sum(choice.errors[0] - choice.errors[-1] for choice in choices))
    high = drop / volume or 1.0
    while table.memory(high) > limit_bits:
        high *= 2
    while table.memory(high / 2) <= limit_bits:
        high /= 2
    steps = np.linspace(high / 2, high, STEPS + 1)[1:]
    return next((float(step) for step in steps if table.memory(step) <= limit_bits), high)


def lagrangian_problem(problem: Problem) -> Allocation:
    """Allocate activations, then weights, as the original does.

    For each average width, activations get that average over their *sum*, weights what their peak
    leaves, then activations are raised where it is free. Of the averages the best counts; so does
    the narrowest sum, so that whatever fits in memory is found. A time limit only filters.

    Raises:
        NoFeasiblePlanError: If the limits cannot be kept, or (of a time limit) are not met here.
    """
    check_limits(problem)
    volume = sum(choice.elements for choice in problem.activations)
    averages = {width for choice in problem.activations for width in choice.widths}
    limits = {sum(choice.bits(0) for choice in problem.activations)}
    limits |= {average * volume for average in averages}
    found = []
    for limit in sorted(limits):
        try:
            allocation = _one_after_the_other(problem, limit)
        except NoFeasiblePlanError:
            continue
        if is_feasible(problem, allocation):
            found.append(allocation)
    if not found:
        raise NoFeasiblePlanError(
            f"edge time: no widths found within {problem.time_limit_ms} ms: allow more, or search "
            "exactly"
        )
    return min(found, key=lambda allocation: allocation.error)


def _one_after_the_other(problem: Problem, limit_bits: int) -> Allocation:
    activations = lagrangian(problem.activations, limit_bits)
    peak = problem.peak_bits(
        [c.elements * width for c, width in zip(problem.activations, activations, strict=True)]
    )
    left = float("inf") if problem.weight_bits is None else problem.weight_bits
    if problem.memory_bits is not None:
        left = min(left, problem.memory_bits - problem.overhead_bits - peak)
    weights = lagrangian(problem.weights, left)
    return raise_free(
        problem,
        evaluate(
            problem,
            {c.name: width for c, width in zip(problem.weights, weights, strict=True)},
            {c.name: width for c, width in zip(problem.activations, activations, strict=True)},
        ),
    )


class _Table:
    """The choices as arrays (choices, widths); missing widths have an infinite error."""

    def __init__(self, choices: Sequence[TensorChoice]) -> None:
        most = max((len(choice.widths) for choice in choices), default=1)
        self._bits = np.ones((len(choices), most), np.int64)
        self._errors = np.full((len(choices), most), np.inf)
        for row, choice in enumerate(choices):
            self._bits[row, : len(choice.widths)] = np.multiply(choice.widths, choice.elements)
            self._errors[row, : len(choice.widths)] = choice.errors

    def picks(self, value: float) -> NDArray[np.intp]:
        return np.asarray(np.argmin(self._errors + value * self._bits, axis=1), np.intp)

    def memory(self, value: float) -> int:
        picks = self.picks(value)[:, None]
        return int(np.take_along_axis(self._bits, picks, axis=1).sum())
