"""Activations as tables of codes: what a head computes between a convolution's sums and its output.

    codes of the sums -> dequantize -> activation -> quantize -> codes of the output

Runtimes do most activations in floating point, three to six passes over a tensor. Those that
multiply their argument by a gate, x g(x), are written as two kernels of integers instead, where the
gate is itself a table of 256 codes:

    codes -> QLinearSigmoid -> codes of the gate
    codes x codes of the gate -> QLinearMul -> codes of the output

Where the gate's 256 steps would move a code by more than one, floating point stays.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.activations import HARD_SWISH, SILU, Activation
from search.network.graph import Node
from search.network.onnx_builder import OnnxBuilder
from search.network.quant_params import Codes, Quantized, QuantParams, multiplied


@dataclass(frozen=True)
class Gate:
    """The gate g of an activation x g(x), as a runtime's integer kernel.

    Attributes:
        function: A function of x that the runtime has a kernel for.
        written: Grid that its values are quantized to.
        read: Grid of g, that the same codes are read by.
    """

    function: Activation
    written: QuantParams
    read: QuantParams

    def codes(self, values: NDArray[np.float32]) -> Codes:
        """Codes of g, of any shape."""
        return self.written.quantize(self.function.run(torch.from_numpy(values)).numpy())

    def write(self, builder: OnnxBuilder, real: str, output: str) -> str:
        """Add the gate of values `real` to a model; returns the name of its values."""
        made = self.function.write(builder, real, f"{output}.function")
        codes = builder.quantize(made, self.written, f"{output}.codes")
        return builder.dequantize(codes, self.read, output)


_CODES = np.arange(256, dtype=np.uint8)
_UNIT = QuantParams(float(np.float32(1 / 255)), 0)
GATES = {
    SILU: Gate(Activation.of("Sigmoid"), _UNIT, _UNIT),
    # x / 6 + 1/2 between 0 and 1 is x on a grid that ends there. A leaky ReLU without a leak is
    # the one kernel that takes codes from grid to grid by a table.
    HARD_SWISH: Gate(
        Activation.of("LeakyRelu", alpha=1.0), QuantParams(float(np.float32(6 / 255)), 127), _UNIT
    ),
}
"""Gates by the activation that they are in."""


def activation_table(network: Quantized, node: Node) -> Codes:
    """(256,) codes after the activation, indexed by the code before it; (C, 256) with gains."""
    activation, below, above = _parts(network, node)
    if node.gains is None:
        gate = _gate(activation, below, above)
        return _plain(activation, below, above) if gate is None else _gated(gate, below, above)
    steps = _CODES.astype(np.float32) - np.float32(below.zero_point)
    linear = steps * (np.float32(below.scale) / node.gains)[:, None]
    values = activation.run(torch.from_numpy(linear)).numpy()
    made = np.rint(values / (np.float32(above.scale) / node.gains)[:, None])
    return np.asarray(np.clip(made + above.zero_point, 0, above.top), np.uint8)


def write_table(
    builder: OnnxBuilder, network: Quantized, node: Node, codes: str, output: str
) -> None:
    """Codes of a node's sums -> activation -> codes of its output."""
    activation, below, above = _parts(network, node)
    real = builder.dequantize(codes, below, f"{output}.before", node.gains)
    if node.gains is not None:
        activation.write(builder, real, f"{output}.after")
        builder.quantize(f"{output}.after", above, output, gains=node.gains)
        return
    gate = _gate(activation, below, above)
    if gate is None:
        activation.write(builder, real, f"{output}.after")
    else:
        builder.add("Mul", (real, gate.write(builder, real, f"{output}.gate")), f"{output}.after")
    highest = float(below.dequantize(np.array(255, np.uint8)))
    beyond = highest / above.scale + above.zero_point > above.top + 0.5
    builder.quantize(f"{output}.after", above, output, saturates=beyond)


def _gate(activation: Activation, below: QuantParams, above: QuantParams) -> Gate | None:
    """The gate of an activation, where its steps move no code by more than one."""
    gate = GATES.get(activation)
    if gate is None:
        return None
    moved = np.subtract(_gated(gate, below, above), _plain(activation, below, above), dtype=int)
    return gate if np.abs(moved).max() <= 1 else None


def _plain(activation: Activation, below: QuantParams, above: QuantParams) -> Codes:
    """Table of an activation that is computed in floating point."""
    return above.quantize(activation.run(torch.from_numpy(below.dequantize(_CODES))).numpy())


def _gated(gate: Gate, below: QuantParams, above: QuantParams) -> Codes:
    """Table of an activation x g(x)."""
    return multiplied(_CODES, below, gate.codes(below.dequantize(_CODES)), gate.read, above)


def _parts(network: Quantized, node: Node) -> tuple[Activation, QuantParams, QuantParams]:
    """A node's activation, with the grids below and above it."""
    if node.activation is None:
        raise ModelError(f"{node.name}: no activation")
    return node.activation, network.before[node.name], network.grids[node.name]
