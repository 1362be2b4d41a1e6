"""Limit on lost accuracy, in points, kept with confidence and not only on average."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from common.bundle.manifest import JudgedBy, Limit
from common.errors import SettingsError
from search.constraints.base import Constraint, Relaxation, SearchFacts
from search.measure.held_out import JUDGING_SHARE
from search.measure.intervals import images_needed
from search.prediction.candidates import RankedCandidate


@dataclass(frozen=True)
class MaxDrop(Constraint):
    """Largest loss that a plan may have at the upper end of a one-sided interval, in points."""

    name: ClassVar[str] = "max_drop"
    default: ClassVar[float] = 3.0
    needs_accuracy: ClassVar[bool] = True

    limit: float

    @classmethod
    def parse(cls, given: str | Limit) -> Self | None:
        """Read a number of points."""
        points = math.nan if isinstance(given, str | bool) else float(given)
        if not 0 <= points < math.inf:
            raise SettingsError(f"{given!r} is not a loss of accuracy: give 0 or more points")
        return cls(points)

    @property
    def option(self) -> str:
        """Option on the command line."""
        return f"--max-drop {self.limit:g}"

    @property
    def words(self) -> str:
        """Description for reports."""
        return f"an accuracy drop of {self.limit:g} points"

    def admits(self, candidate: RankedCandidate) -> bool:
        """Whether the upper end of the interval of a candidate's loss is within the limit."""
        return candidate.most_lost <= self.limit

    def shortfall(self, candidates: Sequence[RankedCandidate], facts: SearchFacts) -> str:
        """Loss of the closest candidate, with its bound."""
        closest = _closest(candidates)
        drop = _drop(closest, facts)
        text = (
            f"of {facts.reference_accuracy:.1f} points {closest.candidate.name} loses least, "
            f"{drop:.2f}"
        )
        if not math.isfinite(closest.most_lost):
            return text
        text += f" and at most {closest.most_lost:.2f} on {closest.judged_on} pictures (90 %)"
        return f"{text}, too few to be sure" if drop <= self.limit else text

    def relaxed_for(self, candidate: RankedCandidate, facts: SearchFacts) -> Relaxation:
        """Limit raised to the bound of a candidate's loss; to the loss, if it was given up."""
        bound = candidate.most_lost
        bound = bound if math.isfinite(bound) else _drop(candidate, facts)
        factor = bound / self.limit if self.limit else math.inf
        # Rounded up, so that the same search then finds it.
        option = f"--max-drop {math.ceil(100 * bound) / 100:.2f}"
        return Relaxation(option, factor, f"{candidate.candidate.name} is good enough then")

    def relaxations(
        self, others: Sequence[RankedCandidate], facts: SearchFacts
    ) -> Iterable[Relaxation]:
        """A larger limit for the closest plan, or more pictures to show that a plan is within."""
        if others:
            yield self.relaxed_for(_closest(others), facts)
        for each in sorted(others, key=lambda other: -(other.accuracy or 0.0)):
            needed = self.pictures_needed(each, facts.reference_accuracy)
            if needed is not None:
                yield Relaxation(
                    more_pictures(needed, facts.judged_by),
                    needed / each.judged_on,
                    f"if {each.candidate.name} loses {_drop(each, facts):.2f} on them, too: "
                    "an estimate",
                )
                return

    def pictures_needed(self, candidate: RankedCandidate, reference_accuracy: float) -> int | None:
        """Pictures that may show that a candidate keeps the limit; None if none would."""
        bound = candidate.most_lost
        if not self.limit < bound < math.inf:
            return None
        drop = reference_accuracy - (candidate.accuracy or 0.0)
        return images_needed(candidate.judged_on, drop, bound, self.limit)


def more_pictures(needed: int, judged_by: JudgedBy) -> str:
    """Advice on options that make about `needed` pictures judge plans."""
    if judged_by == "evaluation":
        return f"about {needed:,} pictures under --evaluation, with --max-images {needed}"
    total = JUDGING_SHARE * needed
    return (
        f"about {needed:,} pictures to judge on, by --evaluation or as a quarter of {total:,} "
        f"calibration pictures, with --max-images {total}"
    )


def _closest(candidates: Sequence[RankedCandidate]) -> RankedCandidate:
    """Candidate with the lowest upper bound of its loss."""
    return min(candidates, key=lambda each: (each.most_lost, -(each.accuracy or 0.0)))


def _drop(candidate: RankedCandidate, facts: SearchFacts) -> float:
    return facts.reference_accuracy - (candidate.accuracy or 0.0)
