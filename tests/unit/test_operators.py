"""Every operator: its shape, floating point, integers and ONNX forms say the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from torch import nn

from common.errors import ModelError
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import enumerate_cuts
from search.network.graph import Graph, Node
from search.network.importers.calls import Call, GraphBuilder
from search.network.importers.onnx_operators import read_call
from search.network.importers.torch_module import import_module
from search.network.operators.registry import OPERATORS, operator_of
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.recipe import rounded
from tests.networks import SIZE, pictures, seeded


class Fed(nn.Module):
    """A convolution that feeds the operator under test, and one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.operate(F.leaky_relu(self.stem(x), 0.1)))
        return made

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the operator under test."""
        raise NotImplementedError


class Grouped(Fed):
    """Holds grouped convolutions with strides."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 8, (3, 5), (1, 2), (1, 2), groups=4)

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.grouped(x))


class Pooled(Fed):
    """Pools the largest, with padding on one side."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)


class Averaged(Fed):
    """Pools means."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)


class Upsampled(Fed):
    """Copies values."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Joined(Fed):
    """Slices, and joins on different grids."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, 4:], F.avg_pool2d(x, 1)[:, :4]], 1)


class Summed(Fed):
    """Adds and cuts off what is negative."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.max_pool2d(x, 3, 1, 1) + x)


class Activated(Fed):
    """Has an activation that stands alone."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(F.max_pool2d(x, 2), 0.2)


class Dilated(Fed):
    """Has a dilated, depthwise convolution with padding on one side, and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.around = nn.Conv2d(8, 8, 3, 1, 0, 2, groups=8)

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.around(F.pad(x, (1, 3, 2, 1))))


class Transposed(Fed):
    """Has a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1)

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.up(x))


class Gated(Fed):
    """Multiplies by a gate for each channel, as squeeze-and-excite does."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return x * F.hardsigmoid(gate)


class Blended(Fed):
    """Subtracts, divides, and takes the larger and the smaller of two tensors."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(x, 3, 1, 1)
        return torch.cat([x - y, x / (y.abs() + 1.0)], 1)[:, 4:12]


class Normed(Fed):
    """Scales by channel where no convolution can take it in, and has slopes by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.slopes = nn.PReLU(8)

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.slopes(self.norm(F.max_pool2d(x, 2)))
        return scaled


class Padded(Fed):
    """Pads by zeros in front of other than convolutions."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.pad(x, (1, 0, 0, 1)), 3, 2, 1, count_include_pad=True)


class Enlarged(Fed):
    """Interpolates."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Shuffled(Fed):
    """Shuffles channels in groups, and moves them into space."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.max_pool2d(F.pixel_shuffle(torch.cat([x, x, x, x], 1), 2), 2)


class Attended(Fed):
    """Has a softmax over the channels, which heads do not hold."""

    def operate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(x, 1)


CASES = {
    "activation": Activated,
    "add": Summed,
    "average_pool": Averaged,
    "concat": Joined,
    "conv": Grouped,
    "conv_transpose": Transposed,
    "divide": Blended,
    "max_pool": Pooled,
    "multiply": Gated,
    "pad": Padded,
    "prelu": Normed,
    "reshape": Shuffled,
    "resize": Enlarged,
    "scale": Normed,
    "slice": Joined,
    "softmax": Attended,
    "subtract": Blended,
    "transpose": Shuffled,
    "upsample": Upsampled,
    "dilated": Dilated,
}
# Of ONNX files only: see test_onnx_file.py, test_structures.py and test_light_models.py.
OF_FILES = {
    "constant",
    "gather",
    "local_response",
    "matrix_product",
    "maximum",
    "minimum",
    "onnx",
    "onnx_output",
}
FRAMES = pictures(4)


def graph_with(op: str) -> Graph:
    """The optimised graph of the operator's case."""
    graph = optimise(import_module(seeded(CASES[op]()), SIZE))
    assert op in {*(node.op for node in graph.nodes), "dilated"}
    return graph


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) == set(CASES) - {"dilated"} | OF_FILES


@pytest.mark.parametrize("op", CASES)
def test_an_imported_operator_keeps_the_function(op: str) -> None:
    graph = graph_with(op)
    image = torch.from_numpy(FRAMES).float() / 255
    found = execute.run(graph, {"image": image}, [node.name for node in graph.nodes[1:]])
    with torch.inference_mode():
        expected = seeded(CASES[op]())(image)
    torch.testing.assert_close(found[graph.outputs[0]], expected, atol=1e-5, rtol=1e-5)
    assert all(found[node.name].shape[1:] == node.shape for node in graph.nodes[1:])


@pytest.mark.parametrize("op", CASES)
def test_heads_in_the_runtime_equal_the_integer_reference(op: str) -> None:
    graph = graph_with(op)
    network = rounded(graph, observe(graph, FRAMES), reduced_range=saturates_int8())
    for cut in enumerate_cuts(graph)[1:]:
        if any(node.name in network.refused for node in cut.head):
            assert op == "softmax"
            with pytest.raises(ModelError, match="softmax"):
                head_model(network, cut.tensors)
            continue
        runtime = open_model(head_model(network, cut.codes))
        for frame in FRAMES:
            codes = runtime.run({"image": frame[None]})
            check_parity(codes, integer.run(network, frame[None], cut.codes), what=cut.name)


@pytest.mark.parametrize("op", CASES)
def test_tails_in_the_runtime_equal_torch(op: str, tmp_path: Path) -> None:
    graph = graph_with(op)
    weights = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    image = torch.from_numpy(FRAMES[:2]).float() / 255
    whole = execute.run(graph, {"image": image}, graph.outputs)
    for cut in enumerate_cuts(graph)[:-1]:
        path = tmp_path / "tail.onnx"
        path.write_bytes(tail_model(graph, cut, weights))
        sent = execute.run(graph, {"image": image}, cut.tensors)
        (output,) = open_model(path).run({name: value.numpy() for name, value in sent.items()})
        np.testing.assert_allclose(output, whole[graph.outputs[0]].numpy(), atol=2e-5)


def test_a_wrong_shape_or_an_unknown_operator_is_refused() -> None:
    call = Call("MaxPool", ("image",), ("pool",), {"kernel_shape": (2, 2), "strides": (2, 2)})
    builder = GraphBuilder("image", (3, 8, 8), {})
    read_call(call, builder)
    builder.check_shape("pool", (3, 4, 4))
    builder.check_shape("elsewhere", (1,))
    with pytest.raises(ModelError, match=r"pool: imported with shape \(3, 4, 4\), expected \(3, 5"):
        builder.check_shape("pool", (3, 5, 4))
    with pytest.raises(ModelError, match="pool: no operator fft"):
        operator_of(Node("pool", "fft", ("image",), (3, 4, 4)))
    with pytest.raises(ModelError, match="add of different shapes"):
        builder.append("both", "add", ("image", "pool"))
