"""Products of two tensors, as of an attention."""

from collections.abc import Sequence

import numpy as np
import torch

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.operators.base import Operator, Weights
from search.network.quant_params import Codes, Quantized


class ProductOfTensors(Operator):
    """The product of the last two axes, for every index of those before.

    In integers sums are exact, as of a convolution, and scaled once.
    """

    onnx_op = "MatMul"

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        left, right = inputs
        if left[-1] != right[-2]:
            raise ModelError(f"{node.name}: product of different shapes {left} and {right}")
        return *np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return torch.matmul(*inputs)

    def has_integer_kernel(self, node: Node) -> bool:
        return True

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        target = network.grids[node.name]
        sources = [network.grids[name] for name in node.inputs]
        left, right = (
            codes.astype(np.float64) - source.zero_point
            for codes, source in zip(inputs, sources, strict=True)
        )
        scale = np.float32(sources[0].scale) * np.float32(sources[1].scale)
        scaled = (left @ right).astype(np.float32) * (scale / np.float32(target.scale))
        return np.asarray(np.clip(np.rint(scaled) + target.zero_point, 0, target.top), np.uint8)
