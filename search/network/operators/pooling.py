"""Pooling."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, only
from search.network.operators.convolution import window_shape


class MaxPooling(Operator):
    """Largest value under a `kernel`, with `stride` and `pads` as (top, left, bottom, right)."""

    onnx_op = "MaxPool"
    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return _pooled(node, inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        top, left, bottom, right = node.attributes["pads"]
        padded = F.pad(inputs[0], (left, right, top, bottom), value=float("-inf"))
        return F.max_pool2d(padded, node.attributes["kernel"], node.attributes["stride"])

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        return _onnx_attributes(node)


class AveragePooling(Operator):
    """Mean under a `kernel`, with `stride` and `pads`; padding counts if `counts_padding`."""

    takes_activation = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return _pooled(node, inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        top, left, bottom, right = node.attributes["pads"]
        kernel, stride = node.attributes["kernel"], node.attributes["stride"]
        around = (left, right, top, bottom)
        means = F.avg_pool2d(F.pad(inputs[0], around), kernel, stride)
        if node.attributes["counts_padding"] or not any(around):
            return means
        ones = torch.ones_like(inputs[0][:1, :1])
        return means / F.avg_pool2d(F.pad(ones, around), kernel, stride)

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        _, height, width = node.shape
        if (height, width) == (1, 1) and not any(node.attributes["pads"]):
            return builder.add("GlobalAveragePool", inputs, output)
        counts = int(node.attributes["counts_padding"])
        return builder.add(
            "AveragePool", inputs, output, count_include_pad=counts, **_onnx_attributes(node)
        )


def _pooled(node: Node, inputs: Sequence[Shape]) -> Shape:
    channels, *size = only(inputs)
    return channels, *window_shape(size, node.attributes["kernel"], node)


def _onnx_attributes(node: Node) -> Mapping[str, Any]:
    attributes = node.attributes
    return {
        "kernel_shape": attributes["kernel"],
        "strides": attributes["stride"],
        "pads": attributes["pads"],
    }
