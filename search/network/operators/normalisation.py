"""Normalisation over neighbouring channels, as older classifiers have it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from search.network.graph import Node
from search.network.operators.base import Operator, Weights


class LocalResponse(Operator):
    """Values over a power of the mean square of `size` channels around, an odd number of them.

    y = x / (`offset` + `alpha` x mean of squares) ^ `beta`.
    """

    onnx_op = "LRN"
    takes_activation = True

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return F.local_response_norm(
            inputs[0],
            node.attributes["size"],
            node.attributes["alpha"],
            node.attributes["beta"],
            node.attributes["offset"],
        )

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        attributes = node.attributes
        return {
            "size": attributes["size"],
            "alpha": attributes["alpha"],
            "beta": attributes["beta"],
            "bias": attributes["offset"],
        }
