"""Writing an ONNX model, node by node."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from search.network.quant_params import QuantParams

OPSET = 19
IR_VERSION = 10
_VERSIONS = {"ai.onnx.ml": 3, "com.microsoft": 1}
OUTSIDE = "packed"
"""Location that a head gives for external weights; the caller supplies them when it is loaded."""


@dataclass(frozen=True)
class Location:
    """Place of an array in a file beside the model: name of the file, and offset in bytes."""

    file: str
    offset: int


@dataclass
class OnnxBuilder:
    """Nodes and constants of one model.

    Attributes:
        opset: Version of ONNX's operators.
        locations: Where weights in floating point lie, by name; others become part of the model.
        outside_weights: Whether integer weights are supplied when the model is loaded.
    """

    opset: int = OPSET
    locations: Mapping[str, Location] = field(default_factory=dict)
    outside_weights: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[TensorProto] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    def add(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append a node of one output; returns the output's name."""
        self.nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Add an array to the model, unless one of that name is there; returns its name."""
        if name not in self.known:
            self.known.add(name)
            self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def scalar(self, value: float) -> str:
        """Add a float32 scalar; returns its name."""
        array = np.array(value, np.float32)
        return self.constant(f"scalar_{int(array.view(np.uint32)):08x}", array)

    def integer_weight(self, name: str, array: NDArray[np.int8]) -> str:
        """Add integer weights, or declare them where they stay outside; returns their name."""
        if not self.outside_weights:
            return self.constant(name, array)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=TensorProto.INT8,
            data_location=TensorProto.EXTERNAL,
        )
        tensor.external_data.add(key="location", value=OUTSIDE)
        self.initializers.append(tensor)
        return name

    def weight(self, name: str, array: NDArray[np.float32]) -> str:
        """Add weights in floating point, or declare where they lie; returns their name."""
        if name not in self.locations:
            return self.constant(name, array)
        at = self.locations[name]
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=TensorProto.FLOAT,
            data_location=TensorProto.EXTERNAL,
        )
        entries = {"location": at.file, "offset": str(at.offset), "length": str(array.nbytes)}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=value)
        self.initializers.append(tensor)
        return name

    def quantize(
        self,
        source: str,
        grid: QuantParams,
        output: str,
        *,
        saturates: bool = True,
        gains: NDArray[np.float32] | None = None,
    ) -> str:
        """Codes of values, by channel of values times gains, if there are any.

        Where values may lie above a grid of few bits, they are clipped.
        """
        if not saturates or grid.bits == 8:
            return self._linear("QuantizeLinear", source, grid, output, gains)
        wide = self._linear("QuantizeLinear", source, grid, f"{output}.wide", gains)
        top = self.constant(f"top_{grid.bits}", np.array(grid.top, np.uint8))
        return self.add("Clip", (wide, "", top), output)

    def dequantize(
        self,
        source: str,
        grid: QuantParams,
        output: str,
        gains: NDArray[np.float32] | None = None,
    ) -> str:
        """Values of codes, by channel over gains, if there are any."""
        return self._linear("DequantizeLinear", source, grid, output, gains)

    def _linear(
        self,
        op: str,
        source: str,
        grid: QuantParams,
        output: str,
        gains: NDArray[np.float32] | None,
    ) -> str:
        if gains is None:
            return self.add(op, (source, *self._grid(grid)), output)
        scale = self.constant(f"{output}.scale", np.float32(grid.scale) / gains)
        zeros = np.full(len(gains), grid.zero_point, np.uint8)
        return self.add(op, (source, scale, self.constant(f"{output}.zero", zeros)), output, axis=1)

    def model(self, name: str, inputs: list[Any], outputs: list[Any]) -> bytes:
        """Serialise the model."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.initializers)
        proto = helper.make_model(
            graph,
            opset_imports=[
                helper.make_opsetid(domain, _VERSIONS.get(domain, self.opset))
                for domain in sorted({"", *(node.domain for node in self.nodes)})
            ],
            ir_version=IR_VERSION,
            producer_name="splitpoint",
        )
        data: bytes = proto.SerializeToString(deterministic=True)
        return data

    def _grid(self, grid: QuantParams) -> tuple[str, str]:
        key = f"grid_{np.float32(grid.scale).view(np.uint32):08x}_{grid.zero_point}"
        scale = self.constant(f"{key}.scale", np.array(grid.scale, np.float32))
        return scale, self.constant(f"{key}.zero", np.array(grid.zero_point, np.uint8))
