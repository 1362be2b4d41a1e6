"""Allocation to the optimum: weights and activations at once, as a mixed-integer program.

One binary per tensor and width, one continuous variable for the peak:

    minimise    sum of errors of the widths taken
    subject to  each tensor takes one width
                memory of the activations alive at a step <= peak, for every step
                weights + peak + overhead <= memory limit, and the other limits

Solved by HiGHS (Q. Huangfu and J. Hall, 2018) as it comes with SciPy.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import Bounds, LinearConstraint, milp

from common.errors import NoFeasiblePlanError
from search.allocate.lagrangian import lagrangian_problem
from search.allocate.problem import (
    Allocation,
    Problem,
    check_limits,
    evaluate,
    is_feasible,
    least_error,
    raise_free,
    too_slow,
    within_time,
)

RELATIVE_GAP = 1e-6
"""Largest relative distance of a solution from the optimum, unless time runs out."""
_USUAL_ROW = 1e2
"""Size to which the memory of the largest tensor, and the time limit, are scaled."""
_TOLERANCE = 1e-5
"""Tolerance of a sum in such a row: several times that of HiGHS."""
_USUAL_COST = 1e3
"""Scaled cost of the best known solution: HiGHS' absolute gap of 1e-6 never ends a search."""


def solve_exact(problem: Problem, *, time_limit_s: float = 10.0) -> Allocation:
    """The widths of least error, to within `RELATIVE_GAP`, with free activations raised.

    If time runs out it is the best that was found, never worse than `lagrangian_problem`.

    Raises:
        NoFeasiblePlanError: If the limits cannot be kept, or nothing was found in time.
    """
    best = least_error(problem)
    if is_feasible(problem, best):
        return best
    check_limits(problem)
    try:
        known = [lagrangian_problem(problem)]
    except NoFeasiblePlanError:
        known = []
    program = _Program(problem)
    errors = [choice.errors for choice in program.choices]
    scale = known[0].error if known else math.fsum(max(row) for row in errors)
    found = program.minimise(errors, scale, time_limit_s)
    if found is not None:
        known.append(raise_free(problem, found))
    if not known:
        raise NoFeasiblePlanError(_why_nothing(problem, time_limit_s))
    return min(known, key=lambda allocation: allocation.error)


