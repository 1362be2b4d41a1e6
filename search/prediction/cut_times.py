"""Times of cuts: what every prediction of latency starts from."""

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
    """Where the search's latency table comes from."""

    def times(
        self, cuts: Sequence[Cut], progress: Callable[[int, int], None]
    ) -> dict[str, CutTimes]:
        """Times of every cut, by the cut's name."""
        ...
