"""Infeasible searches: the limits that exclude every plan, and the least relaxation of them.

Every limit is relaxed on its own, as far as the plan that needs the least of it; only if that
admits no plan, several are at once. The cheapest relaxation is the one of the smallest factor.
"""

import math
from collections.abc import Sequence

from search.constraints import in_words
from search.constraints.base import Constraint, Relaxation, SearchFacts
from search.network.cuts import Cut
from search.prediction.candidates import RankedCandidate
from search.quantization.heads import Heads


def no_cut_left(constraints: Sequence[Constraint], heads: Heads, cuts: Sequence[Cut]) -> str:
    """Message if the constraints leave no cut, whatever its plans would be like.

    Args:
        constraints: Limits of the search.
        heads: The integer networks.
        cuts: Cuts whose heads have an integer form.
    """
    binding = [c for c in constraints if not all(c.admits_cut(cut, heads) for cut in cuts)]
    none = "" if any(cut.head for cut in cuts) else "no head has an integer form, and "
    advice = ", or ".join(c.cut_advice(cuts, heads) for c in binding)
    return f"{none}no cut keeps {in_words(binding)}: {advice}"


def nothing_fits(
    measured: Sequence[RankedCandidate], constraints: Sequence[Constraint], facts: SearchFacts
) -> str:
    """Message if no measured plan keeps the limits, with the relaxations that admit one.

    Args:
        measured: The measured candidates, at least one.
        constraints: Limits of the search.
        facts: Facts about the search.
    """
    broken = {each: [c for c in constraints if not c.admits(each)] for each in measured}
    ways: list[Relaxation] = []
    shortfalls: list[str] = []
    for limit in constraints:
        others = [each for each, limits in broken.items() if limits == [limit]]
        ways += limit.relaxations(others, facts)
        beyond = others or [each for each, limits in broken.items() if limit in limits]
        if others or len(beyond) == len(broken):
            shortfalls.append(limit.shortfall(beyond, facts))
    if all(len(limits) > 1 for limits in broken.values()):
        together = (_together(each, limits, facts) for each, limits in broken.items())
        ways.append(min(together, key=lambda way: way.factor))
    ways.sort(key=lambda way: way.factor)
    detail = ", ".join(filter(None, shortfalls))
    advice = "; ".join(f"{way.option} ({way.because})" for way in ways)
    return (
        f"no plan keeps {in_words(constraints)}{f': {detail}' if detail else ''}; "
        f"the cheapest ways out: {advice}"
    )


def _together(
    candidate: RankedCandidate, broken: Sequence[Constraint], facts: SearchFacts
) -> Relaxation:
    """All limits that a candidate breaks, each relaxed as far as it needs."""
    relaxed = [each.relaxed_for(candidate, facts) for each in broken]
    return Relaxation(
        " with ".join(each.option for each in relaxed),
        math.prod(each.factor for each in relaxed),
        f"{candidate.candidate.name} keeps all limits then",
    )
