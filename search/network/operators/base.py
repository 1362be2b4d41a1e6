"""The interface of an operator.

    shape          of what it makes, from the shapes of what it reads
    run            in floating point, in torch
    run_codes      in integers, bit for bit as a runtime's kernels do
    write          as ONNX nodes in floating point
    write_codes    as ONNX nodes on codes

The forms in integers follow from the others: an operator that only moves values does the same to
codes, any other one computes on the values that codes stand for. An operator overrides them where
a runtime has an integer kernel of its own, whose arithmetic is then repeated.

In floating point an operator leaves the node's activation to its caller.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.quant_params import Codes, Quantized

Weights = Mapping[str, torch.Tensor]
"""A node's own "weight" and "bias", of those that it has."""


class Operator(ABC):
    """One operator; its settings are a node's attributes.

    Attributes:
        onnx_op: Its name in ONNX; an operator that is several nodes there overrides `write`.
        computes_in_torch: Whether `run` works.
        makes_values: Whether its output has a grid of its own; others move the values of their
            first input, and share its grid.
        has_integer_weights: Whether heads keep its weights in integers.
        has_sums: Whether a runtime's kernel rounds its sums of products to codes, so that an
            activation behind it is a table from the codes of the sums to those of the output.
        takes_activation: Whether an activation that alone reads a node may be fused into it.
    """

    onnx_op: str = ""
    computes_in_torch: ClassVar[bool] = True
    makes_values: ClassVar[bool] = True
    has_integer_weights: ClassVar[bool] = False
    has_sums: ClassVar[bool] = False
    takes_activation: ClassVar[bool] = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        """The shape of the output, from those of the inputs; none has the batch.

        Raises:
            ModelError: If the inputs do not fit together.
        """
        del node
        return only(inputs)

    @abstractmethod
    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        """Compute the output, (N, ...), in floating point, without the activation."""

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        """Add ONNX nodes that compute the output in floating point, without the activation.

        Args:
            builder: The model.
            node: The node.
            inputs: Names of what it reads.
            output: Name for what it makes.

        Returns:
            The name of what it makes: `output`, unless there is nothing to compute.
        """
        return builder.add(self.onnx_op, inputs, output, **self.onnx_attributes(node))

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        """Attributes of the ONNX operator."""
        del node
        return {}

    def refusal(self, node: Node) -> str | None:
        """Reason why a head may not hold a node; None if it may."""
        del node
        return None

    def has_integer_kernel(self, node: Node) -> bool:
        """Whether runtimes compute a node of a head in integers, not in floating point."""
        del node
        return not self.makes_values

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        """Compute the output's codes, (N, ...), with the activation."""
        if not self.makes_values:
            moved = self.run(node, [torch.from_numpy(codes).float() for codes in inputs], {})
            return np.ascontiguousarray(moved.numpy().astype(np.uint8))
        values = [
            torch.from_numpy(network.grids[name].dequantize(codes))
            for name, codes in zip(node.inputs, inputs, strict=True)
        ]
        output = self.run(node, values, weights_of(node, values[0]))
        if node.activation is not None and not node.activation.only_cuts_off:
            output = node.activation.run(output)
        return network.grids[node.name].quantize(output.numpy())

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        """Add ONNX nodes that compute the output's codes, with the activation."""
        if not self.makes_values:
            self.write(builder, node, node.inputs, node.name)
            return
        values = [
            builder.dequantize(name, network.grids[name], f"{node.name}.in{index}")
            for index, name in enumerate(node.inputs)
        ]
        real = self.write(builder, node, values, f"{node.name}.real")
        if node.activation is not None and not node.activation.only_cuts_off:
            real = node.activation.write(builder, real, f"{node.name}.after")
        builder.quantize(real, network.grids[node.name], node.name)


def weights_of(node: Node, like: torch.Tensor) -> Weights:
    """A node's weight and bias in torch, of the type and on the device of `like`."""
    return {
        part: torch.from_numpy(array).to(like)
        for part, array in (("weight", node.weight), ("bias", node.bias))
        if array is not None
    }


def write_weights(builder: OnnxBuilder, node: Node) -> list[str]:
    """Add a node's weight and bias to a model, if it has them; returns their names."""
    return [
        builder.weight(f"{node.name}.{part}", array)
        for part, array in (("weight", node.weight), ("bias", node.bias))
        if array is not None
    ]


def only(inputs: Sequence[Shape]) -> Shape:
    """The shape of the one input."""
    (shape,) = inputs
    return shape
