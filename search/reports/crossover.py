"""The kept plans of a search as lines over bandwidth, for `common.link.crossover`."""

import math
from collections.abc import Sequence

from common.link.crossover import Line, Stretch, crossovers
from search.prediction.candidates import CostModel, RankedCandidate, predict


def fastest(kept: Sequence[RankedCandidate], world: CostModel) -> list[Stretch]:
    """The fastest plan of every bandwidth; round trip and device are those of `world`."""
    return crossovers(_line(judged, world) for judged in kept)


def _line(judged: RankedCandidate, world: CostModel) -> Line:
    prediction = predict(judged.candidate, judged.times, world)
    fixed_ms = math.fsum(
        (
            prediction.preprocess_ms,
            prediction.head_ms,
            prediction.encode_ms,
            prediction.rtt_ms,
            prediction.decode_ms,
            prediction.tail_ms,
            prediction.postprocess_ms,
        )
    )
    overhead_bytes = prediction.uplink_bytes - judged.axes[1]
    return Line(judged.candidate.name, prediction.uplink_bytes, fixed_ms, overhead_bytes)
