"""Feasibility: which candidates keep the constraints of a search.

Accuracy is the most expensive measurement of a search, so it is measured only of candidates that
keep every constraint that does without it.
"""

from collections.abc import Callable, Sequence

from search.constraints.base import Constraint
from search.measure.accuracy_evaluator import AccuracyEvaluator, UnmeasuredCandidates
from search.prediction.candidates import Candidate, RankedCandidate


class Feasibility:
    """Checks candidates against constraints.

    Args:
        constraints: Limits of the search.
        evaluator: Measures accuracies.
        predict: Predicts a candidate.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint],
        evaluator: AccuracyEvaluator | UnmeasuredCandidates,
        predict: Callable[[Candidate], RankedCandidate],
    ) -> None:
        self._before = [each for each in constraints if not each.needs_accuracy]
        self._after = [each for each in constraints if each.needs_accuracy]
        self._evaluator = evaluator
        self._predict = predict

    def is_affordable(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps all limits but those on accuracy; measures nothing."""
        return admits(self._before, self._predict(candidate))

    def is_feasible(self, candidate: Candidate) -> bool:
        """Whether a candidate keeps all limits; its accuracy is measured only if it may."""
        ranked = self._predict(candidate)
        return admits(self._before, ranked) and self._is_accurate(ranked)

    def is_promising(self, candidate: Candidate) -> bool:
        """Whether a candidate is feasible but for limits that a finer wire format may keep."""
        ranked = self._predict(candidate)
        fixed = [each for each in self._before if not each.set_by_format]
        return admits(fixed, ranked) and self._is_accurate(ranked)

    def _is_accurate(self, ranked: RankedCandidate) -> bool:
        return admits(self._after, self._evaluator.with_accuracy(ranked))


def admits(constraints: Sequence[Constraint], candidate: RankedCandidate) -> bool:
    """Whether a candidate keeps all of some constraints."""
    return all(each.admits(candidate) for each in constraints)
