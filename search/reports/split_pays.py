"""Whether a split pays: if none is the fastest plan, what would have to change for one to be.

One thing is changed at a time, all else being as the search found it: the bandwidth, the speed of
the edge, or a limit that keeps the splits out. Over the factor by which an edge gets slower the
latency of a plan is a line, as it is over the time that a bit takes.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.link.crossover import rate_in_words
from common.stages import PREDICTED
from search.constraints.base import Constraint
from search.constraints.feasibility import admits
from search.prediction.candidates import RankedCandidate
from search.reports.crossover import fastest
from search.request import SearchResult

_EDGE_STAGES = ("preprocess_ms", "head_ms", "encode_ms")


@dataclass(frozen=True)
class EdgeLine:
    """Latency of a plan by the factor by which the edge's own times grow.

    Attributes:
        is_split: Whether the plan is a split.
        fixed_ms: Time elsewhere.
        edge_ms: Time on the edge as it is.
    """

    is_split: bool
    fixed_ms: float
    edge_ms: float

    def latency_ms(self, factor: float) -> float:
        """Latency with an edge that takes `factor` times as long."""
        return self.fixed_ms + factor * self.edge_ms


def split_pays(result: SearchResult) -> list[str]:
    """Sentences on what would make a split the fastest plan; none if one is."""
    limits = result.request.constraints
    if result.request.strategy != "splitpoint" or _is_split(result.kept[0]):
        return []
    splits = [each for each in result.measured if _is_split(each)]
    if not splits:
        return ["No split was worth measuring: each is slower at every bandwidth that was tried."]
    if not any(admits(limits, each) for each in splits):
        return [_kept_out(splits, limits)]
    link = result.cost_model.link
    lines = [f"No split pays at {link} on this edge: {result.kept[0].candidate.name} is faster."]
    return [*lines, _by_bandwidth(result), _by_edge(result)]


def _is_split(ranked: RankedCandidate) -> bool:
    return ranked.candidate.cut.kind == "split"


def _kept_out(splits: Sequence[RankedCandidate], limits: Sequence[Constraint]) -> str:
    """Sentence on the split that breaks the fewest limits."""
    nearest = min(splits, key=lambda each: (len(_broken(each, limits)), each.latency_ms))
    broken = " and ".join(limit.words for limit in _broken(nearest, limits))
    lost = f", loses up to {nearest.most_lost:.1f} points" if nearest.judged_on else ""
    memory = nearest.candidate.edge_memory_bytes / 2**20
    return (
        f"Every split is kept out by a limit. {nearest.candidate.name} would take "
        f"{nearest.latency_ms:.0f} ms, needs {memory:.2f} MiB{lost}: it breaks {broken}."
    )


def _broken(ranked: RankedCandidate, limits: Sequence[Constraint]) -> list[Constraint]:
    return [limit for limit in limits if not limit.admits(ranked)]


def _by_bandwidth(result: SearchResult) -> str:
    names = {each.candidate.name for each in result.kept if _is_split(each)}
    stretches = [s for s in fastest(result.kept) if s.line.name in names]
    if not stretches:
        return "No bandwidth makes one the fastest."
    low, high = stretches[0].from_bps, stretches[-1].to_bps
    above = f"above {rate_in_words(low)}" if low else ""
    below = "" if math.isinf(high) else f"below {rate_in_words(high)}"
    return f"By bandwidth a split is the fastest {' and '.join(filter(None, (above, below)))}."


def _by_edge(result: SearchResult) -> str:
    found = edge_range([_edge_line(ranked) for ranked in result.kept])
    if found is None:
        return "No other speed of the edge makes one the fastest on this link."
    low, high = found
    if low > 1:
        return f"An edge {low:.2g} times as slow as this one makes a split the fastest."
    return f"An edge {1 / high:.2g} times as fast as this one makes a split the fastest."


def edge_range(lines: Sequence[EdgeLine]) -> tuple[float, float] | None:
    """The factors nearest to 1, from and to, at which a split is the fastest; None if at none."""
    bounds = sorted({0.0, *_crossings(lines), math.inf})
    spans: list[tuple[float, float]] = []
    for low, high in itertools.pairwise(bounds):
        if _split_is_fastest(lines, _inside((low, high))):
            start = spans.pop()[0] if spans and spans[-1][1] == low else low
            spans.append((start, high))
    return min(spans, key=_distance, default=None)


def _crossings(lines: Sequence[EdgeLine]) -> Iterable[float]:
    for one, other in itertools.combinations(lines, 2):
        if one.edge_ms != other.edge_ms:
            factor = (other.fixed_ms - one.fixed_ms) / (one.edge_ms - other.edge_ms)
            if factor > 0:
                yield factor


def _inside(span: tuple[float, float]) -> float:
    low, high = span
    return low + 1 if math.isinf(high) else (low + high) / 2


def _split_is_fastest(lines: Sequence[EdgeLine], factor: float) -> bool:
    return min(lines, key=lambda line: line.latency_ms(factor)).is_split


def _distance(span: tuple[float, float]) -> float:
    """Distance of a range of factors from 1, as a ratio."""
    low, high = span
    return low if low > 1 else 1 / high if high < 1 else 1.0


def _edge_line(ranked: RankedCandidate) -> EdgeLine:
    stages = ranked.predicted.model_dump()
    own = [*_EDGE_STAGES, *(["postprocess_ms"] if ranked.candidate.codec is None else [])]
    edge = math.fsum(stages[stage] for stage in own)
    whole = math.fsum(stages[f"{stage}_ms"] for stage in PREDICTED)
    return EdgeLine(_is_split(ranked), whole - edge, edge)
