"""Graph optimisation: the same function with fewer nodes.

Element-wise functions of one tensor become one activation, however many nodes they have; a scaling
by channel folds into the convolution before it, its gain alone into those behind it, zeros around
an image into the convolution behind them, and an activation into the operator that makes its
argument. Only a node whose output has no other reader can take another in. Of routes, joins of
joins become one, and a slice that takes one part of a join reads that part.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.errors import ModelError
from search.network.activations import IDENTITY, Activation, combined, simplified
from search.network.graph import Graph, Node
from search.network.operators.convolution import by_input
from search.network.operators.registry import operator_of

_TWO_TENSORS = {
    "add": "Add",
    "divide": "Div",
    "maximum": "Max",
    "minimum": "Min",
    "multiply": "Mul",
    "subtract": "Sub",
}


def optimise(graph: Graph) -> Graph:
    """Fold, fuse, drop what no output needs, and name nodes by operator and rank."""
    graph = _alive(_fuse_functions(graph))
    graph = _merge_into_producer(graph, "scale", _folds_scale, _fold_scale)
    graph = _fold_gains(graph)
    graph = _alive(_fold_padding(_fuse_orders(graph)))
    graph = _merge_into_producer(graph, "activation", _takes_activation, _fuse_activation)
    graph = _fuse_routes(graph)
    return _alive(graph).renamed()


def _alive(graph: Graph) -> Graph:
    """Drop nodes that no output needs."""
    image = graph.nodes[0]
    needed = graph.ancestors(graph.outputs)
    return replace(graph, nodes=needed if image in needed else (image, *needed))


def _fuse_functions(graph: Graph) -> Graph:
    """Let each element-wise function of one tensor be one activation of that tensor."""
    made: dict[str, Node] = {}
    for node in graph.nodes:
        # An argument that others read, too, is computed anyhow: it is where the function begins.
        sources = [
            (made[name].inputs[0], _function(made[name]))
            if _is_inner_function(graph, made[name])
            else (name, IDENTITY)
            for name in node.inputs
        ]
        if node.op == "activation" and node.activation is not None:
            ((source, inner),) = sources
            whole = simplified(inner.then(node.activation))
            node = replace(node, inputs=(source,), activation=whole)
        elif node.op in _TWO_TENSORS and node.activation is None:
            node = _of_one_tensor(made, node, sources) or node
        made[node.name] = node
    return replace(graph, nodes=tuple(made.values()))


def _function(node: Node) -> Activation:
    return node.activation or IDENTITY


def _is_inner_function(graph: Graph, node: Node) -> bool:
    alone = len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs
    return node.op == "activation" and alone


def _of_one_tensor(
    made: dict[str, Node], node: Node, sources: list[tuple[str, Activation]]
) -> Node | None:
    """The activation that an operator of two tensors is, if both are functions of one."""
    (left, first), (right, second) = sources
    if left != right or made[left].shape != node.shape:
        return None
    whole = simplified(combined(_TWO_TENSORS[node.op], first, second))
    return replace(node, op="activation", inputs=(left,), activation=whole)


def _folds_scale(producer: Node, _scale: Node) -> bool:
    return producer.op in ("conv", "scale") and producer.activation is None


def _fold_scale(producer: Node, scale: Node) -> Node:
    """Y = gain (W x + b) + offset; done in float64, so the only rounding is the last."""
    if producer.weight is None or scale.weight is None or scale.bias is None:
        raise ModelError(f"{scale.name}: a scale without its constants")
    gain = scale.weight.astype(np.float64)
    bias = 0.0 if producer.bias is None else producer.bias.astype(np.float64)
    by_channel = gain.reshape(-1, *(1,) * (producer.weight.ndim - 1))
    return replace(
        producer,
        weight=(producer.weight * by_channel).astype(np.float32),
        bias=(bias * gain + scale.bias).astype(np.float32),
    )


def _fold_gains(graph: Graph) -> Graph:
    """Let convolutions take the gain of a scaling in front of them: it commutes with padding."""
    made = dict(graph.by_name)
    for node in graph.nodes:
        if not _is_gain(node) or node.name in graph.outputs:
            continue
        readers = [made[name] for name in graph.consumers[node.name]]
        if all(reader.op == "conv" for reader in readers):
            made |= {reader.name: _with_gain(reader, node) for reader in readers}
            del made[node.name]
    return replace(graph, nodes=tuple(made.values()))


def _is_gain(node: Node) -> bool:
    zero = node.bias is not None and not node.bias.any()
    return node.op == "scale" and zero and node.activation is None


def _with_gain(conv: Node, gain: Node) -> Node:
    if conv.weight is None or gain.weight is None:
        raise ModelError(f"{conv.name}: a convolution or scaling without weights")
    groups = conv.attributes["groups"]
    weight = conv.weight.astype(np.float64)
    grouped = by_input(weight, groups)
    grouped *= gain.weight.astype(np.float64).reshape(groups, 1, -1, 1, 1)
    return replace(conv, inputs=gain.inputs, weight=weight.astype(np.float32))


def _fuse_orders(graph: Graph) -> Graph:
    """Let one transposition of another be one, or none."""
    made: dict[str, Node] = {}
    direct: dict[str, str] = {}
    for node in graph.nodes:
        inputs = tuple(direct.get(name, name) for name in node.inputs)
        node = replace(node, inputs=inputs)
        if node.op == "transpose" and made[inputs[0]].op == "transpose":
            inner = made[inputs[0]]
            first, second = inner.attributes["order"], node.attributes["order"]
            order = tuple(first[axis] for axis in second)
            if order == tuple(range(len(order))) and node.name not in graph.outputs:
                direct[node.name] = inner.inputs[0]
                continue
            node = replace(node, inputs=inner.inputs, attributes={"order": order})
        made[node.name] = node
    return replace(graph, nodes=tuple(made.values()))


def _fold_padding(graph: Graph) -> Graph:
    """Let convolutions pad by themselves."""
    by_name = dict(graph.by_name)
    for node in graph.nodes:
        if node.op != "conv" or by_name[node.inputs[0]].op != "pad":
            continue
        pad = by_name[node.inputs[0]]
        own, before = node.attributes["pads"], pad.attributes["pads"]
        pads = tuple(a + b for a, b in zip(own, before, strict=True))
        attributes = {**node.attributes, "pads": pads}
        by_name[node.name] = replace(node, inputs=pad.inputs, attributes=attributes)
    return replace(graph, nodes=tuple(by_name.values()))


def _takes_activation(producer: Node, _activation: Node) -> bool:
    if producer.op == "input" or producer.activation is not None:
        return False
    return operator_of(producer).takes_activation


def _fuse_activation(producer: Node, activation: Node) -> Node:
    return replace(producer, activation=activation.activation)


def _fuse_routes(graph: Graph) -> Graph:
    """Read through joins: what is left without readers is dropped by `optimise`."""
    direct: dict[str, str] = {}
    made: dict[str, Node] = {}
    for node in graph.nodes:
        inputs = tuple(direct.get(name, name) for name in node.inputs)
        if _joins_channels(node):
            parts = (made[name] for name in inputs)
            inputs = tuple(
                name
                for part in parts
                for name in (part.inputs if _is_inner(graph, part) else (part.name,))
            )
        elif _takes_channels(node) and _joins_channels(made[inputs[0]]):
            part = _part(made, made[inputs[0]], node)
            if part is not None and node.name not in graph.outputs:
                direct[node.name] = part
                continue
        made[node.name] = replace(node, inputs=inputs)
    return replace(graph, nodes=tuple(made.values()))


def _joins_channels(node: Node) -> bool:
    return node.op == "concat" and node.attributes.get("axis", 1) == 1 and node.activation is None


def _takes_channels(node: Node) -> bool:
    attributes = node.attributes
    return node.op == "slice" and attributes.get("axis", 1) == attributes.get("step", 1) == 1


def _is_inner(graph: Graph, node: Node) -> bool:
    """Whether a node is a join that only another one reads."""
    alone = len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs
    return _joins_channels(node) and alone


def _part(made: dict[str, Node], join: Node, cut: Node) -> str | None:
    """The input of a join that a slice takes as it is."""
    start = 0
    for name in join.inputs:
        stop = start + made[name].shape[0]
        if (start, stop) == (cut.attributes["start"], cut.attributes["stop"]):
            return name
        start = stop
    return None


def _merge_into_producer(
    graph: Graph,
    op: str,
    may_merge: Callable[[Node, Node], bool],
    merge: Callable[[Node, Node], Node],
) -> Graph:
    """Merge every `op` node into the node that makes its input, where that is allowed.

    The merged node takes the name of the one merged in, so that later readers need no change.
    """
    merged: dict[str, Node] = {}
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.op != op:
            continue
        producer = merged.get(node.inputs[0], graph[node.inputs[0]])
        mergeable = (
            may_merge(producer, node)
            and len(graph.consumers[node.inputs[0]]) == 1
            and node.inputs[0] not in graph.outputs
        )
        if mergeable:
            absorbed.add(node.inputs[0])
            merged[node.name] = replace(merge(producer, node), name=node.name)
    nodes = tuple(merged.get(n.name, n) for n in graph.nodes if n.name not in absorbed)
    return replace(graph, nodes=nodes)
