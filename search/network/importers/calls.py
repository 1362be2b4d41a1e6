"""Calls: a network as the importers read it, and the graph built of them.

    ONNX file    --onnx_file--+
                              +--> calls, in ONNX's operators --onnx_operators--> Graph
    torch module --torch_module+

A call is one operator with names of what it reads and makes. Constants are known by their values,
and are no tensors of the graph. Batches are the first axis everywhere, and are no part of a shape.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.graph import Graph, Node, Shape
from search.network.operators.opaque import OPAQUE, OPAQUE_OUTPUT, opaque_attributes
from search.network.operators.registry import operator_of

Array = NDArray[Any]


class UnsupportedCallError(ModelError):
    """An operator, or a setting of it, that the graph has no entry for."""


@dataclass(frozen=True, eq=False)
class Call:
    """One operator of a network that is imported.

    Attributes:
        op: Its name in ONNX.
        inputs: Names of what it reads; empty where an optional one is left out.
        outputs: Names of what it makes.
        attributes: Its settings, by ONNX's names.
        place: Where it stands in the source, for messages.
        proto: The node of an ONNX file, serialised; tails can hold it as it is.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""
    proto: bytes | None = None

    def input(self, index: int) -> str:
        """Name of an input; empty if it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def unsupported(self, reason: str) -> UnsupportedCallError:
        """An error that says which call is not supported, and why."""
        return UnsupportedCallError(f"{self.op} ({self.place or self.outputs[0]}): {reason}")


class GraphBuilder:
    """The graph, as far as it is imported.

    Args:
        image: Name of the network's input.
        shape: Its (C, H, W).
        constants: Arrays by name.
        declared: Shapes of tensors as the source declares them, with the batch; for operators that
            have no entry.
    """

    def __init__(
        self,
        image: str,
        shape: Shape,
        constants: Mapping[str, Array],
        declared: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self._nodes = {image: Node(image, "input", (), shape)}
        self._names = {image: image}
        self._constants = dict(constants)
        self._declared = declared or {}
        self.padded: dict[str, tuple[str, tuple[int, int, int, int]]] = {}
        """Tensors that are padded by -inf: (what is padded, how far), for the pooling behind."""

    def tensor(self, call: Call, index: int = 0) -> str:
        """Name of the graph's tensor that an input is.

        Raises:
            UnsupportedCallError: If it is a constant, or has no batch.
        """
        name = call.input(index)
        if name in self.padded:
            raise call.unsupported("padding by -inf is supported in front of max pooling only")
        if name not in self._names:
            raise call.unsupported(f"reads {name or 'nothing'}, which does not depend on the image")
        node = self._nodes[self._names[name]]
        if not node.batched:
            raise call.unsupported(f"reads {name}, which has no batch or no fixed shape")
        return node.name

    def is_tensor(self, call: Call, index: int) -> bool:
        """Whether an input depends on the image."""
        return call.input(index) in self._names

    def constant(self, call: Call, index: int) -> Array:
        """Value of an input.

        Raises:
            UnsupportedCallError: If it is not a constant.
        """
        name = call.input(index)
        if name not in self._constants:
            raise call.unsupported(f"input {index} ({name or 'left out'}) is not a constant")
        return self._constants[name]

    def optional(self, call: Call, index: int) -> Array | None:
        """Value of an input that may be left out."""
        return self.constant(call, index) if call.input(index) else None

    def shape(self, name: str) -> Shape:
        """The shape of a tensor of the graph."""
        return self._nodes[name].shape

    def check_shape(self, name: str, expected: Shape) -> None:
        """Require a tensor, if it is one of the graph, to have the shape that its source gives it.

        Raises:
            ModelError: If it has another one.
        """
        if name in self._names and self.shape(self._names[name]) != expected:
            found = self.shape(self._names[name])
            raise ModelError(f"{name}: imported with shape {found}, expected {expected}")

    def add(self, call: Call, op: str, inputs: Sequence[str], **fields: Any) -> str:
        """Append the node that makes the call's output; returns its name."""
        return self.append(call.outputs[0], op, inputs, **fields)

    def step(self, call: Call, op: str, inputs: Sequence[str], **fields: Any) -> str:
        """Append a node on the way to the call's output; returns its name."""
        rank = sum(name.startswith(f"{call.outputs[0]}/") for name in self._nodes)
        return self.append(f"{call.outputs[0]}/{rank}", op, inputs, **fields)

    def append(self, name: str, op: str, inputs: Sequence[str], **fields: Any) -> str:
        """Append a node under a name; returns it."""
        node = Node(name, op, tuple(inputs), (), **fields)
        shapes = [self._nodes[source].shape for source in inputs]
        made = operator_of(node).shape(node, shapes)
        self._nodes[name] = Node(name, op, tuple(inputs), made, **fields)
        self._names[name] = name
        return name

    def rename(self, tensor: str, name: str) -> None:
        """Let calls know a tensor by another name, too."""
        self._names[name] = tensor

    def alias(self, call: Call, tensor: str) -> None:
        """Let the call's output be a tensor that is there."""
        self._names[call.outputs[0]] = tensor

    def add_opaque(self, call: Call, reason: UnsupportedCallError) -> None:
        """Take a call over as it is, for tails.

        Raises:
            UnsupportedCallError: If it is not from an ONNX file, or holds a graph of its own.
        """
        if call.proto is None:
            raise reason
        unknown = [
            name
            for name in call.inputs
            if name and name not in self._names and name not in self._constants
        ]
        if unknown:
            raise reason
        inputs = tuple(dict.fromkeys(self._names[n] for n in call.inputs if n in self._names))
        constants = {n: self._constants[n] for n in call.inputs if n in self._constants}
        slots = [
            inputs.index(self._names[name]) if name in self._names else name for name in call.inputs
        ]
        attributes = opaque_attributes(call.proto, slots, constants, str(reason))
        main = call.outputs[0]
        for index, name in enumerate(call.outputs):
            if not name:
                continue
            declared = self._declared.get(name, ())
            batched = len(declared) > 1 and declared[0] == 1
            shape = tuple(declared[1:]) if batched else tuple(declared)
            if index == 0:
                node = Node(name, OPAQUE, inputs, shape, attributes, batched=batched)
            else:
                place = {"index": index}
                node = Node(name, OPAQUE_OUTPUT, (main,), shape, place, batched=batched)
            self._nodes[name] = node
            self._names[name] = name

    def graph(self, outputs: Sequence[str], opset: int) -> Graph:
        """The graph, when all calls are imported.

        Raises:
            ModelError: If an output does not depend on the image.
        """
        for name in outputs:
            if name not in self._names:
                raise ModelError(f"output {name} does not depend on the image")
        return Graph(
            tuple(self._nodes.values()), tuple(self._names[name] for name in outputs), opset
        )


def as_pair(values: Any) -> tuple[int, int]:
    """Two integers, of one or two."""
    numbers = [int(value) for value in np.atleast_1d(values)]
    return (numbers[0], numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


Reader = Callable[[Call, GraphBuilder], None]
"""Reads a call into the graph; raises `UnsupportedCallError` if the graph has no entry for it."""
