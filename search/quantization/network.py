"""A network rounded to integers; a head is a prefix of it.

    graph + statistics --choose_clips--> Clips --quantize--> QuantizedGraph

Activations are unsigned codes of at most 8 bits on one grid per tensor, weights signed integers of
at most 8 bits per output channel, biases 32-bit, sums 32-bit. The image is its own grid: a pixel p
stands for p / 255. Because the grids do not depend on the cut, the tensor that a head sends is the
same in every plan.

A convolution with a leaky ReLU has two grids: its sums are quantized before the activation, which
is then a table from codes to codes. A ReLU costs nothing: its grid has no negative values. Most
CPUs compute in 8 bits; fewer bits are carried in 8-bit containers, with the values of their own
coarser grids.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.activations import Activation
from search.network.graph import IMAGE, Graph, Node
from search.network.operators.registry import computable_nodes, makes_values, operator_of
from search.network.quant_params import QuantizedConv, QuantParams
from search.quantization.calibration import Distribution, Statistics
from search.quantization.grids import (
    RANGES,
    Clipping,
    Range,
    RangeChooser,
    least_error_range,
)
from search.quantization.weights import CLIPS, Floats, round_nearest, scale_of
from search.quantization.widths import FULL, Configuration, Widths

IMAGE_GRID = QuantParams(float(np.float32(1 / 255)), 0)


_CLIP_SIDES = ("after", "before", "weights")

Rounding = Literal["nearest", "adaround", "descent"]


@dataclass(frozen=True, eq=False)
class Clips:
    """Clip points of all grids.

    Attributes:
        after: (low, high) of every tensor that has a grid of its own.
        before: (low, high) of the sums of every node whose activation is a table.
        weights: By convolution, (C_out,) largest magnitudes.
    """

    after: Mapping[str, Range]
    before: Mapping[str, Range]
    weights: Mapping[str, Floats]

    def to_arrays(self) -> dict[str, NDArray[np.floating]]:
        """Convert to arrays for the cache."""
        arrays: dict[str, NDArray[np.floating]] = {}
        for side in _CLIP_SIDES:
            for name, clip in getattr(self, side).items():
                arrays[f"{side}:{name}"] = np.asarray(clip)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.floating]]) -> "Clips":
        """Restore the clip points from the arrays of `to_arrays`."""
        sides: dict[str, dict[str, NDArray[np.floating]]] = {side: {} for side in _CLIP_SIDES}
        for key, values in arrays.items():
            side, _, name = key.partition(":")
            sides[side][name] = values
        after, before = (
            {name: (float(low), float(high)) for name, (low, high) in sides[side].items()}
            for side in _CLIP_SIDES[:2]
        )
        weights = {name: np.asarray(clip, np.float32) for name, clip in sides["weights"].items()}
        return cls(after, before, weights)


@dataclass(frozen=True, eq=False)
class QuantizedGraph:
    """A graph with its grids.

    Attributes:
        graph: The floating-point network.
        grids: Grid of every tensor.
        before: Grid of a convolution's sums, for convolutions whose activation is a table.
        convs: Integer weights by convolution.
        refused: Reasons by node, for nodes without an integer form; a head may not hold them.
    """

    graph: Graph
    grids: Mapping[str, QuantParams]
    before: Mapping[str, QuantParams]
    convs: Mapping[str, QuantizedConv]
    refused: Mapping[str, str]

    @property
    def widths(self) -> dict[str, Widths]:
        """Bits by node, of those that make values."""
        return {
            node.name: Widths(
                weight=self.convs[node.name].bits if node.name in self.convs else 8,
                activation=self.grids[node.name].bits,
            )
            for node in self.graph.nodes
            if makes_values(node)
        }

    def weight_bytes(self, nodes: tuple[Node, ...]) -> int:
        """Bytes of weights, scales and biases of a head as stored."""
        return sum(
            self.convs[node.name].stored_bytes if node.name in self.convs else 4 * node.parameters
            for node in nodes
        )


def choose_clips(
    graph: Graph,
    statistics: Statistics,
    widths: Configuration,
    *,
    clipping: Clipping,
    weight_clipping: Clipping,
) -> Clips:
    """Choose ranges tensor by tensor.

    Args:
        graph: The network, optimised.
        statistics: Distributions of its tensors on calibration images.
        widths: Bits by node.
        clipping: Method for activations.
        weight_clipping: Method for weights of fewer than 8 bits.
    """
    choose = RANGES[clipping]
    after: dict[str, Range] = {}
    before: dict[str, Range] = {}
    weights: dict[str, Floats] = {}
    for node in computable_nodes(graph)[1:]:
        each = widths.get(node.name, FULL)
        if makes_values(node):
            after[node.name] = choose(statistics.after[node.name], each.activation)
        if has_table(node):
            before[node.name] = _range_before(node, statistics.before[node.name], choose)
        if operator_of(node).has_integer_weights:
            method = "minmax" if each.weight == 8 else weight_clipping
            weights[node.name] = CLIPS[method](_weight(node), each.weight)
    return Clips(after, before, weights)


def _range_before(node: Node, distribution: Distribution, choose: RangeChooser) -> Range:
    """Range of a node's sums; behind a function that is flat somewhere, by the error behind it."""
    if node.activation is None or node.activation.is_homogeneous:
        return choose(distribution, 8)
    behind = node.activation
    if node.gains is not None:
        usual = float(np.median(node.gains))
        behind = Activation.of("Div", usual).then(behind).then(Activation.of("Mul", usual))
    return least_error_range(distribution, 8, behind)


