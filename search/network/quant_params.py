"""Quantization parameters, and the integers that a network's operators compute in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint8]


@dataclass(frozen=True)
class QuantParams:
    """Unsigned grid of 2^bits points: value = (q - zero_point) * scale; `scale` is a float32."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    @classmethod
    def over(cls, low: float, high: float, bits: int = 8) -> "QuantParams":
        """Grid over [low, high] and zero; one end may be missed by up to half a step."""
        low, high, top = min(low, 0.0), max(high, 0.0), (1 << bits) - 1
        scale = float(np.float32((high - low) / top))
        return cls(scale, int(np.clip(np.rint(-low / scale), 0, top)), bits)

    def quantize(self, values: NDArray[np.float32]) -> Codes:
        """Nearest grid point, ties to even, saturating."""
        steps = np.rint(np.asarray(values, np.float32) / np.float32(self.scale)) + self.zero_point
        return np.asarray(np.clip(steps, 0, self.top), np.uint8)

    def dequantize(self, codes: Codes) -> NDArray[np.float32]:
        """Values of grid points."""
        return (codes.astype(np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)


@dataclass(frozen=True, eq=False)
class QuantizedConv:
    """Integer weights of one convolution.

    Attributes:
        weight: (C_out, C_in / groups, kH, kW) int8, symmetric about zero.
        scale: (C_out,) float32.
        bias: (C_out,) int32 in units of input scale x weight scale.
        bits: Of a weight.
    """

    weight: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    bits: int = 8

    @property
    def stored_bytes(self) -> int:
        """Bytes of packed weights, scales and biases."""
        return (self.weight.size * self.bits + 7) // 8 + self.scale.nbytes + self.bias.nbytes

    @property
    def real(self) -> NDArray[np.float32]:
        """The weights that the integers stand for."""
        return np.asarray(self.weight * self.scale[:, None, None, None], np.float32)


def multiplied(
    left: Codes, left_grid: QuantParams, right: Codes, right_grid: QuantParams, target: QuantParams
) -> Codes:
    """Codes of the products of two tensors' values, as ONNX Runtime's kernel computes them.

    It scales the product once, and adds the zero point before it rounds, all in float32: near a tie
    these decide.
    """
    product = (left.astype(np.float32) - np.float32(left_grid.zero_point)) * (
        right.astype(np.float32) - np.float32(right_grid.zero_point)
    )
    scale = np.float32(left_grid.scale) * np.float32(right_grid.scale) / np.float32(target.scale)
    made = np.rint(product * scale + np.float32(target.zero_point))
    return np.asarray(np.clip(made, 0, target.top), np.uint8)


class Quantized(Protocol):
    """The integers of a network, as its operators read them.

    Attributes:
        grids: Grid of every tensor.
        before: Grid of a node's sums, for nodes whose activation is a table.
        convs: Integer weights by convolution.
    """

    @property
    def grids(self) -> Mapping[str, QuantParams]: ...

    @property
    def before(self) -> Mapping[str, QuantParams]: ...

    @property
    def convs(self) -> Mapping[str, QuantizedConv]: ...