class _Program:
    """The integer program of a problem; columns are (tensor, width) pairs, the last is the peak.

    Memory and cost are scaled to the size that the solver's tolerances are made for. Sums of memory
    are multiples of a unit, the greatest common divisor of all: limits are set half a unit above
    the last one that fits, so that no tolerance decides. Where the unit is lost in the tolerance (a
    bit in a hundred million), limits are lower by the tolerance instead.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.choices = (*problem.weights, *problem.activations)
        self._owner = np.repeat(
            np.arange(len(self.choices)), [len(choice.widths) for choice in self.choices]
        )
        bits = [choice.bits(i) for choice in self.choices for i in range(len(choice.widths))]
        self._unit = math.gcd(*bits)
        self._scale = max(bits) / _USUAL_ROW
        self._memory = np.array(bits) / self._scale
        half = self._unit / self._scale / 2
        self._margin = half if half > _TOLERANCE else -_TOLERANCE

    def minimise(
        self, costs: Sequence[Sequence[float]], scale: float, time_limit_s: float
    ) -> Allocation | None:
        """The allocation of least cost, if one was found; `scale` is its approximate cost."""
        columns = len(self._owner)
        objective = np.append(_flat(costs) * (_USUAL_COST / scale if scale > 0 else 1.0), 0.0)
        with _without_stdout():
            result = milp(
                objective,
                integrality=np.append(np.ones(columns), 0),
                bounds=Bounds(0, np.append(np.ones(columns), self._rooms()[2])),
                constraints=self._constraints(),
                options={"mip_rel_gap": RELATIVE_GAP, "time_limit": time_limit_s},
            )
        if result.x is None:
            return None
        allocation = self._allocation(result.x[:-1])
        return allocation if is_feasible(self.problem, allocation) else None

    def _rooms(self) -> tuple[float, float, float]:
        """Scaled memory limits: all together, weights, peak."""
        problem = self.problem
        memory = problem.memory_bits
        limits = (
            None if memory is None else memory - problem.overhead_bits,
            problem.weight_bits,
            problem.activation_peak_bits,
        )
        together, weights, peak = (
            math.inf
            if limit is None
            else limit // self._unit * self._unit / self._scale + self._margin
            for limit in limits
        )
        return together, weights, peak

    def _constraints(self) -> list[LinearConstraint]:
        problem, owner = self.problem, self._owner
        columns, weights = len(owner), len(problem.weights)
        together, weight_room, _ = self._rooms()
        one_each = sparse.csr_array((np.ones(columns), (owner, np.arange(columns))))
        memory = one_each.multiply(self._memory).tocsr()
        of_weights = np.where(owner < weights, self._memory, 0.0)[None]
        steps = sorted({tuple(sorted(step)) for step in problem.live if step})
        rows = [
            LinearConstraint(_beside(one_each, 0), 1, 1),
            LinearConstraint(_beside(of_weights, 1), -np.inf, together),
            LinearConstraint(_beside(of_weights, 0), -np.inf, weight_room),
        ]
        if steps:
            alive = sparse.lil_array((len(steps), len(self.choices)))
            for row, step in enumerate(steps):
                alive[row, [weights + index for index in step]] = 1
            rows.append(LinearConstraint(_beside(alive.tocsr() @ memory, -1), -np.inf, 0))
        if problem.time_limit_ms is not None:
            times = _flat([[c.time_ms(i) for i in range(len(c.widths))] for c in self.choices])
            times *= _USUAL_ROW / (problem.time_limit_ms or 1.0)
            room = _USUAL_ROW if problem.time_limit_ms else 0.0
            rows.append(LinearConstraint(_beside(times[None], 0), -np.inf, room))
        return rows

    def _allocation(self, taken: NDArray[np.float64]) -> Allocation:
        starts = np.searchsorted(self._owner, np.arange(len(self.choices)))
        widths = [
            choice.widths[int(np.argmax(taken[start : start + len(choice.widths)]))]
            for choice, start in zip(self.choices, starts, strict=True)
        ]
        split = len(self.problem.weights)
        return evaluate(
            self.problem,
            dict(zip((c.name for c in self.problem.weights), widths[:split], strict=True)),
            dict(zip((c.name for c in self.problem.activations), widths[split:], strict=True)),
        )


def _why_nothing(problem: Problem, time_limit_s: float) -> str:
    """Error message: the least edge time of widths that fit in memory, or a solver timeout."""
    timeless = _Program(replace(problem, time_limit_ms=None))
    times = [[c.time_ms(i) for i in range(len(c.widths))] for c in timeless.choices]
    fastest = timeless.minimise(times, problem.time_limit_ms or 1.0, time_limit_s)
    if fastest is None or within_time(problem, fastest.time_ms):
        return f"no widths were found within the limits in {time_limit_s} s: allow more time"
    return too_slow(fastest.time_ms, problem.time_limit_ms or 0.0, " that fit in memory")


@contextmanager
def _without_stdout() -> Iterator[None]:
    """Suppress what HiGHS 1.12 prints by mistake (ERGO-Code/HiGHS, issue 2783)."""
    output = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        os.dup2(output, 1)
        os.close(output)
        os.close(nowhere)


def _flat(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array([value for row in rows for value in row], np.float64)


def _beside(matrix: Any, peak: float) -> Any:
    """A matrix over the pairs with the peak's coefficient in a last column."""
    column = np.full((matrix.shape[0], 1), peak)
    return sparse.hstack([sparse.csr_array(matrix), sparse.csr_array(column)], format="csr")
