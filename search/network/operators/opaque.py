"""Operators without an entry, taken over from an ONNX file as they are: tails may hold any.

Torch does not compute them, so nothing before which one of them stands is fine-tuned, and no head
holds them. One that makes several tensors has a node for each further one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from numpy.typing import NDArray

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights

OPAQUE = "onnx"
OPAQUE_OUTPUT = "onnx_output"


def opaque_attributes(
    proto: bytes, slots: Sequence[int | str], constants: Mapping[str, NDArray[Any]], reason: str
) -> Mapping[str, Any]:
    """Attributes of the node that stands for an ONNX node.

    Args:
        proto: The ONNX node, serialised.
        slots: Its inputs: the index among the node's inputs, or the name of a constant.
        constants: The constants.
        reason: Why the graph has no entry for it.
    """
    return {"proto": proto, "slots": tuple(slots), "constants": constants, "reason": reason}


class Opaque(Operator):
    """An ONNX node as it is."""

    computes_in_torch = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return node.shape

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        raise ModelError(f"{node.name}: torch does not compute {node.attributes['reason']}")

    def refusal(self, node: Node) -> str | None:
        return f"{node.name}: {node.attributes['reason']}"

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        proto = onnx.NodeProto.FromString(node.attributes["proto"])
        constants = {
            name: builder.constant(f"{node.name}.{name}", array)
            for name, array in node.attributes["constants"].items()
        }
        del proto.input[:]
        for slot in node.attributes["slots"]:
            proto.input.append(inputs[slot] if isinstance(slot, int) else constants.get(slot, ""))
        outputs = [name and _name(output, index) for index, name in enumerate(proto.output)]
        del proto.output[:]
        proto.output.extend(outputs)
        proto.name = output
        builder.nodes.append(proto)
        return output


class OpaqueOutput(Operator):
    """A further output, by `index`, of the ONNX node that it reads."""

    computes_in_torch = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return node.shape

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        raise ModelError(f"{node.name}: torch does not compute it")

    def refusal(self, node: Node) -> str | None:
        return f"{node.name}: an output of an operator without an integer form"

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("Identity", (_name(inputs[0], node.attributes["index"]),), output)


def _name(output: str, index: int) -> str:
    return output if index == 0 else f"{output}.{index}"
