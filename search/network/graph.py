"""The graph: a network as a DAG of operators, the form that every stage of the search works on.

    torch module --importer--> Graph --passes--> Graph (batch norm folded, activations fused)

A node makes one tensor and carries that tensor's name. Shapes leave out the batch: (C, H, W). Names
are `operator_rank`, the rank counting nodes in topological order, so "conv_8" is the ninth
operator.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.activations import Activation
from search.network.onnx_builder import OPSET

IMAGE = "image"

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Node:
    """One operator and the tensor that it makes.

    Attributes:
        name: Name of the operator and of its output.
        op: Name of its operator, see `search.network.operators`; "input" for the image.
        inputs: Names of the tensors read, in order.
        shape: Of the output for one image, mostly (C, H, W).
        attributes: Settings of the operator.
        weight: Convolution kernel (C_out, C_in / groups, kH, kW), float32.
        bias: (C_out,), float32.
        activation: Fused into the operator, applied last.
        batched: Whether it is a float32 tensor of a fixed shape for each image of the batch, which
            is the first axis.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    shape: Shape
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weight: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    activation: Activation | None = None
    batched: bool = True

    @property
    def sendable(self) -> bool:
        """Whether it can be a tensor of a cut: a (C, H, W) tensor for each image."""
        return self.batched and len(self.shape) == 3

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of a tensor that can be sent.

        Raises:
            ModelError: If it has no such shape.
        """
        if not self.sendable:
            raise ModelError(f"{self.name}: a tensor of shape {self.shape} cannot be sent")
        channels, height, width = self.shape
        return channels, height, width

    @property
    def gains(self) -> NDArray[np.float32] | None:
        """(C,) gains g of an activation f that is g f(x / g) by channel; mostly None."""
        found: NDArray[np.float32] | None = self.attributes.get("gains")
        return found

    def activate(self, values: torch.Tensor) -> torch.Tensor:
        """Apply the activation, if there is one, to (N, C, ...) values."""
        if self.activation is None:
            return values
        if self.gains is None:
            return self.activation.run(values)
        gains = torch.from_numpy(self.gains).to(values).reshape(-1, *(1,) * (values.ndim - 2))
        return self.activation.run(values / gains) * gains

    @property
    def elements(self) -> int:
        """Number of elements of the output for one frame."""
        return math.prod(self.shape)

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum(array.size for array in (self.weight, self.bias) if array is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one frame."""
        counted: int | None = self.attributes.get("macs")
        if counted is not None:
            return counted
        if self.weight is None or self.weight.ndim < 2:
            return 0
        return self.weight.size * self.elements // len(self.weight)


@dataclass(frozen=True, eq=False)
class Graph:
    """A network.

    Attributes:
        nodes: In topological order, the image first.
        outputs: Names of the tensors that the network makes.
        opset: Version of ONNX's operators that its nodes are written in.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    opset: int = OPSET

    def __post_init__(self) -> None:
        known: set[str] = set()
        for node in self.nodes:
            missing = [name for name in node.inputs if name not in known]
            if missing or node.name in known:
                raise ModelError(f"{node.name}: not in topological order (reads {missing})")
            known.add(node.name)
        if not self.nodes or self.nodes[0].op != "input":
            raise ModelError("a graph starts with its input")
        if not self.outputs or any(name not in known for name in self.outputs):
            raise ModelError(f"outputs {self.outputs} are not all in the graph")

    @cached_property
    def by_name(self) -> dict[str, Node]:
        """Nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def consumers(self) -> dict[str, tuple[str, ...]]:
        """Names of the nodes that read each tensor, in topological order."""
        readers: dict[str, list[str]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                readers[name].append(node.name)
        return {name: tuple(nodes) for name, nodes in readers.items()}

    def __getitem__(self, name: str) -> Node:
        return self.by_name[name]

    def ancestors(self, names: Sequence[str]) -> tuple[Node, ...]:
        """The nodes that `names` need, themselves included, in topological order."""
        needed: set[str] = set()
        stack = list(names)
        while stack:
            name = stack.pop()
            if name not in needed:
                needed.add(name)
                stack.extend(self.by_name[name].inputs)
        return tuple(node for node in self.nodes if node.name in needed)

    def peak_elements(self, nodes: Sequence[Node], keep: Sequence[str]) -> int:
        """Largest number of live elements while `nodes` run in order and `keep` stay to the end.

        A tensor lives from its node to its last reader; a node's inputs and output live together.
        """
        last_use = {name: index for index, node in enumerate(nodes) for name in node.inputs}
        last_use |= dict.fromkeys(keep, len(nodes))
        live = peak = 0
        for index, node in enumerate(nodes):
            live += node.elements
            peak = max(peak, live)
            finished = {*node.inputs, node.name}
            live -= sum(self.by_name[n].elements for n in finished if last_use.get(n, -1) <= index)
        return peak

    def renamed(self) -> "Graph":
        """Return a copy with nodes named by operator and rank; the input is "image"."""
        names = {
            node.name: f"{node.op}_{rank - 1}" if node.op != "input" else IMAGE
            for rank, node in enumerate(self.nodes)
        }
        nodes = tuple(
            replace(node, name=names[node.name], inputs=tuple(names[i] for i in node.inputs))
            for node in self.nodes
        )
        return replace(self, nodes=nodes, outputs=tuple(names[name] for name in self.outputs))
