"""Rounding of a network to any widths by a recipe, with results cached.

Rounding to the nearest takes no time. Rounding together takes seconds to a minute and depends on
everything before it, so its result is cached by the digest of all of that.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.progress import Progress
from search.cache import Cache, digest
from search.network.graph import Graph
from search.network.losses import Loss, feature_loss
from search.network.quant_params import QuantizedConv
from search.quantization.calibration import Statistics
from search.quantization.lapq import head_loss, lapq
from search.quantization.network import Clips, QuantizedGraph, quantize
from search.quantization.recipe import reconstructed, rounded
from search.quantization.recipes import DEFAULT, Recipe
from search.quantization.widths import FULL, Configuration

_FRAMES = 32
_CLIPPED_FRAMES = 16
_THREADS = 2
_PARTS = ("weight", "scale", "bias", "bits")


class Rounder:
    """Rounds one network.

    Args:
        graph: The network, optimised.
        statistics: Distributions of its tensors.
        frames: (N, 3, H, W) calibration images; the first 32 are used to round weights together.
        cache: For weights that were rounded together.
        origin: Digest of the network and the frames.
        how: The recipe.
        loss: What ranges are chosen by, if the recipe chooses them together.
        reduced_range: As for `network.quantize`.
    """

    def __init__(
        self,
        graph: Graph,
        statistics: Statistics,
        frames: NDArray[np.uint8],
        cache: Cache | None = None,
        origin: str = "",
        how: Recipe = DEFAULT,
        loss: Loss = feature_loss,
        *,
        reduced_range: bool = False,
    ) -> None:
        self._graph = graph
        self._statistics = statistics
        self._frames = frames[:_FRAMES]
        self._cache = cache or Cache()
        self._origin = origin
        self._how = how
        self._loss = loss
        self._reduced_range = reduced_range

    def nearest(self, widths: Configuration) -> QuantizedGraph:
        """The network on the ranges of the recipe, its weights rounded to the nearest."""
        return rounded(
            self._graph,
            self._statistics,
            widths,
            self._how,
            reduced_range=self._reduced_range,
        )

    def reconstruct(
        self, network: QuantizedGraph, tensors: Sequence[str], progress: Progress
    ) -> QuantizedGraph:
        """Improve ranges and weights so that they compensate for each other's errors.

        A head of 8 bits throughout stays as it is: it loses next to nothing.

        Args:
            network: Rounded to the nearest.
            tensors: Those of a cut; only layers that make them are improved.
            progress: Called with steps done and in all.
        """
        head = {node.name for node in network.graph.ancestors(tensors)}
        if all(each == FULL for name, each in network.widths.items() if name in head):
            progress(1, 1)
            return network
        if self._how.joint:
            network = self._clipped_together(network, tensors, progress)
        names = [n.name for n in network.graph.ancestors(tensors) if n.name in network.convs]

        def better() -> dict[str, NDArray[Any]]:
            made = reconstructed(network, tensors, self._frames, self._how, progress)
            return _to_arrays([made.convs[name] for name in names])

        state = digest(network.grids, network.before, network.convs)
        arrays = self._cache.arrays("rounded", [self._origin, state, tensors, self._how], better)
        progress(1, 1)
        convs = {**network.convs, **dict(zip(names, _from_arrays(arrays), strict=True))}
        return replace(network, convs=convs)

    def _clipped_together(
        self, network: QuantizedGraph, tensors: Sequence[str], progress: Progress
    ) -> QuantizedGraph:
        widths, frames = network.widths, self._frames[:_CLIPPED_FRAMES]

        def better() -> dict[str, NDArray[Any]]:
            loss = head_loss(
                self._graph,
                widths,
                tensors,
                frames,
                self._loss,
                threads=_THREADS,
                reduced_range=self._reduced_range,
            )
            clips = lapq(self._graph, self._statistics, widths, tensors, loss, progress)
            return clips.to_arrays()

        inputs = [self._origin, widths, tensors, self._how, self._reduced_range]
        clips = Clips.from_arrays(self._cache.arrays("clips", inputs, better))
        return quantize(self._graph, clips, widths, reduced_range=self._reduced_range)


def _to_arrays(convs: Sequence[QuantizedConv]) -> dict[str, NDArray[Any]]:
    return {
        f"{index}:{part}": np.asarray(getattr(conv, part))
        for index, conv in enumerate(convs)
        for part in _PARTS
    }


def _from_arrays(arrays: dict[str, NDArray[Any]]) -> list[QuantizedConv]:
    found = []
    for index in range(len(arrays) // len(_PARTS)):
        weight, scale, bias, bits = (arrays[f"{index}:{part}"] for part in _PARTS)
        found.append(QuantizedConv(weight, scale, bias, int(bits)))
    return found
