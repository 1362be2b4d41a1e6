"""Convolutions, and the scaling by channel that folds into them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import (
    Operator,
    Weights,
    only,
    write_weights,
)
from search.network.operators.tables import activation_table, write_table
from search.network.quant_params import Codes, Quantized, QuantParams


class Conv(Operator):
    """A convolution, with `stride`, `pads` as (top, left, bottom, right), `groups` and `dilation`.

    In integers, sums of products are computed in float64, where they are exact; requantization
    repeats the runtime's float32 arithmetic (scale, round half to even, saturate). With an
    activation that is a table there are two grids: the sums are quantized before it.
    """

    has_integer_weights = True
    has_sums = True
    takes_activation = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = only(inputs)
        made, read, *kernel = _weight(node).shape
        groups, dilation = node.attributes["groups"], node.attributes.get("dilation", (1, 1))
        if read * groups != channels:
            raise ModelError(f"{node.name}: weights for {read * groups} channels, found {channels}")
        spans = [around * (size - 1) + 1 for size, around in zip(kernel, dilation, strict=True)]
        return made, *window_shape((height, width), spans, node)

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

    def has_integer_kernel(self, node: Node) -> bool:
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
        if node.name not in network.before:
            return linear
        table = activation_table(network, node)
        if node.gains is None:
            return table[linear]
        return table[np.arange(len(table))[:, None, None], linear]

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        if node.name not in network.before:
            write_sums(builder, network, node, node.name)
            return
        linear = write_sums(builder, network, node, f"{node.name}.linear")
        write_table(builder, network, node, linear, node.name)


class ConvTranspose(Operator):
    """A transposed convolution, with `stride`, `pads`, `extra` rows and columns, and `groups`.

    Its weights are (C_out, C_in / groups, kH, kW), as those of convolutions are; ONNX and torch
    have them by input channels. Heads keep them in integers and compute in floating point: runtimes
    have no integer kernel for it.
    """

    has_integer_weights = True
    takes_activation = True

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = only(inputs)
        made, read, *kernel = _weight(node).shape
        groups = node.attributes["groups"]
        if read * groups != channels:
            raise ModelError(f"{node.name}: weights for {read * groups} channels, found {channels}")
        (top, left, bottom, right), stride = node.attributes["pads"], node.attributes["stride"]
        tall, wide = (
            step * (size - 1) + span - around + extra
            for size, step, span, around, extra in zip(
                (height, width),
                stride,
                kernel,
                (top + bottom, left + right),
                node.attributes["extra"],
                strict=True,
            )
        )
        return made, tall, wide

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        top, left, bottom, right = node.attributes["pads"]
        down, across = node.attributes["extra"]
        groups = node.attributes["groups"]
        whole = F.conv_transpose2d(
            inputs[0],
            by_other_channels(weights["weight"], groups),
            weights.get("bias"),
            node.attributes["stride"],
            0,
            (max(down - bottom, 0), max(across - right, 0)),
            groups,
        )
        height, width = node.shape[1:]
        return whole[:, :, top : top + height, left : left + width]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        names = [*inputs]
        for part, array in (("weight", node.weight), ("bias", node.bias)):
            if array is not None:
                names.append(builder.weight(f"{node.name}.{part}", array))
        names[1] = self._by_inputs(builder, node, names[1])
        return builder.add("ConvTranspose", names, output, **self._attributes(node))

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        conv, source = network.convs[node.name], network.grids[node.inputs[0]]
        bias = conv.bias.astype(np.float32) * (np.float32(source.scale) * conv.scale)
        output = self.run(
            node,
            [torch.from_numpy(source.dequantize(inputs[0]))],
            {"weight": torch.from_numpy(conv.real), "bias": torch.from_numpy(bias)},
        )
        if node.activation is not None and not node.activation.only_cuts_off:
            output = node.activation.run(output)
        return network.grids[node.name].quantize(output.numpy())

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        real, weight, bias = write_real_inputs(builder, network, node)
        by_inputs = self._by_inputs(builder, node, weight)
        names = (real, by_inputs, bias)
        made = builder.add("ConvTranspose", names, f"{node.name}.real", **self._attributes(node))
        if node.activation is not None and not node.activation.only_cuts_off:
            made = node.activation.write(builder, made, f"{node.name}.after")
        builder.quantize(made, network.grids[node.name], node.name)

    def _by_inputs(self, builder: OnnxBuilder, node: Node, weight: str) -> str:
        """The weights by input channels; runtimes do this once, when they open the model."""
        made, read, tall, wide = _weight(node).shape
        groups = node.attributes["groups"]
        if groups == 1:
            return builder.add("Transpose", (weight,), f"{weight}.by_inputs", perm=(1, 0, 2, 3))
        apart = builder.constant(
            f"{weight}.apart", np.array([groups, made // groups, read, tall, wide], np.int64)
        )
        joined = builder.constant(
            f"{weight}.joined", np.array([groups * read, made // groups, tall, wide], np.int64)
        )
        grouped = builder.add("Reshape", (weight, apart), f"{weight}.grouped")
        order = (0, 2, 1, 3, 4)
        moved = builder.add("Transpose", (grouped,), f"{weight}.moved", perm=order)
        return builder.add("Reshape", (moved, joined), f"{weight}.by_inputs")

    def _attributes(self, node: Node) -> Mapping[str, Any]:
        return {
            "strides": node.attributes["stride"],
            "pads": node.attributes["pads"],
            "output_padding": node.attributes["extra"],
            "group": node.attributes["groups"],
        }


class Scale(Operator):
    """A gain (`weight`) and an offset (`bias`) by channel, as of a batch normalisation."""

    takes_activation = True

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        gain, offset = (_by_channel(weights[part], node) for part in ("weight", "bias"))
        return inputs[0] * gain + offset

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        if node.weight is None or node.bias is None:
            raise ModelError(f"{node.name}: a scale without its constants")
        around = (1,) * (len(node.shape) - 1)
        gain = builder.weight(f"{node.name}.weight", node.weight.reshape(-1, *around))
        offset = builder.weight(f"{node.name}.bias", node.bias.reshape(-1, *around))
        scaled = builder.add("Mul", (*inputs, gain), f"{output}.scaled")
        return builder.add("Add", (scaled, offset), output)


def write_sums(builder: OnnxBuilder, network: Quantized, node: Node, output: str) -> str:
    """Input codes -> convolution -> codes on the grid of its sums; returns their name."""
    target = network.before.get(node.name, network.grids[node.name])
    inputs = write_real_inputs(builder, network, node)
    sums = builder.add("Conv", inputs, f"{node.name}.sums", **_onnx_attributes(node))
    return builder.quantize(sums, target, output)


def write_real_inputs(builder: OnnxBuilder, network: Quantized, node: Node) -> tuple[str, str, str]:
    """Dequantize what a convolution reads; returns the names of input, weight and bias."""
    conv = network.convs[node.name]
    source = network.grids[node.inputs[0]]
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
    return real, weight, bias


def by_input(weight: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    """A view (groups, C_out / groups, C_in / groups, kH, kW) of a convolution's weights."""
    view: NDArray[np.float64] = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    return view


