"""Operators that move values: joins, slices, copies, and other orders of the same values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from common.errors import ModelError
from search.network.graph import Node, Shape
from search.network.onnx_builder import OnnxBuilder
from search.network.operators.base import Operator, Weights, only
from search.network.quant_params import Codes, Quantized


class Concat(Operator):
    """Tensors joined along an `axis`; on one grid, their codes are joined as they are.

    Axes are those of a tensor with its batch: 1 is the channels.
    """

    onnx_op = "Concat"

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        axis = node.attributes.get("axis", 1) - 1
        rests = {(*shape[:axis], *shape[axis + 1 :]) for shape in inputs}
        if len(rests) != 1:
            raise ModelError(f"{node.name}: joins tensors of different sizes {list(inputs)}")
        joined = sum(shape[axis] for shape in inputs)
        return *inputs[0][:axis], joined, *inputs[0][axis + 1 :]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return torch.cat(list(inputs), node.attributes.get("axis", 1))

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        return {"axis": node.attributes.get("axis", 1)}

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        if self._is_on_one_grid(network, node):
            return np.concatenate(inputs, node.attributes.get("axis", 1))
        return super().run_codes(network, node, inputs)

    def has_integer_kernel(self, node: Node) -> bool:
        return True

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        if self._is_on_one_grid(network, node):
            self.write(builder, node, node.inputs, node.name)
        else:
            super().write_codes(builder, network, node)

    def _is_on_one_grid(self, network: Quantized, node: Node) -> bool:
        grid = network.grids[node.name]
        return all(network.grids[name] == grid for name in node.inputs)


class Slice(Operator):
    """Every `step`th value along an `axis`, from `start` to before `stop`."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        axis, kept = self._axis(node) - 1, range(*self._bounds(node))
        shape = only(inputs)
        if not kept or not 0 <= kept[0] <= kept[-1] < shape[axis]:
            raise ModelError(f"{node.name}: slices {kept} of {shape[axis]} values")
        return *shape[:axis], len(kept), *shape[axis + 1 :]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        everything = (slice(None),) * self._axis(node)
        return inputs[0][(*everything, slice(*self._bounds(node)))]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        start, stop, step = self._bounds(node)
        settings = [("start", start), ("stop", stop), ("axis", self._axis(node))]
        if step != 1:
            settings.append(("step", step))
        bounds = [
            builder.constant(f"{node.name}.{key}", np.array([value], np.int64))
            for key, value in settings
        ]
        return builder.add("Slice", (*inputs, *bounds), output)

    def _axis(self, node: Node) -> int:
        axis: int = node.attributes.get("axis", 1)
        return axis

    def _bounds(self, node: Node) -> tuple[int, int, int]:
        attributes = node.attributes
        return attributes["start"], attributes["stop"], attributes.get("step", 1)


class Pad(Operator):
    """Zeros around height and width: `pads` as (top, left, bottom, right)."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, height, width = only(inputs)
        top, left, bottom, right = node.attributes["pads"]
        return channels, height + top + bottom, width + left + right

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        top, left, bottom, right = node.attributes["pads"]
        return F.pad(inputs[0], (left, right, top, bottom))

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        return builder.add("Pad", (*inputs, self._pads(builder, node)), output)

    def run_codes(self, network: Quantized, node: Node, inputs: Sequence[Codes]) -> Codes:
        top, left, bottom, right = node.attributes["pads"]
        around = ((0, 0), (0, 0), (top, bottom), (left, right))
        return np.pad(inputs[0], around, constant_values=network.grids[node.name].zero_point)

    def write_codes(self, builder: OnnxBuilder, network: Quantized, node: Node) -> None:
        zero = np.array(network.grids[node.name].zero_point, np.uint8)
        value = builder.constant(f"{node.name}.value", zero)
        builder.add("Pad", (*node.inputs, self._pads(builder, node), value), node.name)

    def _pads(self, builder: OnnxBuilder, node: Node) -> str:
        top, left, bottom, right = node.attributes["pads"]
        pads = np.array([0, 0, top, left, 0, 0, bottom, right], np.int64)
        return builder.constant(f"{node.name}.pads", pads)


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


class Resize(Operator):
    """Height and width changed to `size` by linear interpolation.

    `aligned` says whether the corners of both grids of points coincide, else their edges do.
    """

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        return only(inputs)[0], *node.attributes["size"]

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return F.interpolate(
            inputs[0],
            size=node.attributes["size"],
            mode="bilinear",
            align_corners=node.attributes["aligned"],
        )

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        before = node.attributes["source_size"]
        scales = [after / size for after, size in zip(node.attributes["size"], before, strict=True)]
        name = builder.constant(f"{node.name}.scales", np.array([1, 1, *scales], "f4"))
        mode = "align_corners" if node.attributes["aligned"] else "pytorch_half_pixel"
        return builder.add(
            "Resize",
            (*inputs, "", name),
            output,
            mode="linear",
            coordinate_transformation_mode=mode,
        )


class Transpose(Operator):
    """The axes in another `order`; the batch stays the first."""

    onnx_op = "Transpose"
    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        shape, order = only(inputs), node.attributes["order"]
        if order[0] != 0 or sorted(order) != list(range(len(shape) + 1)):
            raise ModelError(f"{node.name}: no order of the axes of {shape}: {order}")
        return tuple(shape[axis - 1] for axis in order[1:])

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return inputs[0].permute(node.attributes["order"])

    def onnx_attributes(self, node: Node) -> Mapping[str, Any]:
        return {"perm": node.attributes["order"]}


class Reshape(Operator):
    """Values in their order as a tensor of another `shape`, given without the batch."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        shape: Shape = node.attributes["shape"]
        if math.prod(shape) != math.prod(only(inputs)):
            raise ModelError(f"{node.name}: cannot reshape {only(inputs)} to {shape}")
        return shape

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return inputs[0].reshape(len(inputs[0]), *node.attributes["shape"])

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        shape = np.array([0, *node.attributes["shape"]], np.int64)  # 0 keeps the batch
        return builder.add(
            "Reshape", (*inputs, builder.constant(f"{node.name}.shape", shape)), output
        )


class Gather(Operator):
    """The channels of `order`, one of them perhaps several times."""

    makes_values = False

    def shape(self, node: Node, inputs: Sequence[Shape]) -> Shape:
        channels, *rest = only(inputs)
        order = node.attributes["order"]
        if not order or not 0 <= min(order) <= max(order) < channels:
            raise ModelError(f"{node.name}: no channels of {channels}: {order}")
        return len(order), *rest

    def run(self, node: Node, inputs: Sequence[torch.Tensor], weights: Weights) -> torch.Tensor:
        return inputs[0][:, list(node.attributes["order"])]

    def write(
        self,
        builder: OnnxBuilder,
        node: Node,
        inputs: Sequence[str],
        output: str,
    ) -> str:
        order = builder.constant(f"{node.name}.order", np.array(node.attributes["order"], "i8"))
        return builder.add("Gather", (*inputs, order), output, axis=1)
