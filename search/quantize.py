"""Post-training quantization of the whole network to 8 bits; a head is a prefix of it.

Activations are unsigned 8-bit on one grid per tensor, weights signed 8-bit per output channel,
biases 32-bit, sums 32-bit. The image is its own grid: a pixel p stands for p / 255. Because the
grids do not depend on the cut, the tensor that a head sends is the same in every plan.

A convolution with a leaky ReLU has two grids: its sums are quantized before the activation, which
is then a table from 256 values to 256 values. A ReLU costs nothing: its grid has no negative
values.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from search.calibration import Distribution, Statistics
from search.graph import IMAGE, Activation, Graph, Node


@dataclass(frozen=True)
class Grid:
    """Unsigned 8-bit grid: value = (q - zero_point) * scale. `scale` is a float32 value."""

    scale: float
    zero_point: int

    @classmethod
    def over(cls, low: float, high: float) -> "Grid":
        """The grid whose 256 points cover [low, high] and hold zero exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32((high - low) / 255))
        return cls(scale, int(np.clip(np.rint(-low / scale), 0, 255)))

    def quantize(self, values: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Nearest grid point, ties to even, saturating."""
        steps = np.rint(np.asarray(values, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, 0, 255), np.uint8)

    def dequantize(self, codes: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Values of grid points."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


IMAGE_GRID = Grid(float(np.float32(1 / 255)), 0)


@dataclass(frozen=True, eq=False)
class QuantizedConv:
    """Integer weights of one convolution.

    Attributes:
        weight: (C_out, C_in / groups, kH, kW) int8, symmetric about zero.
        scale: (C_out,) float32.
        bias: (C_out,) int32 in units of input scale x weight scale.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """A graph with its 8-bit grids.

    Attributes:
        graph: The floating-point network.
        grids: Grid of every tensor.
        before: Grid of a convolution's sums, for convolutions whose activation is a table.
        convs: Integer weights by convolution.
        refused: Why a node cannot run in 8 bits, for nodes that cannot; a head may not hold them.
    """

    graph: Graph
    grids: Mapping[str, Grid]
    before: Mapping[str, Grid]
    convs: Mapping[str, QuantizedConv]
    refused: Mapping[str, str]

    def weight_bytes(self, nodes: tuple[Node, ...]) -> int:
        """Bytes of weights, scales and biases of a head as stored."""
        total = 0
        for node in nodes:
            conv = self.convs.get(node.name)
            if conv is not None:
                total += conv.weight.nbytes + conv.scale.nbytes + conv.bias.nbytes
        return total


def quantize(
    graph: Graph, statistics: Statistics, *, reduced_range: bool = False
) -> QuantizedGraph:
    """Choose all grids and round all weights.

    Args:
        graph: The network, optimised.
        statistics: Distributions of its tensors on calibration images.
        reduced_range: Use 7 bits of each weight: on x86 without VNNI the sum of two 8-bit products
            saturates in 16 bits.
    """
    grids = {IMAGE: IMAGE_GRID}
    before: dict[str, Grid] = {}
    convs: dict[str, QuantizedConv] = {}
    refused: dict[str, str] = {}
    for node in graph.nodes[1:]:
        after = statistics.after[node.name]
        if node.op in ("max_pool", "upsample", "slice"):
            grids[node.name] = grids[node.inputs[0]]
        else:
            grids[node.name] = best_grid(after)
        if node.op == "conv":
            convs[node.name] = _quantize_conv(node, grids[node.inputs[0]], reduced_range)
        if node.activation is not None and node.activation.kind != "relu":
            before[node.name] = best_grid(statistics.before[node.name])
        if (node.op == "activation") or _unsupported(node.activation):
            refused[node.name] = f"{node.name}: {node.activation} has no 8-bit form"
    return QuantizedGraph(graph, grids, before, convs, refused)


def _unsupported(activation: Activation | None) -> bool:
    return activation is not None and activation.kind not in ("relu", "leaky_relu")


def best_grid(distribution: Distribution) -> Grid:
    """The clip range of least squared error on a histogram.

    Both ends are searched on a grid of shrinking factors; a range always holds zero.
    """
    values, counts = distribution.centres.astype(np.float32), distribution.counts
    best, least = Grid.over(distribution.low, distribution.high), np.inf
    lows = distribution.low * np.linspace(1.0, 0.2, 17) if distribution.low < 0 else [0.0]
    highs = distribution.high * np.linspace(1.0, 0.3, 29) if distribution.high > 0 else [0.0]
    for low in lows:
        for high in highs:
            grid = Grid.over(float(low), float(high))
            error = grid.dequantize(grid.quantize(values)) - values
            squared = float(np.dot(counts, error * error))
            if squared < least:
                best, least = grid, squared
    return best


def _quantize_conv(node: Node, input_grid: Grid, reduced_range: bool) -> QuantizedConv:
    if node.weight is None:
        raise ModelError(f"{node.name}: a convolution without weights")
    limit = 63 if reduced_range else 127
    largest = np.abs(node.weight).max(axis=(1, 2, 3))
    scale = np.where(largest > 0, largest / limit, 1.0).astype(np.float32)
    weight = np.rint(node.weight / scale[:, None, None, None]).astype(np.int8)
    bias = np.zeros(len(scale)) if node.bias is None else node.bias.astype(np.float64)
    steps = np.rint(bias / (np.float64(input_grid.scale) * scale.astype(np.float64)))
    bounds = np.iinfo(np.int32)
    return QuantizedConv(weight, scale, np.clip(steps, bounds.min, bounds.max).astype(np.int32))