def by_other_channels(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Weights by output channels, (A, B / groups, ...), as weights by input channels, or back."""
    first, second, *kernel = weight.shape
    apart = weight.reshape(groups, first // groups, second, *kernel).swapaxes(1, 2)
    return apart.reshape(groups * second, first // groups, *kernel)


def window_shape(size: Sequence[int], spans: Sequence[int], node: Node) -> Shape:
    """Numbers of places of a window of `spans` that moves over `size` by a node's stride."""
    top, left, bottom, right = node.attributes["pads"]
    return tuple(
        (length + around - span) // step + 1
        for length, around, span, step in zip(
            size, (top + bottom, left + right), spans, node.attributes["stride"], strict=True
        )
    )


def _convolve(
    node: Node, source: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    attributes = node.attributes
    top, left, bottom, right = attributes["pads"]
    if (top, left) != (bottom, right):
        source, top, left = F.pad(source, (left, right, top, bottom)), 0, 0
    return F.conv2d(
        source,
        weight,
        bias,
        attributes["stride"],
        (top, left),
        attributes.get("dilation", 1),
        attributes["groups"],
    )


def _weight(node: Node) -> NDArray[np.float32]:
    if node.weight is None:
        raise ModelError(f"{node.name}: {node.op} without weights")
    return node.weight


def _by_channel(values: torch.Tensor, node: Node) -> torch.Tensor:
    return values.reshape(-1, *(1,) * (len(node.shape) - 1))


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
    written = {
        "strides": attributes["stride"],
        "pads": attributes["pads"],
        "group": attributes["groups"],
    }
    if "dilation" in attributes:
        written["dilations"] = attributes["dilation"]
    return written
