"""Arithmetic of codes: the integer reference computes what every runtime does, ties included."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from common.runtime.registry import open_model
from search.network.activations import HARD_SWISH, SILU, Activation
from search.network.graph import Node
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.registry import operator_of
from search.network.operators.tables import GATES, activation_table, write_table
from search.network.quant_params import Codes, QuantizedConv, QuantParams

TANH = Activation.of("Tanh")
CODES = np.arange(256, dtype=np.uint8)


@dataclass(frozen=True)
class _Integers:
    """The integers of a network of one node, "conv"."""

    before: dict[str, QuantParams]
    grids: dict[str, QuantParams]
    convs: dict[str, QuantizedConv] = field(default_factory=dict)


def _node(activation: Activation) -> Node:
    return Node("conv", "conv", ("image",), (1, 16, 16), activation=activation)


def _integers(activation: Activation, low: float, high: float, bits: int = 8) -> _Integers:
    below = QuantParams.over(low, high)
    reached = activation.run(torch.linspace(low, high, 1001)).numpy()
    above = QuantParams.over(float(reached.min()), float(reached.max()), bits)
    return _Integers({"conv": below}, {"conv": above})


def _model(activation: Activation, integers: _Integers) -> bytes:
    builder = OnnxBuilder()
    builder.add("Identity", ("x",), "codes")
    write_table(builder, integers, _node(activation), "codes", "y")
    ports = [helper.make_tensor_value_info(n, TensorProto.UINT8, [1, 1, 16, 16]) for n in "xy"]
    return builder.model("table", ports[:1], ports[1:])


def _computed(model: bytes, runtime: str = "onnxruntime") -> Codes:
    (made,) = open_model(model, runtime=runtime).run({"x": CODES.reshape(1, 1, 16, 16)})
    return np.asarray(made, np.uint8).ravel()


@pytest.mark.parametrize("activation", [SILU, HARD_SWISH, TANH], ids=lambda each: each.name)
@pytest.mark.parametrize("bits", [8, 4])
@settings(max_examples=40, deadline=None)
@given(low=st.floats(-20, 0), high=st.floats(0.1, 20))
def test_the_runtime_computes_the_table(
    activation: Activation, bits: int, low: float, high: float
) -> None:
    integers = _integers(activation, low, high, bits)
    table = activation_table(integers, _node(activation))
    found = _computed(_model(activation, integers))
    off = np.abs(found.astype(int) - table.astype(int))
    assert (off <= 1).all()  # a runtime's approximation of an exponential may turn a tie
    assert (off == 0).mean() >= 0.98


def test_a_product_near_a_tie_is_rounded_with_its_zero_point() -> None:
    below, above = QuantParams(0.010064270347356796, 99), QuantParams(0.006076595280319452, 46)
    integers = _Integers({"conv": below}, {"conv": above})
    table = activation_table(integers, _node(SILU))
    assert table[128] == 74  # of 27.499998 steps above 46
    np.testing.assert_array_equal(_computed(_model(SILU, integers)), table)


@pytest.mark.parametrize("activation", GATES, ids=lambda each: each.name)
@pytest.mark.parametrize(("low", "high"), [(-3, 1), (-8, 8), (-1, 20), (-12, 0.5)])
def test_a_gated_table_is_within_one_code_of_the_function(
    activation: Activation, low: float, high: float
) -> None:
    integers = _integers(activation, low, high)
    below, above = integers.before["conv"], integers.grids["conv"]
    ideal = activation.run(torch.from_numpy(below.dequantize(CODES))).numpy() / above.scale
    made = activation_table(integers, _node(activation)).astype(np.float64) - above.zero_point
    wrong = made - np.clip(ideal, -above.zero_point, above.top - above.zero_point)
    assert np.abs(wrong).max() <= 1.5
    assert np.sqrt(np.mean(wrong**2)) <= 0.4  # 0.29 is that of rounding alone


@pytest.mark.parametrize("activation", GATES, ids=lambda each: each.name)
@pytest.mark.parametrize(("high", "gated"), [(8, True), (0.5, False)], ids=["wide", "coarse"])
def test_onnx_runtime_runs_gates_in_integers_where_they_are_fine_enough(
    activation: Activation, high: float, gated: bool, tmp_path: Path
) -> None:
    path = tmp_path / "optimised.onnx"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    model = _model(activation, _integers(activation, -8, high))
    ort.InferenceSession(model, options, ["CPUExecutionProvider"])
    kernels = {node.op_type for node in onnx.load(path).graph.node}
    assert ("QLinearMul" in kernels) == gated
    assert bool(kernels & {"DequantizeLinear", "QuantizeLinear", "Mul"}) != gated


def test_a_sum_near_a_tie_is_rounded_once_as_the_kernel_does() -> None:
    grids = {
        "a": QuantParams(0.044283535331487656, 17),
        "b": QuantParams(0.020587841048836708, 20),
        "sum": QuantParams(0.04341452568769455, 20),
    }
    integers = _Integers({}, grids)
    node = Node("sum", "add", ("a", "b"), (1, 256, 256))
    builder = OnnxBuilder()
    builder.add("Identity", ("x",), "a")
    builder.add("Identity", ("y",), "b")
    operator_of(node).write_codes(builder, integers, node)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, [1, 1, 256, 256])
        for name in ("x", "y", "sum")
    ]
    session = open_model(builder.model("sum", ports[:2], ports[2:]))
    left, right = (each[None, None].astype(np.uint8) for each in np.indices((256, 256)))
    (found,) = session.run({"x": left, "y": right})
    expected = operator_of(node).run_codes(integers, node, [left, right])
    np.testing.assert_array_equal(found, expected)
