"""Privacy: pixels may not leave the edge."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from common.bundle.manifest import Limit
from common.errors import SettingsError
from search.constraints.base import Constraint, Relaxation, SearchFacts
from search.network.cuts import Cut
from search.prediction.candidates import RankedCandidate
from search.quantization.heads import Heads


@dataclass(frozen=True)
class NoRawImage(Constraint):
    """Every plan needs a head."""

    name: ClassVar[str] = "no_raw_image"

    limit: bool = True

    @classmethod
    def parse(cls, given: str | Limit) -> Self | None:
        """Read a flag."""
        if not isinstance(given, bool):
            raise SettingsError(f"no_raw_image is {given!r}: expected true or false")
        return cls() if given else None

    @property
    def option(self) -> str:
        """Option on the command line."""
        return "--no-raw-image"

    @property
    def words(self) -> str:
        """Description for reports."""
        return "no pixels leave the edge"

    def admits(self, candidate: RankedCandidate) -> bool:
        """Whether a candidate has a head; a baseline's may lack one."""
        return bool(candidate.candidate.cut.head)

    def admits_cut(self, cut: Cut, heads: Heads) -> bool:
        """Whether a cut is not the one at the input."""
        del heads
        return bool(cut.head)

    def conflict(self, strategy: str) -> str | None:
        """Why cloud-only is impossible."""
        sends = "--strategy cloud-only sends pixels, which --no-raw-image forbids"
        return sends if strategy == "cloud-only" else None

    def relaxed_for(self, candidate: RankedCandidate, facts: SearchFacts) -> Relaxation:
        """The limit dropped: the last way out, since it is a matter of privacy."""
        del candidate, facts
        return Relaxation("no --no-raw-image", math.inf, "uploads lose nothing")

    def relaxations(
        self, others: Sequence[RankedCandidate], facts: SearchFacts
    ) -> Iterable[Relaxation]:
        """The limit dropped, whatever was measured: uploads never were."""
        del others, facts
        yield Relaxation("no --no-raw-image", math.inf, "uploads lose nothing")
