"""Writing heads and tails as ONNX models.

    head: "image" (1, 3, H, W) uint8 -> uint8 codes of the cut's tensors (QDQ, runs in int8)
    tail: float32 tensors of the cut, (N, C, H, W) each -> the detector's maps, float32

Operators that only move data (max pooling, upsampling, slices, concatenation on one grid) work on
the codes themselves; the others stand between DequantizeLinear and QuantizeLinear, which ONNX
Runtime fuses into integer kernels. Tails keep their weights in one file beside them, shared by all
tails.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common.bundle.packed_weights import Packable, pack_weights
from common.errors import ModelError
from search.network.cuts import Cut
from search.network.graph import IMAGE, Graph, Node
from search.quantization.grids import QuantParams
from search.quantization.network import QuantizedGraph

OPSET = 19
IR_VERSION = 10
WEIGHTS_FILE = "weights.bin"
OUTSIDE = "packed"
"""Location that a head gives for external weights; the caller supplies them when it is loaded."""

_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """Floating-point weights in one block, found by tensor name; `file` is where tails look."""

    file: str
    data: bytes
    offsets: Mapping[str, int]

    @classmethod
    def of(cls, nodes: Iterable[Node], file: str = WEIGHTS_FILE) -> "SharedWeights":
        """Lay out the weights of every convolution."""
        block = bytearray()
        offsets = {}
        for node in nodes:
            for suffix, array in (("weight", node.weight), ("bias", node.bias)):
                if array is not None:
                    block.extend(bytes(-len(block) % _ALIGNMENT))
                    offsets[f"{node.name}.{suffix}"] = len(block)
                    block.extend(np.ascontiguousarray(array, "<f4").tobytes())
        return cls(file, bytes(block), offsets)


def write_weights(folder: Path, weights: SharedWeights) -> Path:
    """Put weights where the tails in `folder` look for them."""
    path = folder / weights.file
    path.write_bytes(weights.data)
    return path


@dataclass
class _Builder:
    outside_weights: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        if name not in self.known:
            self.known.add(name)
            self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, name: str, array: NDArray[np.int8]) -> str:
        if not self.outside_weights:
            return self.constant(name, array)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=TensorProto.INT8,
            data_location=TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value=OUTSIDE)
        self.initializers.append(tensor)
        return name

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def quantize(
        self, source: str, grid: QuantParams, output: str, *, saturates: bool = True
    ) -> str:
        """Codes of values; where values may lie above a grid of few bits, they are clipped."""
        if not saturates or grid.bits == 8:
            return self.add("QuantizeLinear", (source, *self._grid(grid)), output)
        wide = self.add("QuantizeLinear", (source, *self._grid(grid)), f"{output}.wide")
        top = self.constant(f"top_{grid.bits}", np.array(grid.top, np.uint8))
        return self.add("Clip", (wide, "", top), output)

    def dequantize(self, source: str, grid: QuantParams, output: str) -> str:
        return self.add("DequantizeLinear", (source, *self._grid(grid)), output)

    def _grid(self, grid: QuantParams) -> tuple[str, str]:
        key = f"grid_{np.float32(grid.scale).view(np.uint32):08x}_{grid.zero_point}"
        scale = self.constant(f"{key}.scale", np.array(grid.scale, np.float32))
        return scale, self.constant(f"{key}.zero", np.array(grid.zero_point, np.uint8))

    def model(self, name: str, inputs: list[Any], outputs: list[Any]) -> bytes:
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        proto = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="splitpoint",
        )
        data: bytes = proto.SerializeToString(deterministic=True)
        return data


def tail_model(graph: Graph, cut: Cut, weights: SharedWeights) -> bytes:
    """The tail of a cut in floating point, with any batch size."""
    builder = _Builder()
    for node in cut.tail:
        _float_node(builder, node, weights)
    inputs = [_value(name, TensorProto.FLOAT, graph[name], "N") for name in cut.tensors]
    outputs = []
    for name in graph.outputs:
        result = builder.add("Identity", (name,), f"{name}.out") if name in cut.tensors else name
        outputs.append(_value(result, TensorProto.FLOAT, graph[name], "N"))
    return builder.model(f"tail after {cut.name}", inputs, outputs)


def packed_weights(network: QuantizedGraph, fetch: Sequence[str]) -> bytes | None:
    """The weights of a head in a file of their own; None if all have 8 bits."""
    convs = {
        node.name: network.convs[node.name]
        for node in network.graph.ancestors(fetch)
        if node.name in network.convs
    }
    if all(conv.bits == 8 for conv in convs.values()):
        return None
    return pack_weights(
        {_weight_name(name): Packable(conv.weight, conv.bits) for name, conv in convs.items()}
    )


def head_model(
    network: QuantizedGraph, fetch: Sequence[str], *, outside_weights: bool = False
) -> bytes:
    """The integer prefix of the network that makes the codes of the tensors `fetch`.

    Args:
        network: The quantized network.
        fetch: The tensors of a cut.
        outside_weights: Whether the weights are left to `packed_weights`.

    Raises:
        ModelError: If a node of the prefix has no integer form.
    """
    builder = _Builder(outside_weights=outside_weights)
    prefix = network.graph.ancestors(fetch)
    readers: dict[str, list[Node]] = {node.name: [] for node in prefix}
    for node in prefix:
        for name in set(node.inputs):
            readers[name].append(node)
    for node in prefix:
        if node.name in network.refused:
            raise ModelError(network.refused[node.name])
        if node.op == "input":
            continue
        if _pools_first(network, node, readers[node.name], fetch):
            continue
        producer = network.graph[node.inputs[0]]
        if node.op == "max_pool" and _pools_first(network, producer, readers[producer.name], fetch):
            linear = _conv_codes(builder, network, producer)
            pooled = _move(builder, node, linear, f"{node.name}.linear")
            _activate(builder, network, producer, pooled, node.name)
        else:
            _integer_node(builder, network, node)
    image = [_value(IMAGE, TensorProto.UINT8, network.graph[IMAGE], 1)]
    outputs = []
    for name in fetch:
        outputs.append(_value(f"{name}.codes", TensorProto.UINT8, network.graph[name], 1))
        builder.add("Identity", (name,), f"{name}.codes")
    return builder.model("head", image, outputs)


def _pools_first(
    network: QuantizedGraph, node: Node, readers: list[Node], fetch: Sequence[str]
) -> bool:
    """Whether to pool before the activation: it commutes, and then works on fewer elements."""
    return (
        node.op == "conv"
        and node.name in network.before
        and node.activation is not None
        and node.activation.is_monotone
        and [reader.op for reader in readers] == ["max_pool"]
        and node.name not in fetch
    )


def _float_node(builder: _Builder, node: Node, weights: SharedWeights) -> None:
    linear = node.name if node.activation is None else f"{node.name}.linear"
    if node.op == "conv":
        names = [
            _external(builder, weights, f"{node.name}.{suffix}", array)
            for suffix, array in (("weight", node.weight), ("bias", node.bias))
            if array is not None
        ]
        builder.add("Conv", (*node.inputs, *names), linear, **_conv_attributes(node))
    elif node.op == "activation":
        linear = node.inputs[0]
    elif node.op in ("concat", "add"):
        _combine(builder, node, node.inputs, linear)
    else:
        _move(builder, node, node.inputs[0], linear)
    if node.activation is not None:
        _float_activation(builder, node, linear, node.name)


def _float_activation(builder: _Builder, node: Node, source: str, output: str) -> None:
    activation = node.activation
    if activation is None:
        raise ModelError(f"{node.name}: no activation")
    if activation.kind == "leaky_relu":
        builder.add("LeakyRelu", (source,), output, alpha=activation.slope)
    elif activation.kind == "relu":
        builder.add("Relu", (source,), output)
    elif activation.kind == "sigmoid":
        builder.add("Sigmoid", (source,), output)
    else:
        gate = builder.add("Sigmoid", (source,), f"{output}.gate")
        builder.add("Mul", (source, gate), output)


def _integer_node(builder: _Builder, network: QuantizedGraph, node: Node) -> None:
    grid = network.grids[node.name]
    if node.op == "conv":
        if node.name in network.before:
            linear = _conv_codes(builder, network, node)
            _activate(builder, network, node, linear, node.name)
        else:
            _conv_codes(builder, network, node, output=node.name)
        return
    grids = [network.grids[name] for name in node.inputs]
    if node.op in ("max_pool", "upsample", "slice"):
        _move(builder, node, node.inputs[0], node.name)
    elif node.op == "concat" and all(g == grid for g in grids):
        _combine(builder, node, node.inputs, node.name)
    else:
        real = [
            builder.dequantize(name, g, f"{node.name}.in{k}")
            for k, (name, g) in enumerate(zip(node.inputs, grids, strict=True))
        ]
        _combine(builder, node, real, f"{node.name}.real")
        builder.quantize(f"{node.name}.real", grid, node.name)


def _conv_codes(
    builder: _Builder, network: QuantizedGraph, node: Node, output: str | None = None
) -> str:
    """Input codes -> convolution -> codes on the grid of its sums."""
    conv = network.convs[node.name]
    source = network.grids[node.inputs[0]]
    target = network.before.get(node.name, network.grids[node.name])
    real = builder.dequantize(node.inputs[0], source, f"{node.name}.in")
    weight = builder.add(
        "DequantizeLinear",
        (
            builder.weight(_weight_name(node.name), conv.weight),
            builder.constant(f"{node.name}.weight.scale", conv.scale),
            builder.constant(f"{node.name}.weight.zero", np.zeros(len(conv.scale), np.int8)),
        ),
        f"{node.name}.weight.real",
        axis=0,
    )
    bias_scale = np.float32(source.scale) * conv.scale
    bias = builder.add(
        "DequantizeLinear",
        (
            builder.constant(f"{node.name}.bias", conv.bias),
            builder.constant(f"{node.name}.bias.scale", bias_scale),
            builder.constant(f"{node.name}.bias.zero", np.zeros(len(conv.scale), np.int32)),
        ),
        f"{node.name}.bias.real",
        axis=0,
    )
    sums = builder.add("Conv", (real, weight, bias), f"{node.name}.sums", **_conv_attributes(node))
    return builder.quantize(sums, target, output or f"{node.name}.linear")


def _activate(
    builder: _Builder, network: QuantizedGraph, node: Node, codes: str, output: str
) -> None:
    real = builder.dequantize(codes, network.before[node.name], f"{output}.before")
    _float_activation(builder, node, real, f"{output}.after")
    grid = network.grids[node.name]
    highest = float(network.before[node.name].dequantize(np.array(255, np.uint8)))
    beyond = highest / grid.scale + grid.zero_point > grid.top + 0.5
    builder.quantize(f"{output}.after", grid, output, saturates=beyond)


def _weight_name(conv: str) -> str:
    return f"{conv}.weight"


def _combine(builder: _Builder, node: Node, inputs: Sequence[str], output: str) -> None:
    if node.op == "concat":
        builder.add("Concat", inputs, output, axis=1)
    elif node.op == "add":
        builder.add("Add", inputs, output)
    else:
        raise ModelError(f"{node.name}: operator {node.op} has no ONNX form")


def _move(builder: _Builder, node: Node, source: str, output: str) -> str:
    """Add an operator that only moves data, the same for codes as for values."""
    attributes = node.attributes
    if node.op == "max_pool":
        return builder.add(
            "MaxPool",
            (source,),
            output,
            kernel_shape=attributes["kernel"],
            strides=attributes["stride"],
            pads=attributes["pads"],
        )
    if node.op == "upsample":
        factor = float(attributes["factor"])
        scales = builder.constant(f"{node.name}.scales", np.array([1, 1, factor, factor], "f4"))
        return builder.add(
            "Resize",
            (source, "", scales),
            output,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    if node.op == "slice":
        bounds = [
            builder.constant(f"{node.name}.{key}", np.array([value], np.int64))
            for key, value in (
                ("start", attributes["start"]),
                ("stop", attributes["stop"]),
                ("axis", 1),
            )
        ]
        return builder.add("Slice", (source, *bounds), output)
    raise ModelError(f"{node.name}: operator {node.op} has no ONNX form")


def _conv_attributes(node: Node) -> dict[str, Any]:
    attributes = node.attributes
    return {
        "strides": attributes["stride"],
        "pads": attributes["pads"],
        "group": attributes["groups"],
    }


def _external(
    builder: _Builder, weights: SharedWeights, name: str, array: NDArray[np.float32]
) -> str:
    tensor = TensorProto(
        name=name,
        dims=array.shape,
        data_type=TensorProto.FLOAT,
        data_location=TensorProto.EXTERNAL,
    )
    entries = {
        "location": weights.file,
        "offset": str(weights.offsets[name]),
        "length": str(array.nbytes),
    }
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    builder.initializers.append(tensor)
    return name


def _value(name: str, kind: int, node: Node, batch: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, [batch, *node.shape])
