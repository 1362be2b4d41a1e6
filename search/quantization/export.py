"""Writing heads and tails as ONNX models.

    head: "image" (1, 3, H, W) uint8 -> uint8 codes of the cut's tensors (QDQ, runs in int8)
    tail: float32 tensors of the cut, (N, C, H, W) each -> the detector's maps, float32

Operators that only move data (max pooling, upsampling, slices, concatenation on one grid) work on
the codes themselves; the others stand between DequantizeLinear and QuantizeLinear, which ONNX
Runtime fuses into integer kernels. Tails keep their weights in one file beside them, shared by all
tails.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from common.bundle.packed_weights import Packable, pack_weights
from common.errors import ModelError
from search.network.activations import Activation
from search.network.cuts import Cut
from search.network.graph import IMAGE, Graph, Node
from search.network.onnx_builder import Location, OnnxBuilder
from search.network.operators.convolution import write_sums
from search.network.operators.registry import operator_of
from search.network.operators.tables import activation_table, write_table
from search.quantization.network import QuantizedGraph

WEIGHTS_FILE = "weights.bin"

_ALIGNMENT = 64


@dataclass(frozen=True, eq=False)
class SharedWeights:
    """Floating-point weights in one block.

    Attributes:
        file: Name of the file that tails expect beside them.
        data: What it holds.
        locations: Place of each array, by "conv_8.weight" and the like.
    """

    file: str
    data: bytes
    locations: Mapping[str, Location]

    @classmethod
    def of(cls, nodes: Iterable[Node], file: str = WEIGHTS_FILE) -> "SharedWeights":
        """Lay out the weights of every convolution."""
        block = bytearray()
        locations = {}
        for node in map(_with_plain_sums, nodes):
            for suffix, array in (("weight", node.weight), ("bias", node.bias)):
                if array is not None:
                    block.extend(bytes(-len(block) % _ALIGNMENT))
                    locations[f"{node.name}.{suffix}"] = Location(file, len(block))
                    block.extend(np.ascontiguousarray(array, "<f4").tobytes())
        return cls(file, bytes(block), locations)


def write_weights(folder: Path, weights: SharedWeights) -> Path:
    """Put weights where the tails in `folder` look for them."""
    path = folder / weights.file
    path.write_bytes(weights.data)
    return path


def tail_model(graph: Graph, cut: Cut, weights: SharedWeights) -> bytes:
    """The tail of a cut, or the rest of an edge-only one, in floating point.

    It takes batches of any size, but for operators that are taken over from a file as they are:
    these may be written for one image. Every output has a batch axis, also one of a length that
    depends on the image.
    """
    builder = OnnxBuilder(opset=graph.opset, locations=weights.locations)
    for node in cut.behind:
        _float_node(builder, node)
    batch = "N" if all(operator_of(node).computes_in_torch for node in cut.behind) else 1
    inputs = [_value(name, TensorProto.FLOAT, graph[name], batch) for name in cut.codes]
    outputs = []
    for name in graph.outputs:
        result = builder.add("Identity", (name,), f"{name}.out") if name in cut.codes else name
        if not graph[name].batched:
            axis = builder.constant(f"{name}.axis", np.zeros(1, np.int64))
            result = builder.add("Unsqueeze", (name, axis), f"{name}.of_one")
        outputs.append(_output(result, graph[name], batch))
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
        {f"{name}.weight": Packable(conv.weight, conv.bits) for name, conv in convs.items()}
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
    builder = OnnxBuilder(opset=network.graph.opset, outside_weights=outside_weights)
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
            linear = write_sums(builder, network, producer, f"{producer.name}.linear")
            pooled = f"{node.name}.linear"
            operator_of(node).write(builder, node, (linear,), pooled)
            write_table(builder, network, producer, pooled, node.name)
        else:
            operator_of(node).write_codes(builder, network, node)
    image = [_value(IMAGE, TensorProto.UINT8, network.graph[IMAGE], 1)]
    outputs = []
    for name in fetch:
        outputs.append(_value(f"{name}.codes", TensorProto.UINT8, network.graph[name], 1))
        builder.add("Identity", (name,), f"{name}.codes")
    return builder.model("head", image, outputs)


def _pools_first(
    network: QuantizedGraph, node: Node, readers: list[Node], fetch: Sequence[str]
) -> bool:
    """Whether to pool before the activation, so that it works on fewer elements.

    The two commute if the activation's table never falls.
    """
    return (
        node.op == "conv"
        and node.name in network.before
        and [reader.op for reader in readers] == ["max_pool"]
        and node.name not in fetch
        and bool((np.diff(activation_table(network, node).astype(np.int16), axis=-1) >= 0).all())
    )


def _float_node(builder: OnnxBuilder, node: Node) -> None:
    linear = node.name if node.activation is None else f"{node.name}.linear"
    node = _with_plain_sums(node)
    made = operator_of(node).write(builder, node, node.inputs, linear)
    if node.activation is not None:
        _write_activation(builder, node, node.activation, made)


def _with_plain_sums(node: Node) -> Node:
    """A node with gains, its sums without them: g f(x) takes one product, g f(g x / g) two."""
    if node.gains is None or node.weight is None:
        return node
    weight = node.weight / node.gains.reshape(-1, *(1,) * (node.weight.ndim - 1))
    bias = None if node.bias is None else node.bias / node.gains
    return replace(node, weight=weight, bias=bias)


def _write_activation(
    builder: OnnxBuilder, node: Node, activation: Activation, linear: str
) -> None:
    if node.gains is None:
        activation.write(builder, linear, node.name)
        return
    activation.write(builder, linear, f"{node.name}.activated")
    gains = builder.constant(f"{node.name}.gains", node.gains.reshape(-1, 1, 1))
    builder.add("Mul", (f"{node.name}.activated", gains), node.name)


def _output(name: str, node: Node, batch: int | str) -> Any:
    """An output of a tail, its shape left open where it is not known."""
    if node.batched:
        return _value(name, TensorProto.FLOAT, node, batch)
    return helper.make_empty_tensor_value_info(name)


def _value(name: str, kind: int, node: Node, batch: int | str) -> Any:
    return helper.make_tensor_value_info(name, kind, [batch, *node.shape])
