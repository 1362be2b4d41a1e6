"""The kept plans of a search as lines over bandwidth, for `common.link.crossover`."""

from collections.abc import Sequence

from common.latency import predicted_line
from common.link.crossover import Line, Stretch, crossovers
from search.prediction.candidates import RankedCandidate


def fastest(kept: Sequence[RankedCandidate]) -> list[Stretch]:
    """The fastest plan of every bandwidth; round trip and device are those of the predictions."""
    return crossovers(_line(ranked) for ranked in kept)


def _line(ranked: RankedCandidate) -> Line:
    predicted = ranked.predicted
    overhead_bytes = predicted.uplink_bytes - ranked.axes[1]
    return predicted_line(ranked.candidate.name, predicted, overhead_bytes)
