"""Element by element: activations that stand alone, and sums of two tensors."""

from collections.abc import Sequence

import numpy as np
import torch

from search.network.activations import entry_of
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, equal, only
from search.network.quant_params import Codes, Quantized


class StandaloneActivation(Operator):
    """An activation that no operator has taken in: the identity, and then the activation."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return only(inputs)

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

    def refusal(self, node: Node) -> str | None:
        """Refuse all: so far only convolutions have the grid that its table reads."""
        return f"{node.name}: {node.activation} has no integer form"


class Add(Operator):
    """The sum of two tensors of one shape."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return equal(node, inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        left, right = inputs
        return left + right

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("Add", inputs, output)

    def takes_activation(self, node: Node) -> bool:
        return node.activation is not None and entry_of(node.activation).clips_at_zero

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        target = network.grids[node.name]
        sources = [network.grids[name] for name in node.inputs]
        ratios = [np.float32(source.scale) / np.float32(target.scale) for source in sources]
        offset = np.float32(target.zero_point) - sum(
            np.float32(source.zero_point) * ratio
            for source, ratio in zip(sources, ratios, strict=True)
        )
        left, right = (q.astype(np.float32) * r for q, r in zip(inputs, ratios, strict=True))
        return np.asarray(np.clip(np.rint(left + (right + offset)), 0, target.top), np.uint8)
