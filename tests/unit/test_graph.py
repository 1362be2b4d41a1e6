"""From a torch module to the graph: same function, right shapes and counts, clear refusals."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import nn

from common.errors import ModelError
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.activations import Activation
from search.network.graph import Graph, Node
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import head_model
from search.quantization.recipe import rounded
from tests.networks import SIZE, Branched, ConvBlock, branched_graph, pictures, seeded

IMAGE = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_import_keeps_the_function_exactly() -> None:
    module = seeded(Branched())
    graph = import_module(module, SIZE)
    ours = execute.run(graph.renamed(), {"image": IMAGE}, graph.renamed().outputs)
    with torch.inference_mode():
        theirs = module(IMAGE)
    # Batch normalisation is imported as scale and offset, which rounds differently in the last bit.
    for name, expected in zip(graph.renamed().outputs, theirs, strict=True):
        assert torch.allclose(ours[name], expected, atol=1e-5)


def test_optimised_graph_computes_the_same_with_fewer_nodes() -> None:
    module = seeded(Branched())
    graph = branched_graph()
    ours = execute.run(graph, {"image": IMAGE}, graph.outputs)
    with torch.inference_mode():
        theirs = module(IMAGE)
    for name, expected in zip(graph.outputs, theirs, strict=True):
        assert torch.allclose(ours[name], expected, atol=1e-5)
    assert {node.op for node in graph.nodes} == {
        "input", "conv", "max_pool", "upsample", "concat", "add", "slice",
    }  # fmt: skip


def test_names_tell_operator_and_rank() -> None:
    names = [node.name for node in branched_graph().nodes]
    assert names[:4] == ["image", "conv_0", "max_pool_1", "conv_2"]


def test_counts_are_those_of_the_formula() -> None:
    stem = branched_graph()["conv_0"]
    assert stem.shape == (8, 32, 32)
    assert stem.elements == 8 * 32 * 32
    assert stem.parameters == 8 * 3 * 3 * 3 + 8
    assert stem.macs == 8 * 3 * 3 * 3 * 32 * 32
    assert stem.activation == Activation.of("LeakyRelu", alpha=0.1)


def test_stride_one_same_pooling_pads_right_and_bottom() -> None:
    pools = [n for n in branched_graph().nodes if n.op == "max_pool"]
    assert [n.attributes["pads"] for n in pools] == [(0, 0, 0, 0), (0, 0, 1, 1), (2, 2, 2, 2)]


def test_convolution_read_twice_keeps_its_activation_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> Any:
            y = self.conv(x)
            return F.max_pool2d(y, 2), torch.relu(y)

    graph = optimise(import_module(seeded(Shared()), SIZE))
    assert [node.op for node in graph.nodes] == ["input", "conv", "max_pool", "activation"]


def test_peak_counts_tensors_that_live_together() -> None:
    # a chain of 4 elements each with a skip from `a` to `d`
    def node(name: str, *inputs: str) -> Node:
        return Node(name, "add" if inputs else "input", inputs, (4, 1, 1))

    nodes = (node("image"), node("a", "image"), node("b", "a"), node("c", "b"), node("d", "c", "a"))
    graph = Graph(nodes, ("d",))
    assert graph.peak_elements(nodes, ("d",)) == 12
    assert graph.peak_elements(nodes[:2], ("a",)) == 8
    assert graph.peak_elements(nodes[:3], ("a", "b")) == 8


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 1)


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class DilatedPool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.max_pool2d(x, 3, 1, 0, 2)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Unknown(), r"aten\.cumsum.*, made by test_graph\.py:\d+ `return torch\.cumsum"),
        (Branching(), r"made by test_graph\.py:\d+ `if x\.sum\(\) > 0:`,: control flow"),
        (DilatedPool(), r"MaxPool \(node max_pool2d, made by test_graph\.py.*: dilated"),
    ],
)
def test_unsupported_modules_are_refused_by_name(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        optimise(import_module(module.eval(), SIZE))


def test_training_mode_is_refused() -> None:
    with pytest.raises(ModelError, match="eval"):
        import_module(Branched().train(), SIZE)


class Routed(nn.Module):
    """A residual behind which a ReLU stands, a join of joins, and slices of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8)
        self.body = ConvBlock(8, 8)
        self.last = nn.Conv2d(8, 4, 1)
        self.other = nn.Conv2d(24, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(x)
        y = self.body(x)
        z = F.relu(x + y)
        joined = torch.cat([torch.cat([x, y], 1), z], 1)
        return self.other(joined), self.last(joined[:, 16:])


def test_residuals_and_routes_fuse_without_changing_what_is_computed() -> None:
    module = seeded(Routed())
    imported = import_module(module, SIZE)
    raw, graph = imported.renamed(), optimise(imported)
    operators = [node.op for node in graph.nodes]
    assert "activation" not in operators
    assert "slice" not in operators
    assert operators.count("concat") == 1
    (residual,) = [node for node in graph.nodes if node.op == "add"]
    assert residual.activation is not None
    frames = pictures(4)
    image = torch.from_numpy(frames).float() / 255
    with torch.inference_mode():
        expected = module(image)
    for graph_, names in ((raw, raw.outputs), (graph, graph.outputs)):
        found = execute.run(graph_, {"image": image}, names)
        for name, tensor in zip(names, expected, strict=True):
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-4)
    network = rounded(graph, observe(graph, frames), reduced_range=saturates_int8())
    assert not network.refused
    assert network.grids[residual.name].zero_point == 0
    made = open_model(head_model(network, graph.outputs)).run({"image": frames[:1]})
    check_parity(made, integer.run(network, frames[:1], graph.outputs), what="the whole network")
    for name, codes, tensor in zip(graph.outputs, made, expected, strict=True):
        real = network.grids[name].dequantize(codes)
        reach = float(tensor.abs().max())
        assert float(np.abs(real - tensor[:1].numpy()).max()) < 0.05 * reach
