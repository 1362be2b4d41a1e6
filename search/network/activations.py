"""Activations: one entry for each element-wise non-linearity.

An entry says how it is computed in torch and written as ONNX, and what may be assumed of it. In
integers every one of them is a table of 256 codes, but a ReLU, which its grid does by itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from search.network.graph import Activation, ActivationKind
from search.network.onnx_builder import OnnxBuilder

_Run = Callable[[Activation, torch.Tensor], torch.Tensor]
_Write = Callable[[OnnxBuilder, Activation, str, str], str]


@dataclass(frozen=True)
class ActivationEntry:
    """One non-linearity.

    Attributes:
        run: Computes it in floating point.
        write: Adds it to an ONNX model: (builder, activation, source, output).
        is_monotone: Whether a larger input never gives a smaller output; max pooling commutes
            with it then.
        is_homogeneous: Whether f(s x) = s f(x) for every s > 0.
        clips_at_zero: Whether it only cuts off what is negative: a grid that ends at zero does it.
        is_identity_above_zero: Whether it leaves positive values as they are.
        has_integer_form: Whether heads may hold it.
    """

    run: _Run
    write: _Write
    is_monotone: bool = True
    is_homogeneous: bool = False
    clips_at_zero: bool = False
    is_identity_above_zero: bool = False
    has_integer_form: bool = True


def _single(op: str) -> _Write:
    return lambda builder, _activation, source, output: builder.add(op, (source,), output)


def _write_leaky_relu(
    builder: OnnxBuilder, activation: Activation, source: str, output: str
) -> str:
    return builder.add("LeakyRelu", (source,), output, alpha=activation.slope)


def _write_silu(builder: OnnxBuilder, _activation: Activation, source: str, output: str) -> str:
    gate = builder.add("Sigmoid", (source,), f"{output}.gate")
    return builder.add("Mul", (source, gate), output)


ACTIVATIONS: Mapping[ActivationKind, ActivationEntry] = MappingProxyType(
    {
        "leaky_relu": ActivationEntry(
            lambda activation, tensor: F.leaky_relu(tensor, activation.slope),
            _write_leaky_relu,
            is_homogeneous=True,
            is_identity_above_zero=True,
        ),
        "relu": ActivationEntry(
            lambda _activation, tensor: F.relu(tensor),
            _single("Relu"),
            is_homogeneous=True,
            clips_at_zero=True,
            is_identity_above_zero=True,
        ),
        "sigmoid": ActivationEntry(
            lambda _activation, tensor: torch.sigmoid(tensor),
            _single("Sigmoid"),
            has_integer_form=False,
        ),
        "silu": ActivationEntry(
            lambda _activation, tensor: F.silu(tensor),
            _write_silu,
            is_monotone=False,
            has_integer_form=False,
        ),
    }
)


def entry_of(activation: Activation) -> ActivationEntry:
    """Look the entry of an activation up."""
    return ACTIVATIONS[activation.kind]


def activate(activation: Activation, tensor: torch.Tensor) -> torch.Tensor:
    """Apply a non-linearity in floating point."""
    return entry_of(activation).run(activation, tensor)


def write_activation(builder: OnnxBuilder, activation: Activation, source: str, output: str) -> str:
    """Add a non-linearity to an ONNX model in floating point; returns the output's name."""
    return entry_of(activation).write(builder, activation, source, output)
