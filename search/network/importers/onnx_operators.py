"""The operators of ONNX, as nodes of the graph: one reader for each, in one table.

A reader raises `UnsupportedCallError` for settings that the graph has no entry for. Settings that
moved from attributes to inputs with later versions of ONNX are read from where they are.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from search.network.activations import FUNCTIONS, Activation, Step
from search.network.importers.calls import Array, Call, GraphBuilder, as_pair
from search.network.operators.convolution import by_other_channels

Reader = Callable[[Call, GraphBuilder], None]

_NO_PADS = (0, 0, 0, 0)
_BINARY = {
    "Add": "add",
    "Div": "divide",
    "Max": "maximum",
    "Min": "minimum",
    "Mul": "multiply",
    "Sub": "subtract",
}


def read_call(call: Call, graph: GraphBuilder) -> None:
    """Import one call.

    Raises:
        UnsupportedCallError: If the graph has no entry for it.
    """
    reader = READERS.get(call.op)
    if reader is None:
        raise call.unsupported("no such operator here")
    reader(call, graph)


def _conv(call: Call, graph: GraphBuilder) -> None:
    weight, bias = _weights(call, graph)
    if weight.ndim != 4:
        raise call.unsupported(f"a convolution in {weight.ndim - 2} dimensions")
    source = graph.tensor(call)
    dilation = as_pair(call.attributes.get("dilations", (1, 1)))
    stride = as_pair(call.attributes.get("strides", (1, 1)))
    spans = [
        around * (size - 1) + 1 for size, around in zip(weight.shape[2:], dilation, strict=True)
    ]
    attributes: dict[str, Any] = {
        "stride": stride,
        "pads": _pads(call, graph.shape(source), spans, stride),
        "groups": int(call.attributes.get("group", 1)),
    }
    if dilation != (1, 1):
        attributes["dilation"] = dilation
    graph.add(call, "conv", (source,), attributes=attributes, weight=weight, bias=bias)


def _conv_transpose(call: Call, graph: GraphBuilder) -> None:
    weight, bias = _weights(call, graph)
    if weight.ndim != 4 or as_pair(call.attributes.get("dilations", (1, 1))) != (1, 1):
        raise call.unsupported("dilated, or not in two dimensions")
    if call.attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in call.attributes:
        raise call.unsupported("with auto_pad or output_shape")
    source = graph.tensor(call)
    _, height, width = graph.shape(source)
    attributes: dict[str, Any] = {
        "stride": as_pair(call.attributes.get("strides", (1, 1))),
        "pads": tuple(call.attributes.get("pads", _NO_PADS)),
        "extra": as_pair(call.attributes.get("output_padding", (0, 0))),
        "groups": int(call.attributes.get("group", 1)),
        "macs": weight.size * height * width,
    }
    weight = np.ascontiguousarray(
        by_other_channels(torch.from_numpy(weight), attributes["groups"]).numpy()
    )
    graph.add(call, "conv_transpose", (source,), attributes=attributes, weight=weight, bias=bias)


def _gemm(call: Call, graph: GraphBuilder) -> None:
    """Fully connected: a convolution of a picture of one pixel, with the channels as inputs."""
    weight = _float(graph.constant(call, 1))
    bias = graph.optional(call, 2)
    source = graph.tensor(call)
    if len(graph.shape(source)) != 1 or call.attributes.get("transA", 0):
        raise call.unsupported("a product of matrices other than (batch, features)")
    if not call.attributes.get("transB", 0):
        weight = weight.T
    weight = weight * np.float32(call.attributes.get("alpha", 1.0))
    if bias is not None:
        gain = np.float32(call.attributes.get("beta", 1.0))
        bias = np.broadcast_to(_float(bias).reshape(-1) * gain, (len(weight),)).copy()
    _fully_connected(call, graph, source, weight, bias)


def _matmul(call: Call, graph: GraphBuilder) -> None:
    weight = _float(graph.constant(call, 1))
    source = graph.tensor(call)
    if len(graph.shape(source)) != 1 or weight.ndim != 2:
        raise call.unsupported("a product of matrices other than (batch, features)")
    _fully_connected(call, graph, source, weight.T, None)


def _fully_connected(
    call: Call, graph: GraphBuilder, source: str, weight: Array, bias: Array | None
) -> None:
    (features,) = graph.shape(source)
    pixel = graph.step(call, "reshape", (source,), attributes={"shape": (features, 1, 1)})
    made = graph.step(
        call,
        "conv",
        (pixel,),
        attributes={"stride": (1, 1), "pads": _NO_PADS, "groups": 1},
        weight=np.ascontiguousarray(weight[:, :, None, None]),
        bias=None if bias is None else np.ascontiguousarray(bias),
    )
    graph.add(call, "reshape", (made,), attributes={"shape": (len(weight),)})


def _batch_norm(call: Call, graph: GraphBuilder) -> None:
    gain, shift, mean, variance = (_float(graph.constant(call, index)) for index in range(1, 5))
    scale = gain / np.sqrt(variance + np.float32(call.attributes.get("epsilon", 1e-5)))
    graph.add(
        call,
        "scale",
        (graph.tensor(call),),
        weight=np.asarray(scale, np.float32),
        bias=np.asarray(shift - mean * scale, np.float32),
    )


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
    constant = _float(graph.constant(call, 1 if left else 0))
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
    if padded != (1, shape[0], *around):
        raise call.unsupported(f"with a constant of shape {constant.shape}")
    values = constant.reshape(-1)
    gain, offset = np.ones_like(values), np.zeros_like(values)
    if call.op == "Add":
        offset = values
    elif call.op == "Mul":
        gain = values
    elif call.op == "Sub":
        gain, offset = (gain, -values) if tensor_first else (-gain, values)
    elif call.op == "Div" and tensor_first:
        gain = 1 / values
    else:
        raise call.unsupported(f"with a constant of shape {constant.shape}")
    graph.add(call, "scale", (source,), weight=gain, bias=offset)


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
    source, slope = graph.tensor(call), _float(graph.constant(call, 1))
    channels = graph.shape(source)[0]
    if slope.size == 1:
        activation = Activation.of("LeakyRelu", alpha=float(slope.reshape(())))
        graph.add(call, "activation", (source,), activation=activation)
    elif slope.size == channels and slope.shape[0] == channels:
        graph.add(call, "prelu", (source,), weight=slope.reshape(channels, 1, 1))
    else:
        raise call.unsupported(f"with slopes of shape {slope.shape}")


def _max_pool(call: Call, graph: GraphBuilder) -> None:
    name = call.input(0)
    before = graph.padded.get(name)
    source = before[0] if before else graph.tensor(call)
    attributes = _window(call, graph.shape(source), before[1] if before else _NO_PADS)
    if as_pair(call.attributes.get("dilations", (1, 1))) != (1, 1):
        raise call.unsupported("dilated")
    if len(call.outputs) > 1:
        raise call.unsupported("with indices")
    graph.add(call, "max_pool", (source,), attributes=attributes)


def _average_pool(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    attributes = _window(call, graph.shape(source), _NO_PADS)
    attributes["counts_padding"] = bool(call.attributes.get("count_include_pad", 0))
    graph.add(call, "average_pool", (source,), attributes=attributes)


def _global_average(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    graph.add(call, "average_pool", (source,), attributes=_whole(call, graph, source))


def _global_max(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    attributes = _whole(call, graph, source)
    del attributes["counts_padding"]
    graph.add(call, "max_pool", (source,), attributes=attributes)


def _reduce_mean(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    axes = call.attributes.get("axes")
    if axes is None:
        axes = graph.constant(call, 1).tolist()
    rank = len(graph.shape(source)) + 1
    if sorted(int(axis) % rank for axis in axes) != [2, 3] or rank != 4:
        raise call.unsupported(f"over the axes {list(axes)}")
    attributes = _whole(call, graph, source)
    if call.attributes.get("keepdims", 1):
        graph.add(call, "average_pool", (source,), attributes=attributes)
        return
    made = graph.step(call, "average_pool", (source,), attributes=attributes)
    graph.add(call, "reshape", (made,), attributes={"shape": graph.shape(made)[:1]})


def _whole(call: Call, graph: GraphBuilder, source: str) -> dict[str, Any]:
    shape = graph.shape(source)
    if len(shape) != 3:
        raise call.unsupported(f"of a tensor of shape {shape}")
    size = shape[1:]
    return {"kernel": size, "stride": size, "pads": _NO_PADS, "counts_padding": False}


def _concat(call: Call, graph: GraphBuilder) -> None:
    sources = [graph.tensor(call, index) for index in range(len(call.inputs))]
    axis = _axis(call, len(graph.shape(sources[0])))
    attributes = {} if axis == 1 else {"axis": axis}
    graph.add(call, "concat", sources, attributes=attributes)


def _slice(call: Call, graph: GraphBuilder) -> None:
    made = graph.tensor(call)
    rank = len(graph.shape(made)) + 1
    if "starts" in call.attributes:
        starts, stops = call.attributes["starts"], call.attributes["ends"]
        axes, steps = call.attributes.get("axes"), None
    else:
        starts, stops = graph.constant(call, 1).tolist(), graph.constant(call, 2).tolist()
        axes, steps = graph.optional(call, 3), graph.optional(call, 4)
    along = range(len(starts)) if axes is None else [int(axis) % rank for axis in axes]
    strides = [1] * len(starts) if steps is None else [int(step) for step in steps]
    for axis, start, stop, step in zip(along, starts, stops, strides, strict=True):
        size = 1 if axis == 0 else graph.shape(made)[axis - 1]
        if step < 1:
            raise call.unsupported("backwards")
        bounds = slice(int(start), int(stop), step).indices(size)
        if bounds == (0, size, 1):
            continue
        if axis == 0:
            raise call.unsupported("of the batch")
        made = _sliced(call, graph, made, axis, *bounds)
    graph.alias(call, made)


def _sliced(
    call: Call, graph: GraphBuilder, source: str, axis: int, start: int, stop: int, step: int
) -> str:
    attributes = {"start": start, "stop": stop}
    if axis != 1:
        attributes["axis"] = axis
    if step != 1:
        attributes["step"] = step
    return graph.step(call, "slice", (source,), attributes=attributes)


def _split(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    axis = _axis(call, len(graph.shape(source)))
    size = graph.shape(source)[axis - 1]
    sizes = call.attributes.get("split", graph.optional(call, 1))
    if sizes is None:
        each = -(-size // len(call.outputs))
        sizes = [min(each, size - each * k) for k in range(len(call.outputs))]
    start = 0
    for name, length in zip(call.outputs, sizes, strict=True):
        attributes = {"start": start, "stop": start + int(length)}
        if axis != 1:
            attributes["axis"] = axis
        graph.append(name, "slice", (source,), attributes=attributes)
        start += int(length)


def _pad(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    pads = call.attributes.get("pads")
    if pads is None:
        pads = graph.constant(call, 1).tolist()
    value = call.attributes.get("value")
    if value is None:
        constant = graph.optional(call, 2)
        value = 0.0 if constant is None else float(constant.reshape(()))
    if call.attributes.get("mode", "constant") != "constant" or call.input(3):
        raise call.unsupported("other than by a constant around all axes")
    if len(pads) != 8 or any(pads[k] for k in (0, 1, 4, 5)) or min(pads) < 0:
        raise call.unsupported("of other axes than height and width")
    around = (int(pads[2]), int(pads[3]), int(pads[6]), int(pads[7]))
    if value == -np.inf:
        graph.padded[call.outputs[0]] = (source, around)
    elif value == 0:
        graph.add(call, "pad", (source,), attributes={"pads": around})
    else:
        raise call.unsupported(f"by {value}")


def _resize(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    channels, *size = graph.shape(source)
    after = _resized(call, graph, (channels, *size))
    mode = call.attributes.get("mode", "nearest")
    place = call.attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        factor = after[0] // size[0]
        if [factor * length for length in size] != list(after):
            raise call.unsupported("to the nearest by other than one whole factor")
        nearest = call.attributes.get("nearest_mode", "round_prefer_floor")
        # By a whole factor the others all copy each value: centres are nearest to their own.
        shifts = place == "align_corners" or (place == "asymmetric" and nearest != "floor")
        if shifts and call.op != "Upsample":
            raise call.unsupported(f"to the nearest, {place} with {nearest}")
        graph.add(call, "upsample", (source,), attributes={"factor": factor})
    elif mode == "linear" and place in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if call.attributes.get("antialias", 0) or min(after) < 2:
            raise call.unsupported("linear with antialiasing, or to a single pixel")
        attributes = {
            "size": after,
            "source_size": tuple(size),
            "aligned": place == "align_corners",
        }
        graph.add(call, "resize", (source,), attributes=attributes)
    else:
        raise call.unsupported(f"{mode}, {place}")


def _resized(call: Call, graph: GraphBuilder, before: Sequence[int]) -> tuple[int, int]:
    """Height and width after a resize, from its scales or sizes."""
    scales = call.attributes.get("scales")
    if scales is None:
        scales = graph.optional(call, 1 if call.op == "Upsample" else 2)
    if scales is not None and len(scales) == 4:
        factors = [float(scale) for scale in scales]
        if factors[:2] != [1.0, 1.0]:
            raise call.unsupported("of the channels")
        return int(before[1] * factors[2]), int(before[2] * factors[3])
    sizes = graph.optional(call, 3)
    if sizes is None or len(sizes) != 4 or int(sizes[1]) != before[0]:
        raise call.unsupported("of other axes than height and width")
    return int(sizes[2]), int(sizes[3])


def _transpose(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    rank = len(graph.shape(source)) + 1
    order = tuple(int(axis) for axis in call.attributes.get("perm", range(rank)[::-1]))
    if order[0] != 0:
        raise call.unsupported("of the batch")
    graph.add(call, "transpose", (source,), attributes={"order": order})


def _reshape(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    before = (1, *graph.shape(source))
    wanted = call.attributes.get("shape")
    if wanted is None:
        wanted = graph.constant(call, 1).tolist()
    shape = [before[k] if size == 0 else int(size) for k, size in enumerate(wanted)]
    if -1 in shape:
        known = -int(np.prod(shape))
        shape[shape.index(-1)] = int(np.prod(before)) // max(known, 1)
    _reshaped(call, graph, source, shape)


def _flatten(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    if int(call.attributes.get("axis", 1)) != 1:
        raise call.unsupported("into other than (batch, features)")
    _reshaped(call, graph, source, [1, int(np.prod(graph.shape(source)))])


def _squeeze(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    shape = [1, *graph.shape(source)]
    axes = call.attributes.get("axes", graph.optional(call, 1))
    if axes is None:
        axes = [axis for axis, size in enumerate(shape) if size == 1]
    gone = {int(axis) % len(shape) for axis in axes}
    _reshaped(call, graph, source, [n for axis, n in enumerate(shape) if axis not in gone])


def _unsqueeze(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    shape = [1, *graph.shape(source)]
    axes = call.attributes.get("axes", graph.optional(call, 1))
    if axes is None:
        raise call.unsupported("without axes")
    rank = len(shape) + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):
        shape.insert(axis, 1)
    _reshaped(call, graph, source, shape)


def _reshaped(call: Call, graph: GraphBuilder, source: str, shape: Sequence[int]) -> None:
    if len(shape) < 2 or shape[0] != 1:
        raise call.unsupported(f"to {list(shape)}, which has no batch")
    graph.add(call, "reshape", (source,), attributes={"shape": tuple(shape[1:])})


def _depth_to_space(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    channels, height, width = graph.shape(source)
    block = int(call.attributes["blocksize"])
    made = channels // block**2
    deep_first = call.attributes.get("mode", "DCR") == "DCR"
    parts = (block, block, made) if deep_first else (made, block, block)
    order = (0, 3, 4, 1, 5, 2) if deep_first else (0, 1, 4, 2, 5, 3)
    apart = graph.step(call, "reshape", (source,), attributes={"shape": (*parts, height, width)})
    moved = graph.step(call, "transpose", (apart,), attributes={"order": order})
    shape = made, height * block, width * block
    graph.add(call, "reshape", (moved,), attributes={"shape": shape})


def _space_to_depth(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    channels, height, width = graph.shape(source)
    block = int(call.attributes["blocksize"])
    parts = channels, height // block, block, width // block, block
    apart = graph.step(call, "reshape", (source,), attributes={"shape": parts})
    moved = graph.step(call, "transpose", (apart,), attributes={"order": (0, 3, 5, 1, 2, 4)})
    shape = channels * block**2, height // block, width // block
    graph.add(call, "reshape", (moved,), attributes={"shape": shape})


def _gather(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    order = graph.constant(call, 1)
    channels = graph.shape(source)[0]
    if int(call.attributes.get("axis", 0)) != 1 or order.ndim != 1:
        raise call.unsupported("of other than channels")
    attributes = {"order": tuple(int(k) % channels for k in order)}
    graph.add(call, "gather", (source,), attributes=attributes)


def _softmax(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    axis = _axis(call, len(graph.shape(source)), -1)
    graph.add(call, "softmax", (source,), attributes={"axis": axis})


def _alias(call: Call, graph: GraphBuilder) -> None:
    graph.alias(call, graph.tensor(call))


def _cast(call: Call, graph: GraphBuilder) -> None:
    if int(call.attributes["to"]) != 1:
        raise call.unsupported("to other than float32")
    graph.alias(call, graph.tensor(call))


def _weights(call: Call, graph: GraphBuilder) -> tuple[Array, Array | None]:
    bias = graph.optional(call, 2)
    return _float(graph.constant(call, 1)), None if bias is None else _float(bias)


def _float(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32)


def _axis(call: Call, rank: int, usual: int = 0) -> int:
    """An axis of a tensor of so many axes without the batch."""
    axis = int(call.attributes.get("axis", usual)) % (rank + 1)
    if axis == 0:
        raise call.unsupported("along the batch")
    return axis


def _window(call: Call, shape: Sequence[int], before: Sequence[int]) -> dict[str, Any]:
    """Kernel, stride and pads of a pooling, with the padding done before it."""
    if len(shape) != 3:
        raise call.unsupported(f"of a tensor of shape {tuple(shape)}")
    kernel = as_pair(call.attributes["kernel_shape"])
    stride = as_pair(call.attributes.get("strides", (1, 1)))
    own = _pads(call, shape, kernel, stride)
    top, left, bottom, right = (a + b for a, b in zip(own, before, strict=True))
    if call.attributes.get("ceil_mode", 0):
        if call.attributes.get("count_include_pad", 0):
            raise call.unsupported("with ceil_mode and padding that counts")
        extra = [
            -(length + around - span) % step
            for length, around, span, step in zip(
                shape[1:], (top + bottom, left + right), kernel, stride, strict=True
            )
        ]
        # A window must begin within the image or the padding before it.
        bottom += extra[0] if extra[0] < kernel[0] - bottom else 0
        right += extra[1] if extra[1] < kernel[1] - right else 0
    return {"kernel": kernel, "stride": stride, "pads": (top, left, bottom, right)}


def _pads(
    call: Call, shape: Sequence[int], spans: Sequence[int], stride: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right)."""
    automatic = call.attributes.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        top, left, bottom, right = call.attributes.get("pads", _NO_PADS)
        return int(top), int(left), int(bottom), int(right)
    totals = [
        max((-(-size // step) - 1) * step + span - size, 0)
        for size, span, step in zip(shape[1:], spans, stride, strict=True)
    ]
    halves = [total // 2 for total in totals]
    rests = [total - half for total, half in zip(totals, halves, strict=True)]
    if automatic == "SAME_LOWER":
        halves, rests = rests, halves
    return halves[0], halves[1], rests[0], rests[1]


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        **{op: _function for op in FUNCTIONS if op not in ("Clip", "Pow", *_BINARY)},
        **dict.fromkeys(_BINARY, _binary),
        "AveragePool": _average_pool,
        "BatchNormalization": _batch_norm,
        "Cast": _cast,
        "Clip": _clip,
        "Concat": _concat,
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "DepthToSpace": _depth_to_space,
        "Dropout": _alias,
        "Flatten": _flatten,
        "Gather": _gather,
        "Gelu": _gelu,
        "Gemm": _gemm,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": _global_max,
        "Identity": _alias,
        "MatMul": _matmul,
        "MaxPool": _max_pool,
        "PRelu": _prelu,
        "Pad": _pad,
        "Pow": _pow,
        "ReduceMean": _reduce_mean,
        "Reshape": _reshape,
        "Resize": _resize,
        "Slice": _slice,
        "Softmax": _softmax,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _squeeze,
        "Sum": _sum,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
        "Upsample": _resize,
    }
)
