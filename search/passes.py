"""Graph optimisation: the same function with fewer nodes.

Batch normalisation folds into the convolution before it, an activation fuses into its convolution.
Only a convolution whose output has no other reader can take them in.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from common.errors import ModelError
from search.graph import Graph, Node


def optimise(graph: Graph) -> Graph:
    """Fold, fuse, drop what no output needs, and name nodes by operator and rank.

    Raises:
        ModelError: If a batch normalisation stands without a convolution to fold into.
    """
    graph = _merge_into_producer(graph, "batch_norm", _fold_batch_norm)
    graph = _merge_into_producer(graph, "activation", _fuse_activation)
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


def _fuse_activation(conv: Node, activation: Node) -> Node:
    return replace(conv, activation=activation.activation)


def _merge_into_producer(graph: Graph, op: str, merge: Callable[[Node, Node], Node]) -> Graph:
    """Merge every `op` node into the convolution that makes its input, where that is allowed.

    The merged node takes the name of the one merged in, so that later readers need no change.
    """
    merged: dict[str, Node] = {}
    absorbed: set[str] = set()
    for node in graph.nodes:
        if node.op != op:
            continue
        producer = merged.get(node.inputs[0], graph[node.inputs[0]])
        mergeable = (
            producer.op == "conv"
            and producer.activation is None
            and len(graph.consumers[node.inputs[0]]) == 1
            and node.inputs[0] not in graph.outputs
        )
        if mergeable:
            absorbed.add(node.inputs[0])
            merged[node.name] = replace(merge(producer, node), name=node.name)
    nodes = tuple(merged.get(n.name, n) for n in graph.nodes if n.name not in absorbed)
    return Graph(nodes, graph.outputs)
