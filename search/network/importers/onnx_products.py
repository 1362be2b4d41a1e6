"""Readers of ONNX calls: convolutions and products of matrices."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from search.network.importers.calls import Array, Call, GraphBuilder, Reader, as_pair
from search.network.importers.onnx_settings import NO_PADS, as_float, pads_of
from search.network.operators.convolution import by_other_channels


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
        "pads": pads_of(call, graph.shape(source), spans, stride),
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
        "pads": tuple(call.attributes.get("pads", NO_PADS)),
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
    weight = as_float(graph.constant(call, 1))
    bias = graph.optional(call, 2)
    source = graph.tensor(call)
    if len(graph.shape(source)) != 1 or call.attributes.get("transA", 0):
        raise call.unsupported("a product of matrices other than (batch, features)")
    if not call.attributes.get("transB", 0):
        weight = weight.T
    weight = weight * np.float32(call.attributes.get("alpha", 1.0))
    if bias is not None:
        gain = np.float32(call.attributes.get("beta", 1.0))
        bias = np.broadcast_to(as_float(bias).reshape(-1) * gain, (len(weight),)).copy()
    _fully_connected(call, graph, source, weight, bias)


def _matmul(call: Call, graph: GraphBuilder) -> None:
    if graph.is_tensor(call, 0) and graph.is_tensor(call, 1):
        left, right = graph.tensor(call, 0), graph.tensor(call, 1)
        if len(graph.shape(left)) < 2 or len(graph.shape(left)) != len(graph.shape(right)):
            raise call.unsupported("of tensors of different ranks")
        columns = graph.shape(right)[-1]
        attributes = {"macs": math.prod(graph.shape(left)) * columns}
        graph.add(call, "matrix_product", (left, right), attributes=attributes)
        return
    weight = as_float(graph.constant(call, 1))
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
        attributes={"stride": (1, 1), "pads": NO_PADS, "groups": 1},
        weight=np.ascontiguousarray(weight[:, :, None, None]),
        bias=None if bias is None else np.ascontiguousarray(bias),
    )
    graph.add(call, "reshape", (made,), attributes={"shape": (len(weight),)})


def _weights(call: Call, graph: GraphBuilder) -> tuple[Array, Array | None]:
    bias = graph.optional(call, 2)
    return as_float(graph.constant(call, 1)), None if bias is None else as_float(bias)


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        "Conv": _conv,
        "ConvTranspose": _conv_transpose,
        "Gemm": _gemm,
        "MatMul": _matmul,
    }
)
