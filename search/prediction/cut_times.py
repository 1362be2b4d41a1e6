"""Times of cuts: the base of every prediction of latency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from common.tables.timing import Timing
from search.network.cuts import Cut


@dataclass(frozen=True)
class CutTimes:
    """Times of the two sides of a cut, on the machine where they were measured."""

    head: Timing
    tail: Timing


class LatencySource(Protocol):
    """Source of the times of cuts."""

    def times(
        self, cuts: Sequence[Cut], progress: Callable[[int, int], None]
    ) -> dict[str, CutTimes]:
        """Times of every cut, by the cut's name."""
        ...
