"""Interface of a constraint: one limit of a search, and all that the search asks of it.

    option or manifest --> Constraint --admits_cut----> cuts worth timing
                                      --admits--------> plans worth keeping
                                      --relaxations---> advice if there is none

`search.constraints` has the registry. Ranking, advice, reports and the bundle's manifest loop over
the constraints of a request, and name none.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from common.bundle.manifest import JudgedBy, Limit
from search.network.cuts import Cut
from search.prediction.candidates import RankedCandidate
from search.quantization.heads import Heads


@dataclass(frozen=True)
class Relaxation:
    """One limit, relaxed as far as necessary.

    Attributes:
        option: Option for the command line.
        factor: The new limit over the old one; infinite if it is to be dropped.
        because: Plan or head that becomes feasible.
    """

    option: str
    factor: float
    because: str


@dataclass(frozen=True, eq=False)
class SearchFacts:
    """Facts about a search without a feasible plan, for advice.

    Attributes:
        reference_accuracy: Accuracy of the floating-point network.
        heads: The integer networks.
        cuts: All cuts of the network.
        strategy: Strategy of the search.
        judged_by: Pictures that accuracy was judged on.
    """

    reference_accuracy: float
    heads: Heads
    cuts: Sequence[Cut]
    strategy: str = "splitpoint"
    judged_by: JudgedBy = "held-out"


@dataclass(frozen=True)
class Constraint(ABC):
    """A limit of a search.

    Attributes:
        name: Keyword of `splitpoint.search`, and key of the limit in a bundle's manifest.
        default: Limit if the caller gives none.
        needs_accuracy: Whether it is about the measured accuracy. All others are checked first:
            no accuracy is measured of a candidate that breaks one.
        set_by_format: Whether the wire format alone decides it, so that a cut whose plain formats
            break it is worth a search of finer ones.
        limit: The limit, as the manifest keeps it.
    """

    name: ClassVar[str]
    default: ClassVar[Limit | None] = None
    needs_accuracy: ClassVar[bool] = False
    set_by_format: ClassVar[bool] = False

    limit: Limit

    @classmethod
    @abstractmethod
    def parse(cls, given: str | Limit) -> Self | None:
        """Constraint of a limit as a user or a manifest gives it; None if it limits nothing.

        Raises:
            SettingsError: If it is no such limit.
        """

    @property
    @abstractmethod
    def option(self) -> str:
        """Option on the command line, with its value."""

    @property
    @abstractmethod
    def words(self) -> str:
        """Description for reports, to stand in a list."""

    @abstractmethod
    def admits(self, candidate: RankedCandidate) -> bool:
        """Whether a candidate keeps the limit."""

    @abstractmethod
    def relaxed_for(self, candidate: RankedCandidate, facts: SearchFacts) -> Relaxation:
        """The least relaxation that admits a measured candidate."""

    def admits_cut(self, cut: Cut, heads: Heads) -> bool:
        """Whether any plan of a cut may keep the limit: checked before anything is measured."""
        del cut, heads
        return True

    def cut_advice(self, cuts: Sequence[Cut], heads: Heads) -> str:
        """Advice if `admits_cut` leaves none of the cuts."""
        del cuts, heads
        return f"drop {self.option}"

    def conflict(self, strategy: str) -> str | None:
        """Why a strategy can never keep the limit; None if it may."""
        del strategy
        return None

    def shortfall(self, candidates: Sequence[RankedCandidate], facts: SearchFacts) -> str:
        """Distance from the limit of the closest of some measured candidates, all beyond it."""
        del candidates, facts
        return ""

    def relaxations(
        self, others: Sequence[RankedCandidate], facts: SearchFacts
    ) -> Iterable[Relaxation]:
        """Ways to get a feasible plan by relaxing this limit alone.

        Args:
            others: Measured candidates that keep all other limits and break this one.
            facts: Facts about the search.
        """
        if others:
            relaxed = (self.relaxed_for(each, facts) for each in others)
            yield min(relaxed, key=lambda each: each.factor)
