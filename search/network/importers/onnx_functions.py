"""Readers of ONNX calls: functions of elements, and normalisations."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from search.network.activations import FUNCTIONS, Activation, Step
from search.network.importers.calls import Array, Call, GraphBuilder, Reader
from search.network.importers.onnx_settings import as_float, axis_of

_BINARY = {
    "Add": "add",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Mul": "multiply",
    "Sub": "subtract",
}


def _function(call: Call, graph: GraphBuilder) -> None:
    """An element-wise function with attributes only."""
    attributes = {key: float(value) for key, value in call.attributes.items()}
    activation = Activation.of(call.op, **attributes)
    graph.add(call, "activation", (graph.tensor(call),), activation=activation)


def _clip(call: Call, graph: GraphBuilder) -> None:
    low = call.attributes.get("min", graph.optional(call, 1))
    high = call.attributes.get("max", graph.optional(call, 2))
    bounds = (
        -np.inf if low is None else float(np.asarray(low).reshape(())),
        np.inf if high is None else float(np.asarray(high).reshape(())),
    )
    activation = Activation.of("Clip", *bounds)
    graph.add(call, "activation", (graph.tensor(call),), activation=activation)


def _gelu(call: Call, graph: GraphBuilder) -> None:
    if call.attributes.get("approximate", "none") != "none":
        raise call.unsupported("with the tanh approximation")
    half = float(np.float32(np.sqrt(0.5)))
    erf = (Step("Mul", (0, half)), Step("Erf", (1,)), Step("Add", (2, 1.0)))
    activation = Activation((*erf, Step("Mul", (0, 3)), Step("Mul", (4, 0.5))))
    graph.add(call, "activation", (graph.tensor(call),), activation=activation)


def _binary(call: Call, graph: GraphBuilder) -> None:
    """Two tensors, or a tensor and a constant: a scalar, or one value for each channel."""
    if len(call.inputs) != 2:
        raise call.unsupported(f"of {len(call.inputs)} tensors")
    left, right = graph.is_tensor(call, 0), graph.is_tensor(call, 1)
    if left and right:
        sources = graph.tensor(call, 0), graph.tensor(call, 1)
        if len({len(graph.shape(name)) for name in sources}) != 1:
            raise call.unsupported("tensors of different ranks")
        graph.add(call, _BINARY[call.op], sources)
        return
    source = graph.tensor(call, 0 if left else 1)
    constant = as_float(graph.constant(call, 1 if left else 0))
    if constant.size == 1:
        value = float(constant.reshape(()))
        inputs = (0, value) if left else (value, 0)
        activation = Activation((Step(call.op, inputs),))
        graph.add(call, "activation", (source,), activation=activation)
    else:
        _scaled(call, graph, source, constant, tensor_first=left)


def _scaled(
    call: Call, graph: GraphBuilder, source: str, constant: Array, *, tensor_first: bool
) -> None:
    shape = graph.shape(source)
    around = (1,) * (len(shape) - 1)
    padded = (1,) * (len(shape) + 1 - constant.ndim) + constant.shape
    if padded != (1, shape[0], *around) or (call.op == "Div" and not tensor_first):
        _with_constant(call, graph, source, constant, tensor_first=tensor_first)
        return
    values = constant.reshape(-1)
    gain, offset = np.ones_like(values), np.zeros_like(values)
    if call.op == "Add":
        offset = values
    elif call.op == "Mul":
        gain = values
    elif call.op == "Sub":
        gain, offset = (gain, -values) if tensor_first else (-gain, values)
    elif call.op == "Div":
        gain = 1 / values
    else:
        raise call.unsupported(f"with a constant of shape {constant.shape}")
    graph.add(call, "scale", (source,), weight=gain, bias=offset)


def _with_constant(
    call: Call, graph: GraphBuilder, source: str, constant: Array, *, tensor_first: bool
) -> None:
    """A constant that varies over places, the same for every image."""
    shape = graph.shape(source)
    whole = (1,) * (len(shape) + 1 - constant.ndim) + constant.shape
    if len(whole) != len(shape) + 1 or whole[0] != 1:
        raise call.unsupported(f"with a constant of shape {constant.shape}")
    attributes = {"function": call.op, "tensor_first": tensor_first, "macs": 0}
    weight = constant.reshape(whole[1:])
    graph.add(call, "constant", (source,), attributes=attributes, weight=weight)


def _pow(call: Call, graph: GraphBuilder) -> None:
    exponent = float(graph.constant(call, 1).reshape(()))
    activation = Activation((Step("Pow", (0, exponent)),))
    graph.add(call, "activation", (graph.tensor(call),), activation=activation)


def _sum(call: Call, graph: GraphBuilder) -> None:
    made = graph.tensor(call)
    for index in range(1, len(call.inputs)):
        last = index == len(call.inputs) - 1
        grow = graph.add if last else graph.step
        made = grow(call, "add", (made, graph.tensor(call, index)))
    if len(call.inputs) == 1:
        graph.alias(call, made)


def _prelu(call: Call, graph: GraphBuilder) -> None:
    source, slope = graph.tensor(call), as_float(graph.constant(call, 1))
    channels = graph.shape(source)[0]
    if slope.size == 1:
        activation = Activation.of("LeakyRelu", alpha=float(slope.reshape(())))
        graph.add(call, "activation", (source,), activation=activation)
    elif slope.size == channels and slope.shape[0] == channels:
        graph.add(call, "prelu", (source,), weight=slope.reshape(channels, 1, 1))
    else:
        raise call.unsupported(f"with slopes of shape {slope.shape}")


def _batch_norm(call: Call, graph: GraphBuilder) -> None:
    gain, shift, mean, variance = (as_float(graph.constant(call, index)) for index in range(1, 5))
    scale = gain / np.sqrt(variance + np.float32(call.attributes.get("epsilon", 1e-5)))
    graph.add(
        call,
        "scale",
        (graph.tensor(call),),
        weight=np.asarray(scale, np.float32),
        bias=np.asarray(shift - mean * scale, np.float32),
    )


def _local_response(call: Call, graph: GraphBuilder) -> None:
    size = int(call.attributes["size"])
    source = graph.tensor(call)
    if size % 2 == 0 or len(graph.shape(source)) != 3:
        raise call.unsupported("over an even number of channels, or not of maps")
    attributes = {
        "size": size,
        "alpha": float(call.attributes.get("alpha", 1e-4)),
        "beta": float(call.attributes.get("beta", 0.75)),
        "offset": float(call.attributes.get("bias", 1.0)),
    }
    graph.add(call, "local_response", (source,), attributes=attributes)


def _softmax(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    axis = axis_of(call, len(graph.shape(source)), -1)
    graph.add(call, "softmax", (source,), attributes={"axis": axis})


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **{op: _function for op in FUNCTIONS if op not in ("Clip", "Pow", *_BINARY)},
        **dict.fromkeys(_BINARY, _binary),
        "BatchNormalization": _batch_norm,
        "Clip": _clip,
        "Gelu": _gelu,
        "LRN": _local_response,
        "PRelu": _prelu,
        "Pow": _pow,
        "Softmax": _softmax,
        "Sum": _sum,
    }
)
