"""The allocation problem: a width for every weight and activation of the head, within limits.

It does not depend on networks: a `TensorChoice` is a tensor with an error at each width, a
`Problem` is a set of them with the limits that they share. Weights stay in memory for good; an
activation counts only while it is alive, so the memory of the activations is their peak over the
steps of execution.

    weights at their widths  +  peak of live activations  +  overhead  <=  memory

`lagrangian` solves it as the original Auto-Split does, `exact` solves it to the optimum.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import NoFeasiblePlanError, SettingsError

_TIME_SLACK = 1e-6
"""Relative tolerance of the time limit: times are sums of measurements."""


@dataclass(frozen=True)
class TensorChoice:
    """One tensor whose width is to be chosen.

    Attributes:
        name: Unique among the weights, or among the activations.
        elements: Number of elements.
        widths: Bits per element, ascending.
        errors: Error of the tensor at each width, in any unit that adds up.
        times_ms: Edge time of its layer at each width; empty if it does not depend on it.
    """

    name: str
    elements: int
    widths: tuple[int, ...]
    errors: tuple[float, ...]
    times_ms: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.elements < 1:
            raise ValueError(f"{self.name}: {self.elements} elements, expected one or more")
        if not self.widths or list(self.widths) != sorted({*self.widths}) or self.widths[0] < 1:
            raise ValueError(
                f"{self.name}: widths {self.widths} do not ascend from one bit or more"
            )
        if len(self.errors) != len(self.widths):
            raise ValueError(f"{self.name}: {len(self.errors)} errors, {len(self.widths)} widths")
        if self.times_ms and len(self.times_ms) != len(self.widths):
            raise ValueError(f"{self.name}: {len(self.times_ms)} times, {len(self.widths)} widths")
        if not all(math.isfinite(x) and x >= 0 for x in (*self.errors, *self.times_ms)):
            raise ValueError(f"{self.name}: an error or a time is negative or not finite")

    def bits(self, index: int) -> int:
        """Memory at the width of that index."""
        return self.elements * self.widths[index]

    def time_ms(self, index: int) -> float:
        """Edge time at the width of that index."""
        return self.times_ms[index] if self.times_ms else 0.0


@dataclass(frozen=True)
class Problem:
    """Tensors and the limits that they share; a limit of None does not bind.

    Attributes:
        weights: In memory from first to last.
        activations: In memory while they are alive.
        live: For each step of the execution order, the indices of the activations alive then.
        memory_bits: Limit on weights, peak of live activations and overhead together.
        weight_bits: Limit on the weights alone, as the original has it.
        activation_peak_bits: Limit on the peak of live activations alone.
        overhead_bits: What is always there (biases, scales); it counts in `memory_bits` only.
        time_limit_ms: Limit on the sum of the edge times.
    """

    weights: tuple[TensorChoice, ...]
    activations: tuple[TensorChoice, ...]
    live: tuple[tuple[int, ...], ...]
    memory_bits: int | None
    weight_bits: int | None = None
    activation_peak_bits: int | None = None
    overhead_bits: int = 0
    time_limit_ms: float | None = None

    def __post_init__(self) -> None:
        for choices in (self.weights, self.activations):
            if len({choice.name for choice in choices}) != len(choices):
                raise ValueError("two weights, or two activations, share a name")
        for step in self.live:
            if len({*step}) != len(step) or not all(
                0 <= index < len(self.activations) for index in step
            ):
                raise ValueError(f"live activations {step}: not distinct indices of activations")
        limits = (self.memory_bits, self.weight_bits, self.activation_peak_bits, self.time_limit_ms)
        if any(limit is not None and not 0 <= limit < math.inf for limit in limits):
            raise SettingsError(f"limits {limits}: expected none, or zero and more")
        if self.overhead_bits < 0:
            raise ValueError(f"an overhead of {self.overhead_bits} bits")

    def peak_bits(self, activation_bits: Sequence[int]) -> int:
        """The largest memory of live activations, given the memory of each."""
        return max((sum(activation_bits[index] for index in step) for step in self.live), default=0)


@dataclass(frozen=True)
class Allocation:
    """A solution.

    Attributes:
        weights: Bits per element of each weight, by name.
        activations: Bits per element of each activation, by name.
        error: Sum of the errors of both.
        weight_bits: Memory of the weights.
        peak_bits: Peak memory of the live activations.
        time_ms: Sum of the edge times that depend on widths.
    """

    weights: dict[str, int]
    activations: dict[str, int]
    error: float
    weight_bits: int
    peak_bits: int
    time_ms: float


def evaluate(
    problem: Problem, weights: Mapping[str, int], activations: Mapping[str, int]
) -> Allocation:
    """Compute error, memory and time of widths (bits per element, by name), feasible or not."""
    chosen = [(choice, choice.widths.index(weights[choice.name])) for choice in problem.weights]
    memory = sum(choice.bits(index) for choice, index in chosen)
    held = [(c, c.widths.index(activations[c.name])) for c in problem.activations]
    return Allocation(
        weights={choice.name: choice.widths[index] for choice, index in chosen},
        activations={choice.name: choice.widths[index] for choice, index in held},
        error=math.fsum(choice.errors[index] for choice, index in chosen + held),
        weight_bits=memory,
        peak_bits=problem.peak_bits([choice.bits(index) for choice, index in held]),
        time_ms=math.fsum(choice.time_ms(index) for choice, index in chosen + held),
    )


def select(problem: Problem, index_of: Callable[[TensorChoice], int]) -> Allocation:
    """Allocation that takes, for each choice, the width whose index `index_of` returns."""
    return evaluate(
        problem,
        {choice.name: choice.widths[index_of(choice)] for choice in problem.weights},
        {choice.name: choice.widths[index_of(choice)] for choice in problem.activations},
    )


def narrowest(problem: Problem) -> Allocation:
    """Every tensor at its least width: if this does not fit in memory, nothing does."""
    return select(problem, lambda _: 0)


def least_error(problem: Problem) -> Allocation:
    """Every tensor at its least error, of equal ones the widest: the optimum without limits."""
    return select(
        problem,
        lambda choice: min(range(len(choice.widths)), key=lambda i: (choice.errors[i], -i)),
    )


def is_feasible(problem: Problem, allocation: Allocation) -> bool:
    """Whether an allocation keeps every limit."""
    return not _exceeded(problem, allocation) and within_time(problem, allocation.time_ms)


def within_time(problem: Problem, time_ms: float) -> bool:
    """Whether a sum of edge times keeps the time limit."""
    limit = problem.time_limit_ms
    return limit is None or time_ms <= limit * (1 + _TIME_SLACK)


def raise_free(problem: Problem, allocation: Allocation) -> Allocation:
    """Widen activations where it is free: neither the peak, nor a limit, nor the error pays for it.

    In order, each activation takes the widest width with which no step exceeds the peak that is
    there already (of widths whose errors do not fall, the one of least error). After the original,
    where an activation is alive alone.
    """
    widths = dict(allocation.activations)
    load = [
        sum(choice.elements * widths[choice.name] for choice in alive)
        for alive in ([problem.activations[index] for index in step] for step in problem.live)
    ]
    time_ms = allocation.time_ms
    for position, choice in enumerate(problem.activations):
        steps = [step for step, alive in enumerate(problem.live) if position in alive]
        slack = allocation.peak_bits - max((load[step] for step in steps), default=0)
        now = best = choice.widths.index(widths[choice.name])
        for index in range(now + 1, len(choice.widths)):
            fits = not steps or choice.bits(index) - choice.bits(now) <= slack
            later = time_ms - choice.time_ms(now) + choice.time_ms(index)
            if fits and within_time(problem, later) and choice.errors[index] <= choice.errors[best]:
                best = index
        widths[choice.name] = choice.widths[best]
        time_ms += choice.time_ms(best) - choice.time_ms(now)
        for step in steps:
            load[step] += choice.bits(best) - choice.bits(now)
    return evaluate(problem, allocation.weights, widths)


def check_limits(problem: Problem) -> None:
    """Make sure that memory alone, and time alone, can be kept.

    Raises:
        NoFeasiblePlanError: With the limits that cannot be kept, the excess and the largest tensor.
    """
    excesses = [too_large(*row) for row in _exceeded(problem, narrowest(problem))]
    fastest = select(
        problem, lambda choice: min(range(len(choice.widths)), key=lambda i: choice.time_ms(i))
    )
    if not within_time(problem, fastest.time_ms):
        excesses.append(too_slow(fastest.time_ms, problem.time_limit_ms or 0.0))
    if excesses:
        raise NoFeasiblePlanError("; ".join(excesses))


def too_large(
    what: str, needed_bits: int, limit_bits: float, choices: Sequence[TensorChoice]
) -> str:
    """One-line message: bytes needed at the narrowest widths, the limit, and the bytes missing."""
    needed, limit = math.ceil(needed_bits / 8), math.floor(limit_bits / 8)
    text = f"{what}: {needed:,} bytes at the narrowest widths, limit {limit:,}"
    if choices:
        largest = max(choices, key=lambda choice: choice.bits(0))
        text += f"; the largest is {largest.name} with {math.ceil(largest.bits(0) / 8):,}"
    return f"{text}: allow {needed - limit:,} bytes more"


def too_slow(least_ms: float, limit_ms: float, given: str = "") -> str:
    """One-line message: the least time, the limit, and the time missing."""
    return (
        f"edge time: {least_ms:.3f} ms at the fastest widths{given}, limit {limit_ms:.3f}: "
        f"allow {least_ms - limit_ms:.3f} ms more"
    )


def _exceeded(
    problem: Problem, allocation: Allocation
) -> list[tuple[str, int, int, Sequence[TensorChoice]]]:
    """Memory limits exceeded, each as (subject, bits needed, limit, its tensors)."""
    weights, peak = allocation.weight_bits, allocation.peak_bits
    total = weights + peak + problem.overhead_bits
    alive = [problem.activations[index] for index in {i for step in problem.live for i in step}]
    rows = (
        ("weights and activations", total, problem.memory_bits, (*problem.weights, *alive)),
        ("weights", weights, problem.weight_bits, problem.weights),
        ("live activations", peak, problem.activation_peak_bits, alive),
    )
    return [
        (what, needed, limit, choices)
        for what, needed, limit, choices in rows
        if limit is not None and needed > limit
    ]
