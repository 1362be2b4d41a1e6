"""Samples of convolutions, one at a time: the inputs after rounding, the sums before it.

    codes of the input -> patches (n, groups, K)      target (n, C): its sums in floating point

Layers come in the order of execution, each with what the rounded layers before it give, so that
rounding a layer can compensate for the errors of the earlier ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from common.imaging.images import unit_range
from search.network import execute
from search.network.graph import Node
from search.network.quant_params import QuantizedConv
from search.quantization import integer
from search.quantization.network import QuantizedGraph
from search.quantization.weights import Floats

_FEWEST_SAMPLES = 4096
_SAMPLES_PER_INPUT = 2


@dataclass(frozen=True, eq=False)
class SampledLayer:
    """One convolution on sampled positions, in random order.

    Attributes:
        node: The convolution.
        patches: (n, groups, K) what it reads there, dequantized.
        target: (n, C_out) its sums in floating point, before the activation.
    """

    node: Node
    patches: torch.Tensor
    target: torch.Tensor

    @property
    def weight(self) -> Floats:
        """(C_out, C_in / groups, kH, kW), in floating point."""
        if self.node.weight is None:
            raise ModelError(f"{self.node.name}: a convolution without weights")
        return self.node.weight

    @property
    def bias(self) -> torch.Tensor:
        """(C_out,), in floating point."""
        if self.node.bias is None:
            return torch.zeros(self.target.shape[1])
        return torch.from_numpy(self.node.bias)

    def sums(
        self, weight: torch.Tensor, bias: torch.Tensor, rows: Any = slice(None)
    ) -> torch.Tensor:
        """(n, C_out) sums for weights (C_out, C_in / groups, kH, kW)."""
        groups = self.patches.shape[1]
        shared = weight.reshape(groups, len(weight) // groups, -1)
        products = torch.einsum("ngk,gok->ngo", self.patches[rows], shared)
        return products.reshape(len(products), -1) + bias

    def error(self, weight: torch.Tensor, rows: Any = slice(None)) -> torch.Tensor:
        """Mean squared error of the outputs behind the activation, biases corrected there."""
        target = self.target[rows]
        found = self.sums(weight, self.bias, rows)
        found = found - (found - target).mean(0)
        return torch.mean((self._activated(found) - self._activated(target)) ** 2)

    def corrected_bias(self, conv: QuantizedConv) -> torch.Tensor:
        """(C_out,) bias without the mean error of each channel's sums.

        Nagel et al., "Data-free quantization through weight equalization and bias correction",
        ICCV 2019, section 4.2, in the empirical form.
        """
        found = self.sums(torch.from_numpy(conv.real), self.bias)
        return self.bias - (found - self.target).mean(0)

    def _activated(self, sums: torch.Tensor) -> torch.Tensor:
        return self.node.activate(sums)


def layers_of(
    network: QuantizedGraph, fetch: Sequence[str], frames: NDArray[np.uint8]
) -> Iterator[SampledLayer]:
    """The convolutions that make the tensors `fetch`, in the order of execution.

    A layer is executed when the next one is asked for: with the integers that `network.convs` holds
    then.
    """
    prefix = network.graph.ancestors(fetch)
    last_use = {name: index for index, node in enumerate(prefix) for name in node.inputs}
    rng = np.random.default_rng(0)
    codes: dict[str, NDArray[np.uint8]] = {prefix[0].name: frames}
    exact: dict[str, NDArray[np.float16]] = {}  # the image's values are its codes / 255
    for index, node in enumerate(prefix[1:], 1):
        if node.op == "conv":
            yield _sampled(network, node, codes[node.inputs[0]], exact.get(node.inputs[0]), rng)
        made = [_executed(network, node, codes, exact, frame) for frame in range(len(frames))]
        codes[node.name] = np.concatenate([rounded for rounded, _ in made])
        exact[node.name] = np.concatenate([ideal for _, ideal in made])
        for name in {*node.inputs, node.name}:
            if last_use.get(name, -1) <= index:
                codes.pop(name, None)
                exact.pop(name, None)


def _executed(
    network: QuantizedGraph,
    node: Node,
    codes: Mapping[str, NDArray[np.uint8]],
    exact: Mapping[str, NDArray[np.float16]],
    frame: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """One node on one frame, (1, C, H, W) each: in integers and in floating point."""
    part = slice(frame, frame + 1)
    inputs = [codes[name][part] for name in node.inputs]
    ideal = [
        torch.from_numpy(_values(codes[name][part], exact.get(name), part)) for name in node.inputs
    ]
    with torch.inference_mode():
        outputs = execute.apply(node, ideal).numpy().astype(np.float16)
    return integer.apply(network, node, inputs), outputs


def _values(pixels: NDArray[np.uint8], exact: NDArray[np.float16] | None, part: Any) -> Floats:
    if exact is None:
        return unit_range(pixels)
    return np.asarray(exact[part], np.float32)


def _sampled(
    network: QuantizedGraph,
    node: Node,
    codes: NDArray[np.uint8],
    exact: NDArray[np.float16] | None,
    rng: np.random.Generator,
) -> SampledLayer:
    """Random positions of every frame, twice as many as a channel has weights or more."""
    if node.weight is None:
        raise ModelError(f"{node.name}: a convolution without weights")
    wanted = max(_FEWEST_SAMPLES, _SAMPLES_PER_INPUT * node.weight[0].size)
    each = -(-wanted // len(codes))
    source, groups = network.grids[node.inputs[0]], node.attributes["groups"]
    rounded, ideal = [], []
    for frame in range(len(codes)):
        rows = rng.integers(0, node.shape[1], each)
        columns = rng.integers(0, node.shape[2], each)
        values = _values(codes[frame], exact, frame)
        rounded.append(_patches(node, source.dequantize(codes[frame]), rows, columns))
        ideal.append(_patches(node, values, rows, columns))
    order = torch.from_numpy(rng.permutation(each * len(codes)))
    patches, clean = (
        torch.from_numpy(np.concatenate(some).reshape(len(order), groups, -1))[order]
        for some in (rounded, ideal)
    )
    layer = SampledLayer(node, clean, torch.zeros(len(order), len(node.weight)))
    return SampledLayer(node, patches, layer.sums(torch.from_numpy(node.weight), layer.bias))


def _patches(
    node: Node, values: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> Floats:
    """(n, C_in, kH, kW) of what a convolution reads at output positions; `values` are (C, H, W)."""
    if node.weight is None:
        raise ModelError(f"{node.name}: a convolution without weights")
    stride, (top, left, bottom, right) = node.attributes["stride"], node.attributes["pads"]
    padded = np.pad(values, ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, node.weight.shape[2:], (1, 2))
    found: Floats = np.moveaxis(windows[:, rows * stride[0], columns * stride[1]], 0, 1)
    return found
