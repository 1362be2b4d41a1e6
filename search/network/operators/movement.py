"""Operators that move values: joins, slices and copies."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, only
from search.network.quant_params import Codes, Quantized


class Concat(Operator):
    """Tensors joined along the channels; on one grid, their codes are joined as they are."""

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        if len({shape[1:] for shape in inputs}) != 1:
            raise ModelError(f"{node.name}: joins tensors of different sizes {list(inputs)}")
        return sum(shape[0] for shape in inputs), *inputs[0][1:]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return torch.cat(list(inputs), 1)

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("Concat", inputs, output, axis=1)

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        if self._is_on_one_grid(network, node):
            return np.concatenate(inputs, 1)
        return super().run_codes(network, node, inputs)

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        if self._is_on_one_grid(network, node):
            self.write(builder, node, node.inputs, node.name)
        else:
            super().write_codes(builder, network, node)

    def _is_on_one_grid(self, network: Quantized, node: Node) -> bool:
        grid = network.grids[node.name]
        return all(network.grids[name] == grid for name in node.inputs)


class Slice(Operator):
    """The channels from `start` to before `stop`."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return node.attributes["stop"] - node.attributes["start"], *only(inputs)[1:]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return inputs[0][:, node.attributes["start"] : node.attributes["stop"]]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        bounds = [
            builder.constant(f"{node.name}.{key}", np.array([value], np.int64))
            for key, value in (
                ("start", node.attributes["start"]),
                ("stop", node.attributes["stop"]),
                ("axis", 1),
            )
        ]
        return builder.add("Slice", (*inputs, *bounds), output)


class Upsample(Operator):
    """Every value copied `factor` times in height and width."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = only(inputs)
        factor = node.attributes["factor"]
        return channels, factor * height, factor * width

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return F.interpolate(inputs[0], scale_factor=node.attributes["factor"], mode="nearest")

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        factor = float(node.attributes["factor"])
        scales = builder.constant(f"{node.name}.scales", np.array([1, 1, factor, factor], "f4"))
        return builder.add(
            "Resize",
            (*inputs, "", scales),
            output,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
