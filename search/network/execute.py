"""Running a graph in torch, whole or in parts: the reference that all else is compared with.

A head and a tail run the same kernels on the same values as the whole network, so putting them
together gives the whole network's outputs exactly.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from common.errors import ModelError
from search.network.graph import Activation, Graph, Node


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
        parameters: Weights ("conv_8.weight") and biases of convolutions in place of the node's own.
    """
    attributes = node.attributes
    first = inputs[0]
    if node.op == "conv":
        if node.weight is None:
            raise ModelError(f"{node.name}: a convolution without weights")
        if parameters is None:
            weight = torch.from_numpy(node.weight).to(first)
            bias = None if node.bias is None else torch.from_numpy(node.bias).to(first)
        else:
            weight = parameters[f"{node.name}.weight"]
            bias = parameters.get(f"{node.name}.bias")
        output = F.conv2d(
            first,
            weight,
            bias,
            attributes["stride"],
            attributes["pads"][:2],
            1,
            attributes["groups"],
        )
    elif node.op == "batch_norm":
        if node.weight is None or node.bias is None:
            raise ModelError(f"{node.name}: batch normalisation without its constants")
        scale, offset = (torch.from_numpy(part).to(first) for part in (node.weight, node.bias))
        output = first * scale[:, None, None] + offset[:, None, None]
    elif node.op == "max_pool":
        top, left, bottom, right = attributes["pads"]
        padded = F.pad(first, (left, right, top, bottom), value=float("-inf"))
        output = F.max_pool2d(padded, attributes["kernel"], attributes["stride"])
    elif node.op == "upsample":
        output = F.interpolate(first, scale_factor=attributes["factor"], mode="nearest")
    elif node.op == "concat":
        output = torch.cat(list(inputs), 1)
    elif node.op == "add":
        output = inputs[0] + inputs[1]
    elif node.op == "slice":
        output = first[:, attributes["start"] : attributes["stop"]]
    elif node.op == "activation":
        output = first
    else:
        raise ModelError(f"{node.name}: cannot run operator {node.op}")
    return output if node.activation is None else activate(node.activation, output)


def activate(activation: Activation, tensor: torch.Tensor) -> torch.Tensor:
    """Apply a non-linearity in floating point."""
    if activation.kind == "leaky_relu":
        return F.leaky_relu(tensor, activation.slope)
    if activation.kind == "relu":
        return F.relu(tensor)
    return torch.sigmoid(tensor) if activation.kind == "sigmoid" else F.silu(tensor)


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
