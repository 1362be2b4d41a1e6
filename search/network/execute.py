"""Running a graph in torch, whole or in parts: the reference that all else is compared with.

A head and a tail run the same kernels on the same values as the whole network, so putting them
together gives the whole network's outputs exactly.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch

from common.errors import ModelError
from search.network.graph import Graph, Node
from search.network.operators.base import weights_of
from search.network.operators.registry import operator_of


def run(
    graph: Graph, feeds: Mapping[str, torch.Tensor], fetch: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Compute the tensors `fetch` from the given ones.

    Args:
        graph: The network.
        feeds: (N, C, H, W) tensors by name: the image in [0, 1], or the tensors of a cut.
        fetch: Names to return.
    """
    values = dict(feeds)
    with torch.inference_mode():
        for node in _needed(graph, feeds, fetch):
            values[node.name] = apply(node, [values[name] for name in node.inputs])
    return {name: values[name] for name in fetch}


def apply(
    node: Node,
    inputs: Sequence[torch.Tensor],
    parameters: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Run one node in floating point.

    Args:
        node: The node.
        inputs: What it reads, (N, C, H, W) each.
        parameters: Weights ("conv_8.weight") and biases in place of the node's own, by name.
    """
    weights = {**weights_of(node, inputs[0]), **_own(node, parameters or {})}
    output = operator_of(node).run(node, inputs, weights)
    return node.activate(output)


def _own(node: Node, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {part: f"{node.name}.{part}" for part in ("weight", "bias")}
    return {part: parameters[name] for part, name in names.items() if name in parameters}


def _needed(graph: Graph, feeds: Iterable[str], fetch: Sequence[str]) -> list[Node]:
    given = set(feeds)
    needed: set[str] = set()
    stack = [name for name in fetch if name not in given]
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        if graph[name].op == "input":
            raise ModelError(f"{name}: needed but not given")
        needed.add(name)
        stack.extend(i for i in graph[name].inputs if i not in given)
    return [node for node in graph.nodes if node.name in needed]
