"""Interface of a strategy: measured inputs of its choice, and the plans that it would deploy."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.progress import Reporter
from search.network.cuts import Cut
from search.prediction.candidates import Candidate, CostModel
from search.prediction.cut_times import CutTimes
from search.quantization.heads import Heads
from search.quantization.rounding import Rounder
from search.wire.formats import FormatTable


@dataclass(frozen=True, eq=False)
class StrategyInputs:
    """Inputs of a strategy: one network on one device and link, with its measured costs.

    Attributes:
        heads: The integer networks.
        frames: (N, 3, H, W) calibration images.
        times: Times of the prefix cuts, by name.
        table: Prices of tensors.
        cost_model: Device and link.
        memory_bytes: Limit on edge memory; None for no limit.
        rounder: Makes a `Rounder` by the recipe that the user chose, or else by a named one.
        time_cut: Times another cut, which `times` then has, too.
        is_feasible: Whether a candidate keeps all limits; its accuracy is measured for that.
        reporter: Receives progress.
    """

    heads: Heads
    frames: NDArray[np.uint8]
    times: Mapping[str, CutTimes]
    table: FormatTable
    cost_model: CostModel
    memory_bytes: int | None
    rounder: Callable[[str], Rounder]
    time_cut: Callable[[Cut], None]
    is_feasible: Callable[[Candidate], bool]
    reporter: Reporter


Baseline = Callable[[StrategyInputs], Iterator[Candidate]]
"""Yields the candidates that a strategy would deploy, which are then measured like our own."""
