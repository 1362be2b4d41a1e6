"""Budget of bytes: how much a frame may send on the uplink, framing included."""

import math
from dataclasses import dataclass
from typing import ClassVar, Self

from common.bundle.manifest import Limit
from common.sizes import size_of
from search.constraints.base import Constraint, Relaxation, SearchFacts
from search.prediction.candidates import RankedCandidate


@dataclass(frozen=True)
class MaxBytes(Constraint):
    """Most bytes of a frame on the uplink, as predicted; edge-only sends none and keeps it."""

    name: ClassVar[str] = "max_bytes"
    set_by_format: ClassVar[bool] = True

    limit: int

    @classmethod
    def parse(cls, given: str | Limit) -> Self | None:
        """Read a size, such as "4KB" or a number of bytes."""
        return cls(size_of(given))

    @property
    def option(self) -> str:
        """Option on the command line."""
        return f"--max-bytes {self.limit}"

    @property
    def words(self) -> str:
        """Description for reports."""
        return f"{self.limit:,} bytes of a frame on the uplink, framing included"

    def admits(self, candidate: RankedCandidate) -> bool:
        """Whether a candidate's predicted message is within the budget."""
        return candidate.predicted.uplink_bytes <= self.limit

    def relaxed_for(self, candidate: RankedCandidate, facts: SearchFacts) -> Relaxation:
        """Budget raised to what a candidate sends."""
        del facts
        need = math.ceil(candidate.predicted.uplink_bytes)
        because = f"{candidate.candidate.name} is small enough then"
        return Relaxation(f"--max-bytes {need}", need / self.limit, because)
