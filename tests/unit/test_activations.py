"""Element-wise functions: as torch computes them, as the runtime does, and as one of many steps."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from common.runtime.registry import open_model
from search.network.activations import (
    FUNCTIONS,
    HARD_SWISH,
    IDENTITY,
    RELU,
    SILU,
    Activation,
    Step,
    combined,
    simplified,
)
from search.network.onnx_builder import OnnxBuilder

VALUES = np.linspace(-4, 4, 257, dtype=np.float32)
POSITIVE = ("Log", "Pow", "Reciprocal", "Sqrt")
CONSTANTS = {
    "Add": (1.5,), "Clip": (-1.0, 2.5), "Div": (3.0,), "Max": (0.5,), "Min": (0.5,),
    "Mul": (-0.7,), "Pow": (1.5,), "Sub": (2.0,),
}  # fmt: skip
ATTRIBUTES = {"LeakyRelu": {"alpha": 0.3}, "HardSigmoid": {"alpha": 0.3, "beta": 0.4}}


def in_the_runtime(activation: Activation, values: np.ndarray) -> np.ndarray:
    builder = OnnxBuilder()
    made = activation.write(builder, "x", "y")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, values.shape)
    found = helper.make_tensor_value_info(made, TensorProto.FLOAT, values.shape)
    (output,) = open_model(builder.model("function", [given], [found])).run({"x": values})
    return np.asarray(output)


@pytest.mark.parametrize("op", FUNCTIONS)
def test_a_function_is_the_runtimes(op: str) -> None:
    values = np.abs(VALUES) + 0.1 if op in POSITIVE else VALUES
    activation = Activation.of(op, *CONSTANTS.get(op, ()), **ATTRIBUTES.get(op, {}))
    found = activation.run(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(found, in_the_runtime(activation, values), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("activation", "expected", "name"),
    [
        (SILU, torch.nn.functional.silu, "silu"),
        (HARD_SWISH, torch.nn.functional.hardswish, "hard_swish"),
        (
            simplified(
                combined(
                    "Mul",
                    Activation.of("Add", 3.0).then(Activation.of("Clip", 0.0, 6.0)),
                    IDENTITY,
                ).then(Activation.of("Div", 6.0))
            ),
            torch.nn.functional.hardswish,
            "hard_swish",
        ),
        (
            combined("Mul", IDENTITY, Activation.of("Softplus").then(Activation.of("Tanh"))),
            torch.nn.functional.mish,
            "mish",
        ),
        (RELU.then(Activation.of("Sub", 1.0)), lambda x: torch.relu(x) - 1, "relu+sub"),
        (Activation.of("LeakyRelu", alpha=0.1), lambda x: torch.where(x > 0, x, 0.1 * x), None),
    ],
)
def test_functions_of_functions(activation: Activation, expected: object, name: str | None) -> None:
    assert callable(expected)
    want = expected(torch.from_numpy(VALUES)).numpy()
    np.testing.assert_allclose(activation.run(torch.from_numpy(VALUES)).numpy(), want, atol=1e-5)
    np.testing.assert_allclose(in_the_runtime(activation, VALUES), want, atol=1e-5)
    assert activation.name == (name or "leaky_relu")


def test_the_order_of_factors_does_not_matter() -> None:
    gate = Activation.of("Sigmoid")
    assert combined("Mul", gate, IDENTITY) == combined("Mul", IDENTITY, gate) == SILU
    assert combined("Sub", gate, IDENTITY) != combined("Sub", IDENTITY, gate)


def test_what_a_grid_does_by_itself() -> None:
    assert RELU.only_cuts_off
    assert Activation.of("Clip", 0.0, 6.0).only_cuts_off
    assert Activation.of("Clip", -1.0, 1.0).only_cuts_off
    assert not Activation.of("Clip", 1.0, 2.0).only_cuts_off
    assert not SILU.only_cuts_off
    assert IDENTITY.is_homogeneous
    assert not Activation((Step("Add", (0, 1.0)),)).is_homogeneous


def test_every_function_is_an_operator_of_onnx() -> None:
    assert all(onnx.defs.has(op) for op in FUNCTIONS)