def quantize(
    graph: Graph, clips: Clips, widths: Configuration, *, reduced_range: bool = False
) -> QuantizedGraph:
    """Lay grids over the ranges and round all weights to the nearest.

    Args:
        graph: The network, optimised.
        clips: Its ranges.
        widths: Bits by node.
        reduced_range: Use at most 7 bits of each weight: on x86 without VNNI the sum of two 8-bit
            products saturates in 16 bits. Depthwise convolutions have kernels of their own, which
            add no pairs of products, and keep 8 bits.
    """
    grids = {IMAGE: IMAGE_GRID}
    before: dict[str, QuantParams] = {}
    convs: dict[str, QuantizedConv] = {}
    computable = computable_nodes(graph)
    names = {node.name for node in computable}
    refused = {
        node.name: operator_of(node).refusal(node) or f"{node.name}: behind such an operator"
        for node in graph.nodes
        if node.name not in names
    }
    for node in computable[1:]:
        each = widths.get(node.name, FULL)
        if makes_values(node):
            grids[node.name] = QuantParams.over(*clips.after[node.name], each.activation)
        else:
            grids[node.name] = grids[node.inputs[0]]
        if has_table(node):
            before[node.name] = _below(node, clips)
        if operator_of(node).has_integer_weights:
            reduced = reduced_range and not is_depthwise(node)
            bits = min(each.weight, 7) if reduced else each.weight
            scale = scale_of(clips.weights[node.name], bits)
            weight = round_nearest(_weight(node), scale, bits)
            bias = integer_bias(node.bias, grids[node.inputs[0]], scale)
            convs[node.name] = QuantizedConv(weight, scale, bias, each.weight)
        reason = operator_of(node).refusal(node)
        if reason is not None:
            refused[node.name] = reason
    return QuantizedGraph(graph, grids, before, convs, refused)


def integer_bias(
    bias: NDArray[np.floating] | None, source: QuantParams, scale: Floats
) -> NDArray[np.int32]:
    """A bias (C_out,) in units of input scale x weight scale."""
    real = np.zeros(len(scale)) if bias is None else bias.astype(np.float64)
    steps = np.rint(real / (np.float64(source.scale) * scale.astype(np.float64)))
    bounds = np.iinfo(np.int32)
    return np.clip(steps, bounds.min, bounds.max).astype(np.int32)


def is_depthwise(node: Node) -> bool:
    """Whether every output channel of a convolution is made of one input channel of its own."""
    return node.op == "conv" and 1 < node.attributes["groups"] == _weight(node).shape[0]


def has_table(node: Node) -> bool:
    """Whether the codes of a node's sums pass a table to become its output."""
    if node.activation is None or not operator_of(node).has_sums:
        return False
    return node.gains is not None or not node.activation.only_cuts_off


def _below(node: Node, clips: Clips) -> QuantParams:
    """Grid of sums; values that a leaky ReLU would put above the tensor's range are clipped."""
    (low, high), top = clips.before[node.name], clips.after[node.name][1]
    same = node.activation is not None and node.activation.keeps_positive and node.gains is None
    return QuantParams.over(low, min(high, top) if same and top > 0 else high)


def _weight(node: Node) -> Floats:
    if node.weight is None:
        raise ModelError(f"{node.name}: a convolution without weights")
    return node.weight
