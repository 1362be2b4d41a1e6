"""Convolutions, and the batch normalisation that folds into them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.activations import activate, write_activation
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import (
    Operator,
    Weights,
    only,
    write_weights,
)
from search.network.quant_params import Codes, Quantized, QuantParams


class Conv(Operator):
    """A convolution, with `stride`, `pads` as (top, left, bottom, right) and `groups`.

    In integers, sums of products are computed in float64, where they are exact; requantization
    repeats the runtime's float32 arithmetic (scale, round half to even, saturate). With an
    activation other than a ReLU there are two grids: the sums are quantized before the activation,
    which is then a table from codes to codes.
    """

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = only(inputs)
        if node.weight is None:
            raise ModelError(f"{node.name}: a convolution without weights")
        made, read, *kernel = node.weight.shape
        if read * node.attributes["groups"] != channels:
            raise ModelError(
                f"{node.name}: weights for {read * node.attributes['groups']} channels, "
                f"found {channels}"
            )
        top, left, bottom, right = node.attributes["pads"]
        return made, *(
            (size + padding - span) // step + 1
            for size, padding, span, step in zip(
                (height, width),
                (top + bottom, left + right),
                kernel,
                node.attributes["stride"],
                strict=True,
            )
        )

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        (source,) = inputs
        return _convolve(node, source, weights["weight"], weights.get("bias"))

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        names = (*inputs, *write_weights(builder, node))
        return builder.add("Conv", names, output, **_onnx_attributes(node))

    def takes_activation(self, node: Node) -> bool:
        return True

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        conv = network.convs[node.name]
        source = network.grids[node.inputs[0]]
        target = network.before.get(node.name, network.grids[node.name])
        sums = _convolve(
            node,
            torch.from_numpy(inputs[0].astype(np.float64) - source.zero_point),
            torch.from_numpy(conv.weight.astype(np.float64)),
            torch.from_numpy(conv.bias.astype(np.float64)),
        ).numpy()
        linear = _requantize(sums, source, conv.scale, target)
        if node.name in network.before:
            return activation_table(network, node)[linear]
        return linear

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        if node.name not in network.before:
            write_sums(builder, network, node, node.name)
            return
        linear = write_sums(builder, network, node, f"{node.name}.linear")
        write_table(builder, network, node, linear, node.name)


class BatchNorm(Operator):
    """A batch normalisation: a gain (`weight`) and an offset (`bias`) by channel."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return only(inputs)

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        (source,) = inputs
        return source * weights["weight"][:, None, None] + weights["bias"][:, None, None]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        raise ModelError(f"{node.name}: operator {node.op} has no ONNX form")


def activation_table(network: Quantized, node: Node) -> Codes:
    """(256,) codes after the activation, indexed by the code before it."""
    if node.activation is None:
        raise ModelError(f"{node.name}: no activation")
    linear = network.before[node.name].dequantize(np.arange(256, dtype=np.uint8))
    values = activate(node.activation, torch.from_numpy(linear)).numpy()
    return network.grids[node.name].quantize(values)


def write_sums(builder: OnnxBuilder, network: Quantized, node: Node, output: str) -> str:
    """Input codes -> convolution -> codes on the grid of its sums; returns their name."""
    conv = network.convs[node.name]
    source = network.grids[node.inputs[0]]
    target = network.before.get(node.name, network.grids[node.name])
    real = builder.dequantize(node.inputs[0], source, f"{node.name}.in")
    channels = len(conv.scale)
    weight = builder.add(
        "DequantizeLinear",
        (
            builder.integer_weight(f"{node.name}.weight", conv.weight),
            builder.constant(f"{node.name}.weight.scale", conv.scale),
            builder.constant(f"{node.name}.weight.zero", np.zeros(channels, np.int8)),
        ),
        f"{node.name}.weight.real",
        axis=0,
    )
    bias = builder.add(
        "DequantizeLinear",
        (
            builder.constant(f"{node.name}.bias", conv.bias),
            builder.constant(f"{node.name}.bias.scale", np.float32(source.scale) * conv.scale),
            builder.constant(f"{node.name}.bias.zero", np.zeros(channels, np.int32)),
        ),
        f"{node.name}.bias.real",
        axis=0,
    )
    sums = builder.add("Conv", (real, weight, bias), f"{node.name}.sums", **_onnx_attributes(node))
    return builder.quantize(sums, target, output)


def write_table(
    builder: OnnxBuilder, network: Quantized, node: Node, codes: str, output: str
) -> None:
    """Codes of a node's sums -> activation -> codes of its output."""
    if node.activation is None:
        raise ModelError(f"{node.name}: no activation")
    real = builder.dequantize(codes, network.before[node.name], f"{output}.before")
    write_activation(builder, node.activation, real, f"{output}.after")
    grid = network.grids[node.name]
    highest = float(network.before[node.name].dequantize(np.array(255, np.uint8)))
    beyond = highest / grid.scale + grid.zero_point > grid.top + 0.5
    builder.quantize(f"{output}.after", grid, output, saturates=beyond)


def _convolve(
    node: Node, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    attributes = node.attributes
    return F.conv2d(
        source,
        weight,
        bias,
        attributes["stride"],
        attributes["pads"][:2],
        1,
        attributes["groups"],
    )


def _requantize(
    sums: NDArray[np.float64],
    source: QuantParams,
    weight_scale: NDArray[np.float32],
    target: QuantParams,
) -> Codes:
    multiplier = np.float32(source.scale) * weight_scale / np.float32(target.scale)
    scaled = sums.astype(np.float32) * multiplier[None, :, None, None]
    low, high = -target.zero_point, target.top - target.zero_point
    return np.asarray(np.rint(np.clip(scaled, low, high)) + target.zero_point, np.uint8)


def _onnx_attributes(node: Node) -> Mapping[str, Any]:
    attributes = node.attributes
    return {
        "strides": attributes["stride"],
        "pads": attributes["pads"],
        "group": attributes["groups"],
    }
