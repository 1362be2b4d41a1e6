"""Auto-Split's input: the layers of a network, and the error of each at every width.

The error of a layer at b bits is the squared error of a linear quantizer, summed over its weights
(or its output) and divided by the elements of all weights (or outputs) of the network. Errors of
layers add up. Version 1 of the original takes them from random tensors, version 2 from real ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.graph import Graph

IMAGE = "image"
"""Predecessor of the layers that read the image."""
IMAGE_WIDTH = 8
WIDTHS = (2, 4, 6, 8)
_SAMPLE = 100_000


@dataclass(frozen=True)
class FusedLayer:
    """One layer of the fused network.

    Attributes:
        rank: Place in the execution order, from zero.
        name: Of the layer and of its output.
        predecessors: Names of the layers read; `IMAGE` (or none) for the image.
        volume_in: Elements read.
        volume_out: Elements of the output feature map.
        weight_volume: Weights; zero if it has none.
        macs: Multiply-accumulates for one image.
        weight_errors: Error of its weights by width; needed if it has weights.
        activation_errors: Error of its output by width.
    """

    rank: int
    name: str
    predecessors: tuple[str, ...]
    volume_in: int
    volume_out: int
    weight_volume: int
    macs: int
    weight_errors: dict[int, float] = field(default_factory=dict)
    activation_errors: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """The layers in execution order, and the elements of the image that they start from."""

    layers: tuple[FusedLayer, ...]
    image_elements: int

    def __post_init__(self) -> None:
        known = {IMAGE}
        for rank, layer in enumerate(self.layers):
            if (
                layer.rank != rank
                or layer.name in known
                or not known.issuperset(layer.predecessors)
            ):
                raise ModelError(f"{layer.name}: not in topological order by rank")
            known.add(layer.name)
        if not self.layers:
            raise ModelError("a table without layers")

    @property
    def image_bits(self) -> int:
        """Bits of the raw image, the upload that a cut must beat."""
        return IMAGE_WIDTH * self.image_elements

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Rank of the last reader by tensor; outputs of the network are read after the end."""
        uses = {
            name: layer.rank for layer in self.layers for name in layer.predecessors or (IMAGE,)
        }
        return {layer.name: len(self.layers) for layer in self.layers} | uses

    def crossing(self, rank: int) -> tuple[FusedLayer, ...]:
        """The layers up to `rank` whose output is still read after it."""
        return tuple(c for c in self.layers[: rank + 1] if self.last_use[c.name] > rank)

    def sent_bits(self, rank: int, activations: Mapping[str, int]) -> int:
        """Bits of all that crosses the cut behind `rank`, the image too if it is still read."""
        image = self.image_bits if self.last_use.get(IMAGE, -1) > rank else 0
        return image + sum(c.volume_out * activations[c.name] for c in self.crossing(rank))

    def peak_bits(self, activations: Mapping[str, int]) -> int:
        """Activation memory as the original has it: the larger of the image and any output."""
        outputs = (c.volume_out * activations[c.name] for c in self.layers if c.name in activations)
        return max((self.image_bits, *outputs))


def fused_layers(graph: Graph) -> tuple[FusedLayer, ...]:
    """The layers of a network: every node but the image, without errors."""
    return tuple(
        FusedLayer(
            rank=rank,
            name=node.name,
            predecessors=node.inputs,
            volume_in=sum(graph[name].elements for name in node.inputs),
            volume_out=node.elements,
            weight_volume=0 if node.weight is None else node.weight.size,
            macs=node.macs,
        )
        for rank, node in enumerate(graph.nodes[1:])
    )


def total_error(
    layers: Sequence[FusedLayer], weights: Mapping[str, int], activations: Mapping[str, int]
) -> float:
    """Sum of the errors of layers, at the widths of their weights and outputs by name."""
    return sum(
        layer.activation_errors[activations[layer.name]]
        + (layer.weight_errors[weights[layer.name]] if layer.weight_volume else 0.0)
        for layer in layers
    )


def uniform_error(table: Table, bits: int) -> float:
    """Error of the whole network at one width."""
    uniform = {layer.name: bits for layer in table.layers}
    return total_error(table.layers, uniform, uniform)


def quantization_errors(
    tensor: NDArray[np.floating], widths: Sequence[int] = WIDTHS, share: float = 1.0
) -> dict[int, float]:
    """Error of one tensor by width: its mean squared error, times its share of the network.

    The quantizer is linear from the least to the largest value, its step (max - min) / (2^b - 1).

    Args:
        tensor: Any shape; a sample will do.
        widths: Bits per element.
        share: The tensor's elements in those of all weights (or activations) of the network. With
            it, the errors are the original's: squared errors summed, over the network's volume.
    """
    values = np.asarray(tensor, np.float64).ravel()
    low, high = float(values.min()), float(values.max())
    errors = {}
    for width in widths:
        step = (high - low) / ((1 << width) - 1) or 1.0
        rounded = np.rint((values - low) / step) * step + low
        errors[width] = share * float(np.mean(np.square(rounded - values)))
    return errors


def with_errors(
    layers: Sequence[FusedLayer],
    weights: Mapping[str, NDArray[np.floating]],
    activations: Mapping[str, NDArray[np.floating]],
    widths: Sequence[int] = WIDTHS,
) -> tuple[FusedLayer, ...]:
    """The layers with the errors of real tensors, by layer name: version 2 of the original."""
    all_weights = sum(layer.weight_volume for layer in layers)
    all_outputs = sum(layer.volume_out for layer in layers)

    def weight_errors(layer: FusedLayer) -> dict[int, float]:
        share = layer.weight_volume / max(all_weights, 1)
        return quantization_errors(weights[layer.name], widths, share) if share else {}

    return tuple(
        replace(
            layer,
            weight_errors=weight_errors(layer),
            activation_errors=quantization_errors(
                activations[layer.name], widths, layer.volume_out / all_outputs
            ),
        )
        for layer in layers
    )


def random_errors(
    layers: Sequence[FusedLayer], seed: int, widths: Sequence[int] = WIDTHS
) -> tuple[FusedLayer, ...]:
    """The layers with the errors of random tensors: version 1 of the original.

    Weights are uniform in [-1, 1], activations in [0, m] with m uniform in [0.7, 6] for each layer.
    Of a large tensor a sample is drawn.
    """
    rng = np.random.default_rng(seed)
    weights, activations = {}, {}
    for layer in layers:
        weights[layer.name] = rng.uniform(-1, 1, min(layer.weight_volume, _SAMPLE))
        largest = rng.uniform(0.7, 6)
        activations[layer.name] = rng.uniform(0, largest, min(layer.volume_out, _SAMPLE))
    return with_errors(layers, weights, activations, widths)
