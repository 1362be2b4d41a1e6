"""Graph optimisation: the same function with fewer nodes.

Batch normalisation folds into the convolution before it, an activation fuses into its convolution,
and a ReLU into the addition of a residual, whose grid then simply ends at zero. Only a node whose
output has no other reader can take them in. Of routes, joins of joins become one, and a slice that
takes one part of a join reads that part.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.errors import ModelError
from search.network.graph import Graph, Node
from search.network.operators.registry import operator_of


def optimise(graph: Graph) -> Graph:
    """Fold, fuse, drop what no output needs, and name nodes by operator and rank.

    Raises:
        ModelError: If a batch normalisation stands without a convolution to fold into.
    """
    graph = _merge_into_producer(graph, "batch_norm", _fold_batch_norm)
    graph = _merge_into_producer(graph, "activation", _fuse_activation)
    graph = _fuse_routes(graph)
    for node in graph.nodes:
        if node.op == "batch_norm":
            raise ModelError(f"{node.name}: batch normalisation that does not follow a convolution")
    return Graph(graph.ancestors(graph.outputs), graph.outputs).renamed()


def _fold_batch_norm(conv: Node, norm: Node) -> Node:
    """Y = scale (W x + b) + offset; done in float64, so the only rounding is the last."""
    if conv.weight is None or norm.weight is None or norm.bias is None:
        raise ModelError(f"{norm.name}: batch normalisation without its constants")
    scale = norm.weight.astype(np.float64)
    bias = 0.0 if conv.bias is None else conv.bias.astype(np.float64)
    return replace(
        conv,
        weight=(conv.weight * scale[:, None, None, None]).astype(np.float32),
        bias=(bias * scale + norm.bias).astype(np.float32),
    )


def _fuse_activation(producer: Node, activation: Node) -> Node:
    return replace(producer, activation=activation.activation)


def _takes(producer: Node, node: Node) -> bool:
    """Whether a node may be merged into the one that makes its input."""
    if producer.op == "input" or producer.activation is not None:
        return False
    if node.op == "batch_norm":
        return producer.op == "conv"
    return operator_of(producer).takes_activation(node)


def _fuse_routes(graph: Graph) -> Graph:
    """Read through joins: what is left without readers is dropped by `optimise`."""
    direct: dict[str, str] = {}
    made: dict[str, Node] = {}
    for node in graph.nodes:
        inputs = tuple(direct.get(name, name) for name in node.inputs)
        if node.op == "concat":
            parts = (made[name] for name in inputs)
            inputs = tuple(
                name
                for part in parts
                for name in (part.inputs if _is_inner(graph, part) else (part.name,))
            )
        elif node.op == "slice" and made[inputs[0]].op == "concat":
            part = _part(made, made[inputs[0]], node)
            if part is not None and node.name not in graph.outputs:
                direct[node.name] = part
                continue
        made[node.name] = replace(node, inputs=inputs)
    return Graph(tuple(made.values()), graph.outputs)


def _is_inner(graph: Graph, node: Node) -> bool:
    """Whether a node is a join that only another one reads."""
    alone = len(graph.consumers[node.name]) == 1 and node.name not in graph.outputs
    return node.op == "concat" and alone


def _part(made: dict[str, Node], join: Node, cut: Node) -> str | None:
    """The input of a join that a slice takes as it is."""
    start = 0
    for name in join.inputs:
        stop = start + made[name].shape[0]
        if (start, stop) == (cut.attributes["start"], cut.attributes["stop"]):
            return name
        start = stop
    return None


def _merge_into_producer(graph: Graph, op: str, merge: Callable[[Node, Node], Node]) -> Graph:
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
            _takes(producer, node)
            and len(graph.consumers[node.inputs[0]]) == 1
            and node.inputs[0] not in graph.outputs
        )
        if mergeable:
            absorbed.add(node.inputs[0])
            merged[node.name] = replace(merge(producer, node), name=node.name)
    nodes = tuple(merged.get(n.name, n) for n in graph.nodes if n.name not in absorbed)
    return Graph(nodes, graph.outputs)
