"""Pooling."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, only


class MaxPooling(Operator):
    """Largest value under a `kernel`, with `stride` and `pads` as (top, left, bottom, right)."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return _pooled(node, inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        top, left, bottom, right = node.attributes["pads"]
        padded = F.pad(inputs[0], (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(padded, node.attributes["kernel"], node.attributes["stride"])

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("MaxPool", inputs, output, **_onnx_attributes(node))


class AveragePooling(Operator):
    """Mean under a `kernel`, with `stride` and `pads`; padding does not count."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return _pooled(node, inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return F.avg_pool2d(
            inputs[0],
            node.attributes["kernel"],
            node.attributes["stride"],
            node.attributes["pads"][:2],
            count_include_pad=False,
        )

    def write(self, builder: OnnxBuilder, node: Node, inputs: Sequence[str], output: str) -> str:
        return builder.add("AveragePool", inputs, output, **_onnx_attributes(node))


def _pooled(node: Node, inputs: Sequence[Shape]) -> Shape:
    channels, height, width = only(inputs)
    top, left, bottom, right = node.attributes["pads"]
    (tall, wide), (down, across) = node.attributes["kernel"], node.attributes["stride"]
    return (
        channels,
        (height + top + bottom - tall) // down + 1,
        (width + left + right - wide) // across + 1,
    )


def _onnx_attributes(node: Node) -> Mapping[str, Any]:
    attributes = node.attributes
    return {
        "kernel_shape": attributes["kernel"],
        "strides": attributes["stride"],
        "pads": attributes["pads"],
    }
