"""Equalisation: channels rescaled where that is allowed, the network's function the same."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import nn

from search.network import execute
from search.network.graph import Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization.equalise import equalisable_pairs, equalise
from tests.networks import SIZE, ConvBlock, branched_graph, pictures, seeded


class _Chain(nn.Module):
    """Pooling, a depthwise convolution, no activation, and one that is not homogeneous."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8)
        self.depthwise = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, 1, 1, groups=2)
        self.gated = nn.Conv2d(12, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.stem(x), 2)
        x = F.relu(self.grouped(self.depthwise(x)))
        last: torch.Tensor = self.last(F.silu(self.gated(x)))
        return last


def _chain() -> Graph:
    """Channels of very different reach: a factor of 400 between the smallest and the largest."""
    module = _Chain()
    seeded(module)
    with torch.no_grad():
        for convolution in (module.depthwise, module.grouped):
            reach = torch.logspace(-1.3, 1.3, len(convolution.weight))
            convolution.weight.mul_(reach[:, None, None, None])
    return optimise(import_module(module, SIZE))


@pytest.mark.parametrize("make", [branched_graph, _chain])
def test_outputs_stay_the_same(make: Callable[[], Graph]) -> None:
    graph = make()
    image = torch.from_numpy(pictures(2)).float() / 255
    before = execute.run(graph, {"image": image}, graph.outputs)
    after = execute.run(equalise(graph), {"image": image}, graph.outputs)
    for name in graph.outputs:
        assert (after[name] - before[name]).abs().max() < 1e-4 * before[name].abs().max()


def test_pairs_have_homogeneous_steps_and_no_branch_between_them() -> None:
    """Of the branched network all others end in an addition, a slice, or at two readers."""
    branched = [(first.name, second.name) for first, second in equalisable_pairs(branched_graph())]
    assert branched == [("conv_2", "conv_3"), ("conv_5", "conv_6")]
    chain = [(first.name, second.name) for first, second in equalisable_pairs(_chain())]
    assert chain == [("conv_0", "conv_2"), ("conv_2", "conv_3"), ("conv_3", "conv_4")]


def test_a_tensor_that_leaves_the_network_keeps_its_scale() -> None:
    graph = _chain()
    watched = Graph(graph.nodes, ("conv_2", *graph.outputs))
    assert [first.name for first, _ in equalisable_pairs(watched)] == ["conv_0", "conv_3"]


def test_channels_reach_as_far_on_both_sides() -> None:
    """Equation 11 of the paper at its fixed point, for plain, depthwise and grouped convolutions.

    Biases count as weights of the channel that they are added to.
    """
    equalised = equalise(_chain())
    for first, second in equalisable_pairs(equalised):
        assert first.weight is not None
        assert first.bias is not None
        assert second.weight is not None
        made = np.maximum(np.abs(first.weight).max((1, 2, 3)), np.abs(first.bias))
        groups = second.attributes["groups"]
        by_group = second.weight.reshape(groups, -1, *second.weight.shape[1:])
        read = np.abs(by_group).max((1, 3, 4)).ravel()
        np.testing.assert_allclose(made, read, rtol=0.01)


def test_channels_without_weights_are_left_alone() -> None:
    graph = _chain()
    weight, bias = graph["conv_2"].weight, graph["conv_2"].bias
    assert weight is not None
    assert bias is not None
    weight[3], bias[3] = 0, 0
    equalised = equalise(graph)
    assert all(
        np.isfinite(part).all()
        for node in equalised.nodes
        for part in (node.weight, node.bias)
        if part is not None
    )
