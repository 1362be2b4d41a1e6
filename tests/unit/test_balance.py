"""Balance: the function stays, channels that depthwise convolutions read get equal reach."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import enumerate_cuts
from search.network.graph import IMAGE, Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.balance import balance
from search.quantization.calibration import observe
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.recipe import rounded
from tests.networks import SIZE, branched_graph, pictures

FRAMES = pictures(6)


class Uneven(nn.Module):
    """A depthwise convolution that reads channels of very different reach, by way of a join.

    Args:
        activation: In front of it.
    """

    def __init__(self, activation: nn.Module, *, added: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 4, 1)
        self.apart = nn.Conv2d(10, 10, 3, 1, 1, groups=10)
        self.last = nn.Conv2d(10, 5, 1)
        self.activation, self.pool, self.added = activation, nn.MaxPool2d(3, 1, 1), added
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for conv in (self.first, self.second, self.apart, self.last):
                conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * 0.3)
                conv.bias = nn.Parameter(torch.randn(len(conv.weight), generator=generator) * 0.1)
            reach = torch.logspace(-2, 1, 6)
            self.first.weight.mul_(reach.view(-1, 1, 1, 1))
            self.first.bias = nn.Parameter(torch.randn(6, generator=generator) * 0.1 * reach)
            self.apart.weight[:6].div_(reach.view(-1, 1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.activation(self.first(x))
        second = self.activation(self.second(first))
        if self.added:
            first = first + self.pool(first)
        made: torch.Tensor = self.last(self.apart(torch.cat([self.pool(first), second], 1)))
        return made


def graph_of(module: nn.Module) -> Graph:
    return optimise(import_module(module.eval(), SIZE))


ACTIVATIONS = {
    "relu6": nn.ReLU6(),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "hard swish": nn.Hardswish(),
    "none": nn.Identity(),
}


@pytest.fixture(params=ACTIVATIONS)
def graph(request: pytest.FixtureRequest) -> Graph:
    return graph_of(Uneven(ACTIVATIONS[request.param]))


def values_of(graph: Graph, names: list[str]) -> dict[str, torch.Tensor]:
    return execute.run(graph, {IMAGE: torch.from_numpy(FRAMES).float() / 255}, names)


def test_the_outputs_stay(graph: Graph) -> None:
    balanced = balance(graph, FRAMES)
    name = graph.outputs[0]
    expected, found = values_of(graph, [name])[name], values_of(balanced, [name])[name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_channels_reach_equally_far(graph: Graph) -> None:
    balanced = balance(graph, FRAMES)
    depthwise = next(n for n in balanced.nodes if n.op == "conv" and n.attributes["groups"] > 1)
    name = depthwise.inputs[0]
    reach = values_of(balanced, [name])[name].abs().amax((0, 2, 3))[:6]
    before = values_of(graph, [name])[name].abs().amax((0, 2, 3))[:6]
    assert before.max() / before.min() > 100
    assert reach.max() / reach.min() < 20


def test_codes_lose_less(graph: Graph) -> None:
    """Behind the depthwise convolution, where each channel counts for itself."""

    def error(graph: Graph) -> float:
        network = rounded(graph, observe(graph, FRAMES), reduced_range=True)
        (name,) = (n.name for n in graph.nodes if n.op == "conv" and n.attributes["groups"] > 1)
        real = values_of(graph, [name])[name].numpy()
        (codes,) = integer.run(network, FRAMES, [name])
        off = (network.grids[name].dequantize(codes) - real)[:, :6]
        return float(np.square(off).sum() / np.square(real[:, :6]).sum())

    assert error(balance(graph, FRAMES)) < error(graph) / 4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_reproduce_heads_with_gains(graph: Graph, runtime: str) -> None:
    balanced = balance(graph, FRAMES)
    network = rounded(balanced, observe(balanced, FRAMES), reduced_range=True)
    names = [node.name for node in balanced.nodes[1:]]
    session = open_model(head_model(network, names), runtime=runtime)
    for frame in FRAMES:
        made = session.run({IMAGE: frame[None]})
        check_parity(made, integer.run(network, frame[None], names), what="balanced")


def test_a_convolution_that_others_read_too_is_left_as_it_is() -> None:
    graph = graph_of(Uneven(nn.SiLU(), added=True))
    balanced = balance(graph, FRAMES)
    assert balanced.nodes[1].gains is None
    np.testing.assert_array_equal(balanced.nodes[1].weight, graph.nodes[1].weight)


def test_a_network_without_depthwise_convolutions_is_left_as_it_is() -> None:
    graph = branched_graph()
    assert balance(graph, FRAMES) is graph


def test_tails_compute_what_torch_does(graph: Graph, tmp_path: Path) -> None:
    balanced = balance(graph, FRAMES)
    weights = SharedWeights.of(balanced.nodes)
    write_weights(tmp_path, weights)
    for cut in enumerate_cuts(balanced)[:-1]:
        (tmp_path / "tail.onnx").write_bytes(tail_model(balanced, cut, weights))
        sent = values_of(balanced, [*cut.tensors, *balanced.outputs])
        feeds = {name: sent[name].numpy() for name in cut.tensors}
        (found,) = open_model(tmp_path / "tail.onnx").run(feeds)
        np.testing.assert_allclose(found, sent[balanced.outputs[0]].numpy(), rtol=1e-3, atol=1e-4)
