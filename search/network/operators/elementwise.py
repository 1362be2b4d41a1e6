"""Element by element: functions of one tensor that stand alone, and of two tensors."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, write_weights
from search.network.quant_params import Codes, Quantized, multiplied

_T = TypeVar("_T")


class StandaloneActivation(Operator):
    """An activation that no operator has taken in: the identity, and then the activation."""

    takes_activation = True

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return inputs[0]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return inputs[0]


class PRelu(Operator):
    """A leaky ReLU whose slope is the channel's (`weight`)."""

    takes_activation = True

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return torch.nn.functional.prelu(inputs[0], weights["weight"].reshape(-1))

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("PRelu", (*inputs, *write_weights(builder, node)), output)


class Binary(Operator):
    """A function of two tensors, element by element, the smaller one repeated.

    Args:
        op: Its name in ONNX.
    """

    takes_activation = True

    def __init__(self, op: str) -> None:
        self.onnx_op = op
        self._run = _BINARY[op]

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        left, right = inputs
        if len(left) != len(right):
            raise ModelError(f"{node.name}: {node.op} of different shapes {left} and {right}")
        try:
            return tuple(np.broadcast_shapes(left, right))
        except ValueError:
            raise ModelError(
                f"{node.name}: {node.op} of different shapes {left} and {right}"
            ) from None

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        left, right = inputs
        return self._run(left, right)


class Add(Binary):
    """The sum of two tensors."""

    def __init__(self) -> None:
        super().__init__("Add")

    def has_integer_kernel(self, node: Node) -> bool:
        return not _is_activated(node)

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        """Add codes in units of the target's step, as the runtime's kernel does.

        It multiplies and adds in one instruction, which rounds once: near a tie that decides.
        """
        if _is_activated(node):
            return super().run_codes(network, node, inputs)
        target = network.grids[node.name]
        first, second = (network.grids[name] for name in node.inputs)
        by_first, by_second = (
            np.float32(source.scale) / np.float32(target.scale) for source in (first, second)
        )
        zeros = _fused(np.float32(first.zero_point), by_first, by_second * second.zero_point)
        left, right = inputs
        made = _fused(right, by_second, np.float32(target.zero_point) - zeros)
        made = _fused(left, by_first, made)
        return np.asarray(np.clip(np.rint(made), 0, target.top), np.uint8)


class Multiply(Binary):
    """The product of two tensors."""

    def __init__(self) -> None:
        super().__init__("Mul")

    def has_integer_kernel(self, node: Node) -> bool:
        return not _is_activated(node)

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        """Multiply codes as the runtime's kernel does."""
        if _is_activated(node):
            return super().run_codes(network, node, inputs)
        first, second = (network.grids[name] for name in node.inputs)
        left, right = inputs
        return multiplied(left, first, right, second, network.grids[node.name])


class WithConstant(Operator):
    """A `function` of two tensors, the other one being a constant (`weight`), first or second."""

    takes_activation = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        (shape,) = inputs
        constant = () if node.weight is None else node.weight.shape
        try:
            return tuple(np.broadcast_shapes(shape, constant))
        except ValueError:
            raise ModelError(f"{node.name}: of different shapes {shape} and {constant}") from None

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        function = _BINARY[node.attributes["function"]]
        return function(*_in_order(node, inputs[0], weights["weight"]))

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        (constant,) = write_weights(builder, node)
        return builder.add(
            node.attributes["function"], _in_order(node, inputs[0], constant), output
        )


def _in_order(node: Node, tensor: _T, constant: _T) -> tuple[_T, _T]:
    return (tensor, constant) if node.attributes["tensor_first"] else (constant, tensor)


class Softmax(Operator):
    """Exponentials along an `axis`, divided by their sum."""

    onnx_op = "Softmax"

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return torch.softmax(inputs[0], node.attributes["axis"])

    def refusal(self, node: Node) -> str | None:
        return f"{node.name}: a softmax in 8 bits would lose its small values"

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        return {"axis": node.attributes["axis"]}


def _is_activated(node: Node) -> bool:
    """Whether an activation keeps a runtime from using its kernel for two tensors of codes."""
    return node.activation is not None and not node.activation.only_cuts_off


_BINARY: MappingProxyType[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = (
    MappingProxyType(
        {
            "Add": torch.add,
            "Div": torch.div,
            "Max": torch.maximum,
            "Min": torch.minimum,
            "Mul": torch.mul,
            "Sub": torch.sub,
        }
    )
)


def _fused(
    codes: Codes | np.float32, ratio: np.float32, more: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """Product and sum in float32, rounded once."""
    exact = np.asarray(codes, np.float64) * np.float64(ratio) + np.asarray(more, np.float64)
    return exact.astype(np.float32)
