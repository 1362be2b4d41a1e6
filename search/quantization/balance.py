"""Balance: channels brought to the same reach for the depthwise convolutions that read them.

    sums x -> activation f -> y -> (pooling, joins) -> convolutions     y' = g y, w' = w / g

A tensor has one grid, so a channel that reaches a hundredth as far as another has a hundredth of
its codes. A convolution that adds channels up does not mind: the small one counts little. A
depthwise one makes an output of each channel alone, and enlarges the error with the values. So
every channel of what depthwise convolutions read gets a gain g that gives it the reach of the
largest; their weights, which have a scale for each channel, take it back for nothing.

The function stays as it was. Where the activation is not homogeneous, its node keeps the gains and
computes g f(x / g); codes are read and made with the gains in their scales. Sums count for the
reach of such a channel, too, as far as the activation bends. Equalisation
(equalise.py) goes by weights instead, and does not pass activations such as a SiLU. Nagel et al.,
"A White Paper on Neural Network Quantization", 2021, section 4.1, has the problem.

This is a pass over the graph, to be run before calibration: statistics of the graph as it was do
not hold for its result.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from common.imaging.images import unit_range
from search.network import execute
from search.network.graph import IMAGE, Graph, Node
from search.network.operators.convolution import by_input
from search.quantization.network import is_depthwise

Channel = tuple[str, int]
"""A convolution and one of its output channels."""
Floats = NDArray[np.float32]

_FRAMES = 16
_LARGEST_GAIN = 1024.0
_BEND = 4.0
"""Magnitude of sums up to which activations such as a SiLU or a hard swish are neither 0 nor x."""
_PASSED = ("average_pool", "max_pool", "resize", "upsample")


def balance(graph: Graph, frames: NDArray[np.uint8]) -> Graph:
    """Balance what depthwise convolutions read; a graph without any is returned as it is.

    Args:
        graph: The network, optimised. Nodes keep their names.
        frames: (N, 3, H, W) images; the first 16 count.

    Returns:
        A graph whose outputs are the same up to floating-point rounding.
    """
    uses = _Uses(graph)
    names = uses.balanced()
    if not names:
        return graph
    reaches = _reaches(graph, names, frames[:_FRAMES])
    gains = {name: _gains(reach) for name, reach in reaches.items()}
    nodes = tuple(_rescaled(node, gains, uses.read.get(node.name)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


@dataclass
class _Uses:
    """Origin of every channel of what convolutions read.

    Attributes:
        graph: The network.
        read: By convolution, the channel that each of its input channels is; None for one that is
            not a convolution's alone.
        fixed: Convolutions that something other than convolutions reads.
    """

    graph: Graph
    read: dict[str, list[Channel | None]] = field(default_factory=dict)
    fixed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        channels: dict[str, list[Channel | None]] = {}
        for node in self.graph.nodes:
            sources = [channels[name] for name in node.inputs]
            channels[node.name] = list(self._made(node, sources))
        for name in self.graph.outputs:
            self._fix(channels[name])

    def balanced(self) -> list[str]:
        """Convolutions that a depthwise one reads, and convolutions alone."""
        wanted = {
            channel[0]
            for name, channels in self.read.items()
            if is_depthwise(self.graph[name])
            for channel in channels
            if channel is not None
        }
        return [node.name for node in self.graph.nodes if node.name in wanted - self.fixed]

    def _made(
        self, node: Node, sources: Sequence[list[Channel | None]]
    ) -> Iterable[Channel | None]:
        count = node.shape[0] if node.shape else 0
        if node.op == "conv":
            self.read[node.name] = sources[0]
            return [(node.name, index) for index in range(count)]
        plain = node.activation is None or node.activation.is_homogeneous
        if plain and node.op in _PASSED:
            return sources[0]
        if plain and node.op == "concat" and node.attributes.get("axis", 1) == 1:
            return [channel for source in sources for channel in source]
        if plain and node.op == "slice":
            return self._sliced(node, sources[0])
        if plain and node.op == "gather":
            return [sources[0][index] for index in node.attributes["order"]]
        if plain and node.op == "multiply" and self.graph[node.inputs[0]].shape == node.shape:
            self._fix(sources[1])
            return sources[0]
        for source in sources:
            self._fix(source)
        return [None] * count

    @staticmethod
    def _sliced(node: Node, source: list[Channel | None]) -> list[Channel | None]:
        if node.attributes.get("axis", 1) != 1:
            return source
        start, stop = node.attributes["start"], node.attributes["stop"]
        return source[start : stop : node.attributes.get("step", 1)]

    def _fix(self, channels: Iterable[Channel | None]) -> None:
        self.fixed.update(channel[0] for channel in channels if channel is not None)


def _reaches(graph: Graph, names: Sequence[str], frames: NDArray[np.uint8]) -> Mapping[str, Floats]:
    """The largest magnitude of every channel of some tensors, (C,) each."""
    found: dict[str, Floats] = {}
    for frame in frames:
        feeds = {IMAGE: torch.from_numpy(unit_range(frame[None]))}
        read = {graph[name].inputs[0] for name in names}
        values = execute.run(graph, feeds, [*read, *names])
        for name in names:
            reach = _reach(graph[name], values[graph[name].inputs[0]], values[name])
            found[name] = np.maximum(found.get(name, reach), reach)
    return found


def _reach(node: Node, read: torch.Tensor, made: torch.Tensor) -> Floats:
    reach = made.abs().amax((0, 2, 3))
    activation = node.activation
    if activation and not (activation.is_homogeneous or activation.only_cuts_off):
        sums = execute.apply(replace(node, activation=None), [read])
        reach = torch.maximum(reach, sums.abs().amax((0, 2, 3)).clamp(max=_BEND))
    return np.asarray(reach.numpy(), np.float32)


def _gains(reach: Floats) -> Floats:
    largest = float(reach.max())
    usable = np.where(reach > largest / _LARGEST_GAIN, reach, largest / _LARGEST_GAIN)
    return np.asarray(largest / np.where(usable > 0, usable, 1.0), np.float32)


def _rescaled(
    node: Node, gains: Mapping[str, Floats], read: Sequence[Channel | None] | None
) -> Node:
    """A convolution with its outputs enlarged, and its inputs taken as they are now."""
    if node.op != "conv" or read is None or node.weight is None:
        return node
    weight = node.weight.astype(np.float64)
    grouped = by_input(weight, node.attributes["groups"])
    taken = np.array([1.0 if c is None or c[0] not in gains else gains[c[0]][c[1]] for c in read])
    if taken.size != grouped.shape[0] * grouped.shape[2]:
        raise ModelError(f"{node.name}: {taken.size} channels for weights {weight.shape}")
    grouped /= taken.reshape(len(grouped), 1, -1, 1, 1)
    bias, attributes = node.bias, node.attributes
    if node.name in gains:
        own = gains[node.name]
        weight *= own[:, None, None, None]
        bias = None if bias is None else np.asarray(bias * own, np.float32)
        if node.activation is not None and not node.activation.is_homogeneous:
            attributes = {**attributes, "gains": own}
    return replace(node, weight=weight.astype(np.float32), bias=bias, attributes=attributes)
