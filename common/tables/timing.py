"""Timing on a machine that is shared and noisy, with confidence intervals.

    calls -> rounds of all calls, one after the other -> runs in ms -> Timing: median, p90, interval

What is to be compared is interleaved, so that a slow spell hits all alike and caches are as cold as
between frames. A median comes with the 95 % interval that its order statistics give, which takes no
distribution for granted.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from time import perf_counter
from typing import NamedTuple

import numpy as np

Probe = Callable[[], Sequence[float]]
"""Callable that runs once and returns the latency of each of its stages, in ms."""

_FEWEST_WITH_OUTLIERS = 8
_FAR_OUT = 3.0
_NEGLIGIBLE_MS = 0.02
"""Half an interval of this length decides nothing, whatever share of the median it is."""


class Timing(NamedTuple):
    """Times of one thing.

    Attributes:
        median_ms: Of the runs that count.
        p90_ms: Their 90th percentile.
        n: How many count.
        low_ms: Lower end of the median's 95 % interval.
        high_ms: Its upper end; infinite where there is no estimate of it.
        outliers: Runs that were left out.
    """

    median_ms: float
    p90_ms: float
    n: int
    low_ms: float = 0.0
    high_ms: float = math.inf
    outliers: int = 0

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> "Timing":
        """Summarise samples, at least one; all of them count."""
        ordered = np.sort(np.asarray(samples_ms, np.float64))
        low, high = median_interval(len(ordered))
        median, p90 = np.percentile(ordered, (50, 90))
        return cls(
            float(median), float(p90), len(ordered), float(ordered[low]), float(ordered[high])
        )

    @classmethod
    def of_runs(cls, samples_ms: Sequence[float]) -> "Timing":
        """Summarise runs of one call without those that something else held up.

        Left out, and counted, are runs above Q3 + 3 IQR, Tukey's outer fence ("Exploratory Data
        Analysis", 1977): at most a quarter, and none of fewer than eight.
        """
        if len(samples_ms) < _FEWEST_WITH_OUTLIERS:
            return cls.of(samples_ms)
        first, third = np.percentile(samples_ms, (25, 75))
        fence = third + _FAR_OUT * (third - first)
        kept = [ms for ms in samples_ms if ms <= fence]
        return cls.of(kept)._replace(outliers=len(samples_ms) - len(kept))

    @classmethod
    def pooled(cls, timings: Sequence["Timing"]) -> "Timing":
        """One row for timings of the same thing: means of their numbers, weighted by runs."""
        total = sum(each.n for each in timings)
        if not total:
            return NO_TIME

        def mean(values: Sequence[float]) -> float:
            # Clipped, because rounding may carry the mean of equal numbers past them.
            weighted = sum(v * each.n for v, each in zip(values, timings, strict=True)) / total
            return min(max(weighted, min(values)), max(values))

        median, low, high = (
            mean([each[field] for each in timings])
            for field in map(cls._fields.index, ("median_ms", "low_ms", "high_ms"))
        )
        return cls(
            median_ms=median,
            p90_ms=mean([each.p90_ms for each in timings]),
            n=total,
            low_ms=min(low, median),
            high_ms=max(high, median),
            outliers=sum(each.outliers for each in timings),
        )

    def is_tight(self, tolerance: float) -> bool:
        """Whether the interval lies within this share of the median, or decides nothing."""
        reach_ms = max(self.median_ms - self.low_ms, self.high_ms - self.median_ms)
        return reach_ms <= max(tolerance * self.median_ms, _NEGLIGIBLE_MS)


NO_TIME = Timing(0.0, 0.0, 0, 0.0, 0.0)


def interleave(
    calls: Sequence[Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> list[Timing]:
    """Time each call `rounds` times, one after the other in every round."""
    probes = [_timed(call) for call in calls]
    times = probe_until_tight(probes, warm_up=warm_up, least=rounds, most=rounds)
    return [each for (each,) in times]


def interleave_until_tight(
    calls: Sequence[Callable[[], object]],
    *,
    tolerance: float = 0.03,
    warm_up: int = 2,
    least: int = 9,
    most: int = 200,
    budget_s: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time calls, one after the other in every round, until their medians are precise.

    Arguments are those of `probe_until_tight`.
    """
    times = probe_until_tight(
        [_timed(call) for call in calls],
        tolerance=tolerance,
        warm_up=warm_up,
        least=least,
        most=most,
        budget_s=budget_s,
        progress=progress,
    )
    return [each for (each,) in times]


def probe_until_tight(
    probes: Sequence[Probe],
    *,
    tolerance: float = 0.03,
    warm_up: int = 2,
    least: int = 9,
    most: int = 200,
    budget_s: float = math.inf,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Timing]]:
    """Run probes, one after the other in every round, until their medians are precise.

    Args:
        probes: Each gives as many times in every round.
        tolerance: What the 95 % interval of every median may reach to either side, as a share of
            the median.
        warm_up: Rounds that do not count.
        least: Rounds that count, before any of them is looked at.
        most: Rounds that count, however wide the intervals.
        budget_s: After this time no other round begins; one is always run, so that all have a time.
        progress: Called after each round with rounds done and rounds at the most.

    Returns:
        A Timing for each stage of each probe.
    """
    until_s = perf_counter() + budget_s
    for _ in range(warm_up):
        if perf_counter() < until_s:
            _round(probes)
    rounds: list[list[Sequence[float]]] = []
    timings: list[list[Timing]] = []
    while len(rounds) < most and (not rounds or perf_counter() < until_s):
        rounds.append(_round(probes))
        if progress is not None:
            progress(len(rounds), most)
        if len(rounds) >= least:
            timings = _summarised(rounds)
            if all(stage.is_tight(tolerance) for stages in timings for stage in stages):
                break
    if progress is not None and len(rounds) < most:
        progress(most, most)
    return timings if len(rounds) >= least else _summarised(rounds)


@cache
def median_interval(n: int) -> tuple[int, int]:
    """Ranks, from zero, of the ordered samples between which the median lies at 95 %.

    The number of samples below the median is binomial(n, 1/2); the widest ranks whose interval
    leaves out at most 2.5 % at each end. Of fewer than six samples, all of them.
    """
    below, chance = 0.0, 0.5**n if n < 1000 else 0.0
    if n >= 1000:  # the normal approximation is as good there
        half = 1.96 * (n**0.5) / 2
        return max(0, int(n / 2 - half)), min(n - 1, int(n / 2 + half))
    rank = 0
    while below + chance <= 0.025:
        below += chance
        chance *= (n - rank) / (rank + 1)
        rank += 1
    low = max(0, rank - 1)
    return low, n - 1 - low


def _timed(call: Callable[[], object]) -> Probe:
    def probe() -> tuple[float]:
        start_s = perf_counter()
        call()
        return ((perf_counter() - start_s) * 1e3,)

    return probe


def _round(probes: Sequence[Probe]) -> list[Sequence[float]]:
    return [probe() for probe in probes]


def _summarised(rounds: Sequence[Sequence[Sequence[float]]]) -> list[list[Timing]]:
    """Summarise rounds of probes of stages as a Timing per probe and stage."""
    return [
        [Timing.of_runs(runs) for runs in zip(*probed, strict=True)]
        for probed in zip(*rounds, strict=True)
    ]
