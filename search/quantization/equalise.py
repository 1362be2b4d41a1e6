"""Cross-layer equalisation: channels rescaled between convolutions, the function left as it was.

    conv A -> (ReLU, leaky ReLU, max pooling) -> conv B        f(s x) = s f(x) for every s > 0

What stands between the two is positively homogeneous, so a channel may leave A smaller by a factor
s and be taken by B as much larger. Nagel et al., "Data-free quantization through weight
equalization and bias correction", ICCV 2019, section 4.1: with r_A the largest magnitude in A's
output channel and r_B that in B's input channel, s = sqrt(r_A / r_B) gives both the same reach
(equation 11), which is best for one scale per tensor. A chain of pairs is gone through until
nothing moves.

Tensors between A and B are on other scales afterwards: this is a pass over the graph, to be run
before calibration, and statistics of the graph as it was must not be used on its result.

Different from the paper: a bias counts as one of its channel's weights in r_A. Of a channel whose
weights are next to nothing, it would otherwise become the largest value of the tensor; the paper
moves such biases on into B, for which it needs the statistics of a batch normalisation.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.activations import Activation
from search.network.graph import Graph, Node
from search.network.operators.convolution import by_input

_Doubles = NDArray[np.float64]

_PASSES = 50
_SETTLED = 1e-3


def equalise(graph: Graph) -> Graph:
    """Rescale channels to equal reach between convolutions; the function stays as it was.

    Args:
        graph: The network, optimised. Nodes keep their names.

    Returns:
        A graph whose outputs are the same up to floating-point rounding. Calibrate it anew: the
        statistics of `graph` do not hold for it.
    """
    pairs = tuple(equalisable_pairs(graph))
    convs = {node.name: _Conv(node) for pair in pairs for node in pair}
    for _ in range(_PASSES):
        moved = [_balance(convs[first.name], convs[second.name]) for first, second in pairs]
        if max(moved, default=0.0) < _SETTLED:
            break
    nodes = tuple(convs[node.name].node() if node.name in convs else node for node in graph.nodes)
    return replace(graph, nodes=nodes)


def equalisable_pairs(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Convolutions, each with the one that is all that reads it, in the order of execution."""
    for node in graph.nodes:
        if node.op == "conv" and (reader := _only_conv_behind(graph, node)) is not None:
            yield node, reader


def _only_conv_behind(graph: Graph, conv: Node) -> Node | None:
    """The convolution at the end of a chain of homogeneous steps without a branch."""
    node = conv
    while _is_homogeneous(node.activation) and node.name not in graph.outputs:
        readers = graph.consumers[node.name]
        if len(readers) != 1:
            return None
        node = graph[readers[0]]
        if node.op == "conv":
            return node
        if node.op not in ("max_pool", "activation"):
            return None
    return None


def _is_homogeneous(activation: Activation | None) -> bool:
    """Whether a positive factor may be taken out of it."""
    return activation is None or activation.is_homogeneous


class _Conv:
    """A convolution whose channels can be rescaled, in float64 until it is done."""

    def __init__(self, node: Node) -> None:
        if node.weight is None:
            raise ModelError(f"{node.name}: a convolution without weights")
        self._node = node
        self._weight = node.weight.astype(np.float64)
        self._bias = None if node.bias is None else node.bias.astype(np.float64)

    def output_reach(self) -> _Doubles:
        """(C_out,) largest magnitude of what makes each output channel."""
        weights: _Doubles = np.abs(self._weight).max((1, 2, 3))
        return weights if self._bias is None else np.maximum(weights, np.abs(self._bias))

    def input_reach(self) -> _Doubles:
        """(C_in,) largest magnitude of what reads each input channel."""
        return np.asarray(np.abs(self._by_input()).max((1, 3, 4)).reshape(-1), np.float64)

    def scale_outputs(self, factors: _Doubles) -> None:
        self._weight *= factors[:, None, None, None]
        if self._bias is not None:
            self._bias *= factors

    def scale_inputs(self, factors: _Doubles) -> None:
        grouped = self._by_input()
        grouped *= factors.reshape(len(grouped), 1, -1, 1, 1)

    def node(self) -> Node:
        bias = None if self._bias is None else self._bias.astype(np.float32)
        return replace(self._node, weight=self._weight.astype(np.float32), bias=bias)

    def _by_input(self) -> _Doubles:
        return by_input(self._weight, self._node.attributes["groups"])


def _balance(first: _Conv, second: _Conv) -> float:
    """Equalise one pair; returns the largest step, as the logarithm of a factor."""
    made, read = first.output_reach(), second.input_reach()
    usable = (made > 0) & (read > 0)
    factors = np.sqrt(np.where(usable, made, 1.0) / np.where(usable, read, 1.0))
    first.scale_outputs(1 / factors)
    second.scale_inputs(factors)
    return float(np.abs(np.log(factors)).max())
