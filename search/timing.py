"""Timing calls on a machine that is shared and noisy.

Calls to be compared are interleaved, so that a slow spell hits all alike, and the median is taken.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class Timing(NamedTuple):
    """Times of one call: median and 90th percentile in ms over n runs."""

    median_ms: float
    p90_ms: float
    n: int

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> "Timing":
        """Summarise samples."""
        median, p90 = np.percentile(samples_ms, (50, 90))
        return cls(float(median), float(p90), len(samples_ms))


NO_TIME = Timing(0.0, 0.0, 0)


def interleave(
    calls: Sequence[Callable[[], object]], *, rounds: int, warm_up: int = 1
) -> list[Timing]:
    """Time each call `rounds` times, one after the other in every round."""
    samples: list[list[float]] = [[] for _ in calls]
    for round_ in range(warm_up + rounds):
        for call, times in zip(calls, samples, strict=True):
            start = time.perf_counter()
            call()
            if round_ >= warm_up:
                times.append((time.perf_counter() - start) * 1e3)
    return [Timing.of(times) for times in samples]
