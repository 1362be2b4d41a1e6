"""Activations: element-wise functions of one tensor, as expressions of ONNX's own operators.

    SiLU, x sigmoid(x):   Sigmoid(x) -> s1,  Mul(x, s1) -> s2

A step names an ONNX operator; its arguments are the function's argument (0), earlier results (1 for
the first step's) and constants. So whatever a network computes element by element of one tensor, by
one operator or by twenty, is one activation here. In integers every activation is a table of 256
codes, but those that only cut off, which a grid does by itself.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from search.network.onnx_builder import OnnxBuilder

_COMMUTATIVE = ("Add", "Max", "Min", "Mul")
_SNAKE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

Argument = int | float
"""0 for the function's argument, k for the result of the k-th step, a float for a constant."""


@dataclass(frozen=True)
class Step:
    """One operator of ONNX.

    Attributes:
        op: Its name.
        inputs: Its arguments.
        attributes: By name.
    """

    op: str
    inputs: tuple[Argument, ...]
    attributes: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Activation:
    """An element-wise function of one tensor; without steps it is the identity."""

    steps: tuple[Step, ...]

    @classmethod
    def of(cls, op: str, *constants: float, **attributes: float) -> "Activation":
        """The function of a single operator; constants are its further arguments."""
        return cls((Step(op, (0, *constants), tuple(sorted(attributes.items()))),))

    @property
    def name(self) -> str:
        """The function's usual name, or the names of its operators."""
        known = _USUAL_NAMES.get(self)
        return known or "+".join(_SNAKE.sub("_", step.op).lower() for step in self.steps)

    @property
    def only_cuts_off(self) -> bool:
        """Whether values are kept, or cut off at bounds on either side of zero.

        A grid over the function's values does the same: it saturates there.
        """
        if self == RELU:
            return True
        if len(self.steps) != 1 or self.steps[0].op != "Clip":
            return False
        low, high = self.steps[0].inputs[1:]
        return low <= 0 <= high

    @property
    def is_homogeneous(self) -> bool:
        """Whether f(s x) = s f(x) for every s > 0."""
        return all(step.op in ("Relu", "LeakyRelu") for step in self.steps)

    @property
    def keeps_positive(self) -> bool:
        """Whether positive values stay as they are."""
        return self.is_homogeneous

    def then(self, outer: "Activation") -> "Activation":
        """The function `outer` of this one's result."""
        count = len(self.steps)
        return Activation((*self.steps, *_shifted(outer, count, count)))

    def run(self, tensor: torch.Tensor) -> torch.Tensor:
        """Compute the function in floating point."""
        if self == SILU:  # as one operation: training keeps one tensor of it instead of three
            return F.silu(tensor)
        values = [tensor]
        for step in self.steps:
            arguments = [
                values[a] if isinstance(a, int) else _scalar(a, tensor) for a in step.inputs
            ]
            values.append(FUNCTIONS[step.op](*arguments, **dict(step.attributes)))
        return values[-1]

    def write(self, builder: OnnxBuilder, source: str, output: str) -> str:
        """Add the function to a model in floating point; returns the name of its result."""
        names = [source]
        for rank, step in enumerate(self.steps, 1):
            inputs = [names[a] if isinstance(a, int) else builder.scalar(a) for a in step.inputs]
            result = output if rank == len(self.steps) else f"{output}.step{rank}"
            names.append(builder.add(step.op, inputs, result, **dict(step.attributes)))
        return names[-1]


def combined(op: str, left: Activation, right: Activation) -> Activation:
    """The function `op` of two functions of the same tensor."""
    count = len(left.steps)
    inputs = count, count + len(right.steps) if right.steps else 0
    if op in _COMMUTATIVE:
        inputs = min(inputs), max(inputs)
    return Activation((*left.steps, *_shifted(right, 0, count), Step(op, inputs)))


def simplified(activation: Activation) -> Activation:
    """Write a function in fewer steps, if that is known."""
    return _SIMPLER.get(activation, activation)


def _shifted(function: Activation, argument: int, by: int) -> tuple[Step, ...]:
    """A function's steps behind `by` others, its argument being the result of step `argument`."""

    def moved(a: Argument) -> Argument:
        if not isinstance(a, int):
            return a
        return argument if a == 0 else a + by

    return tuple(
        Step(step.op, tuple(moved(a) for a in step.inputs), step.attributes)
        for step in function.steps
    )


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def _hard_sigmoid(x: torch.Tensor, alpha: float = 0.2, beta: float = 0.5) -> torch.Tensor:
    return (alpha * x + beta).clamp(0, 1)


def _elu(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    return F.elu(x, alpha)


def _thresholded(x: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    return torch.where(x > alpha, x, 0)


FUNCTIONS: Mapping[str, Callable[..., torch.Tensor]] = MappingProxyType(
    {
        "Abs": torch.abs,
        "Add": torch.add,
        "Celu": lambda x, alpha=1.0: F.celu(x, alpha),
        "Clip": torch.clamp,
        "Div": torch.div,
        "Elu": _elu,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "HardSigmoid": _hard_sigmoid,
        "HardSwish": F.hardswish,
        "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
        "Log": torch.log,
        "Max": torch.maximum,
        "Min": torch.minimum,
        "Mish": F.mish,
        "Mul": torch.mul,
        "Neg": torch.neg,
        "Pow": torch.pow,
        "Reciprocal": torch.reciprocal,
        "Relu": F.relu,
        "Sigmoid": torch.sigmoid,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Sqrt": torch.sqrt,
        "Sub": torch.sub,
        "Tanh": torch.tanh,
        "ThresholdedRelu": _thresholded,
    }
)
"""Operators of ONNX that make one element of one element, in torch; a new one is one line."""

IDENTITY = Activation(())
RELU = Activation.of("Relu")
SILU = combined("Mul", IDENTITY, Activation.of("Sigmoid"))
HARD_SWISH = Activation.of("HardSwish")
_SIXTH = float(np.float32(1 / 6))
_RELU6 = Activation.of("Add", 3.0).then(Activation.of("Clip", 0.0, 6.0))
_SIMPLER = {
    combined("Mul", IDENTITY, _RELU6).then(Activation.of("Div", 6.0)): HARD_SWISH,
    combined("Mul", IDENTITY, _RELU6).then(Activation.of("Mul", _SIXTH)): HARD_SWISH,
    combined("Mul", IDENTITY, _RELU6.then(Activation.of("Div", 6.0))): HARD_SWISH,
    combined("Mul", IDENTITY, _RELU6.then(Activation.of("Mul", _SIXTH))): HARD_SWISH,
    combined("Mul", IDENTITY, Activation.of("HardSigmoid", alpha=_SIXTH, beta=0.5)): HARD_SWISH,
}
_USUAL_NAMES = {
    SILU: "silu",
    combined("Mul", IDENTITY, Activation.of("Softplus").then(Activation.of("Tanh"))): "mish",
}
