"""Readers of ONNX calls: pooling."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from search.network.importers.calls import Call, GraphBuilder, Reader, as_pair
from search.network.importers.onnx_settings import NO_PADS, pads_of


def _max_pool(call: Call, graph: GraphBuilder) -> None:
    name = call.input(0)
    before = graph.padded.get(name)
    source = before[0] if before else graph.tensor(call)
    attributes = _window(call, graph.shape(source), before[1] if before else NO_PADS)
    if as_pair(call.attributes.get("dilations", (1, 1))) != (1, 1):
        raise call.unsupported("dilated")
    if len(call.outputs) > 1:
        raise call.unsupported("with indices")
    graph.add(call, "max_pool", (source,), attributes=attributes)


def _average_pool(call: Call, graph: GraphBuilder) -> None:
    source = graph.tensor(call)
    attributes = _window(call, graph.shape(source), NO_PADS)
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
    return {"kernel": size, "stride": size, "pads": NO_PADS, "counts_padding": False}


def _window(call: Call, shape: Sequence[int], before: Sequence[int]) -> dict[str, Any]:
    """Kernel, stride and pads of a pooling, with the padding done before it."""
    if len(shape) != 3:
        raise call.unsupported(f"of a tensor of shape {tuple(shape)}")
    kernel = as_pair(call.attributes["kernel_shape"])
    stride = as_pair(call.attributes.get("strides", (1, 1)))
    own = pads_of(call, shape, kernel, stride)
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


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "AveragePool": _average_pool,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": _global_max,
        "MaxPool": _max_pool,
        "ReduceMean": _reduce_mean,
    }
)
