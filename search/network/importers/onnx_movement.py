"""Readers of ONNX calls: what moves values: joins, slices, padding, sizes and shapes."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np

from search.network.importers.calls import Call, GraphBuilder, Reader
from search.network.importers.onnx_settings import axis_of


def _concat(call: Call, graph: GraphBuilder) -> None:
    sources = [graph.tensor(call, index) for index in range(len(call.inputs))]
    axis = axis_of(call, len(graph.shape(sources[0])))
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
    axis = axis_of(call, len(graph.shape(source)))
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
    shape = graph.shape(source)
    axis = axis_of(call, len(shape), 0)
    if order.ndim == 0:
        _taken(call, graph, source, axis, int(order) % shape[axis - 1])
        return
    channels = shape[0]
    if axis != 1 or order.ndim != 1:
        raise call.unsupported("of several along other axes than the channels")
    attributes = {"order": tuple(int(k) % channels for k in order)}
    graph.add(call, "gather", (source,), attributes=attributes)


def _taken(call: Call, graph: GraphBuilder, source: str, axis: int, index: int) -> None:
    """One index of an axis, which is dropped."""
    shape = graph.shape(source)
    if len(shape) == 1:
        raise call.unsupported("of a single value")
    one = _sliced(call, graph, source, axis, index, index + 1, 1)
    rest = (*shape[: axis - 1], *shape[axis:])
    graph.add(call, "reshape", (one,), attributes={"shape": rest})


def _alias(call: Call, graph: GraphBuilder) -> None:
    graph.alias(call, graph.tensor(call))


def _cast(call: Call, graph: GraphBuilder) -> None:
    if int(call.attributes["to"]) != 1:
        raise call.unsupported("to other than float32")
    graph.alias(call, graph.tensor(call))


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "Cast": _cast,
        "Concat": _concat,
        "DepthToSpace": _depth_to_space,
        "Dropout": _alias,
        "Flatten": _flatten,
        "Gather": _gather,
        "Identity": _alias,
        "Pad": _pad,
        "Reshape": _reshape,
        "Resize": _resize,
        "Slice": _slice,
        "SpaceToDepth": _space_to_depth,
        "Split": _split,
        "Squeeze": _squeeze,
        "Transpose": _transpose,
        "Unsqueeze": _unsqueeze,
        "Upsample": _resize,
    }
)
