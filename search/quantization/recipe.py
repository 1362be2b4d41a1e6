"""Recipes: the steps of post-training quantization, each of which can be switched.

    choose ranges -> round to the nearest -> choose ranges together
                                          -> round together, correct biases

At 8 bits the first two steps are all that a network needs; the others are for few bits. Named
recipes (recipes.py) are the published methods, to compare with. Equalisation (equalise.py) comes
before all of them, since it changes what is observed.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from search.network.graph import Graph
from search.quantization.calibration import Statistics
from search.quantization.network import QuantizedGraph, choose_clips, quantize
from search.quantization.recipes import DEFAULT, Recipe
from search.quantization.reconstruct import reconstruct
from search.quantization.widths import Configuration

EIGHT_BITS: Configuration = MappingProxyType({})


def rounded(
    graph: Graph,
    statistics: Statistics,
    widths: Configuration = EIGHT_BITS,
    how: Recipe = DEFAULT,
    *,
    reduced_range: bool = False,
) -> QuantizedGraph:
    """A network on the ranges of a recipe, its weights rounded to the nearest.

    Args:
        graph: The network, optimised.
        statistics: Distributions of its tensors on calibration images.
        widths: Bits by node.
        how: The recipe; its last step is `reconstructed`.
        reduced_range: As for `network.quantize`.
    """
    clips = choose_clips(
        graph, statistics, widths, clipping=how.clipping, weight_clipping=how.weight_clipping
    )
    return quantize(graph, clips, widths, reduced_range=reduced_range)


def reconstructed(
    network: QuantizedGraph,
    fetch: Sequence[str],
    frames: NDArray[np.uint8],
    how: Recipe = DEFAULT,
    progress: Callable[[int, int, str], None] = lambda _done, _total, _note: None,
) -> QuantizedGraph:
    """The last step of a recipe: better integers for the layers that make the tensors `fetch`.

    Args:
        network: From `rounded`.
        fetch: The tensors of a cut.
        frames: (N, 3, H, W) calibration images; 32 are enough.
        how: The recipe.
        progress: Called with layers done, in all, and the name of the last one.
    """
    return reconstruct(
        network,
        fetch,
        frames,
        rounding=how.rounding,
        correct_bias=how.correct_bias,
        progress=progress,
    )
