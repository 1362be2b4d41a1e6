"""Quantized models in OpenVINO, to the last bit of what ONNX Runtime computes.

    codes -> convolution, + bias -> x multiplier -> round half to even -> + zero point -> codes
    codes -> activation, by a table of 256 or two lines that give the same -> codes

By itself OpenVINO reads QuantizeLinear as FakeQuantize, which scales, shifts and rounds in an order
of its own: a sum within a rounding error of two codes takes the other one, a wrong code makes more
of them in the next layer, and after five layers of YOLOv3-tiny a head is refused for it. So
QuantizeLinear is read by `quantize_linear` instead, as the float32 operations of ONNX Runtime's
integer kernels in their order. What is neither a convolution nor an activation (sums, and
concatenations of different grids) is left to FakeQuantize.

Convolutions stay in 8 bits: OpenVINO makes a convolution an integer one if its inputs are
dequantized and there is a FakeQuantize in the model. It is given both, by numbers that change no
bit: scales that are powers of two, and codes of the picture that are quantized to themselves.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset13 as ops

Node = Any
Output = Any
_Float32 = NDArray[np.float32]

_HALF: Final = np.float32(0.5)
"""Scale of a convolution's input; twice one is that of its weights, so that sums are integers."""
_TOP: Final = 255
_TABLE: Final = (1, 1, 16, 16)
"""Shape of all 256 codes, of the rank of the tensors that activations work on."""
_BY_ELEMENT: Final = frozenset(
    {
        *("Add", "Clamp", "Divide", "Elu", "Exp", "HSigmoid", "HSwish", "Maximum", "Minimum"),
        *("Multiply", "PRelu", "Relu", "Sigmoid", "SoftPlus", "Subtract", "Swish", "Tanh"),
    }
)


@dataclass(frozen=True)
class _Dequantized:
    """A DequantizeLinear as OpenVINO reads it: (codes - zero) x scale.

    Attributes:
        codes: The integers.
        cast: The node that converts them to float32.
        scale: (1,), or (C,) for scales per channel.
        zero: Zero points, of the same shape.
    """

    codes: Output
    cast: Node
    scale: _Float32
    zero: _Float32


@dataclass(frozen=True)
class _Convolution:
    """A convolution of codes by integer weights, with an integer bias (C,) if any."""

    node: Node
    data: _Dequantized
    weight: _Dequantized
    bias: _Float32 | None


@dataclass(frozen=True)
class _Grid:
    """Scales, (1,) or one for each channel, and zero point of codes, 0 to 255."""

    scale: _Float32
    zero: np.float32


@dataclass(frozen=True)
class _Lines:
    """A table of codes as arithmetic, which is faster: a line on either side of the zero point.

    code -> x = code - before -> round(x, or x times slope where x < 0, times step) + after -> clamp
    """

    before: np.float32
    slope: np.float32
    step: np.float32
    after: np.float32
    lowest: int
    highest: int

    @classmethod
    def of(cls, table: NDArray[np.uint8], before: _Float32, after: np.float32) -> "_Lines | None":
        """The lines that give exactly this table; None if none do, as of a sigmoid."""
        x = np.arange(_TOP + 1) - float(before.item())
        steps, lowest, highest = table - float(after), int(table.min()), int(table.max())
        inner = (table > lowest) & (table < highest)
        right, left = (_line(x[side & inner], steps[side & inner]) for side in (x > 0, x < 0))
        if not right:
            return None
        lines = cls(
            np.float32(before.item()),
            np.float32(left / right),
            np.float32(right),
            after,
            lowest,
            highest,
        )
        return lines if np.array_equal(lines.table(), table) else None

    def table(self) -> NDArray[np.float32]:
        """(256,) codes, by the same float32 operations as `codes_of`."""
        x = np.arange(_TOP + 1, dtype=np.float32) - self.before
        rounded = np.rint(np.where(x < 0, x * self.slope, x) * self.step)
        return np.clip(rounded + self.after, self.lowest, self.highest)

    def codes_of(self, codes: Output) -> Output:
        """Codes after the activation."""
        x = ops.subtract(ops.convert(codes, "f32"), self.before)
        bent = ops.prelu(x, ops.constant(np.full(1, self.slope)))
        rounded = ops.round(ops.multiply(bent, self.step), "half_to_even")
        shifted = ops.add(rounded, self.after)
        return ops.convert(ops.clamp(shifted, self.lowest, self.highest), "u8").output(0)


def quantize_linear(context: Any) -> list[Output]:
    """Read one QuantizeLinear; OpenVINO's reader calls this with the operator's inputs.

    Raises:
        RuntimeError: If it does not make uint8 on one grid, or behind an activation by channel.
    """
    values, grid = context.get_input(0), _grid(context)
    convolution = _convolution(values)
    if convolution is not None:
        return [_convolution_codes(convolution, grid)]
    codes = _activated(values)
    table = None if codes is None else _table(values, codes, grid)
    if codes is None or table is None:
        if grid.scale.size != 1:
            raise RuntimeError("QuantizeLinear: scales by channel behind other than an activation")
        return [_fake_quantized(values, grid)]
    if len(table) > 1:
        return [_looked_up_by_channel(codes.codes, table)]
    table = table[0]
    lines = _Lines.of(table, codes.zero, grid.zero)
    return [_looked_up(codes.codes, table) if lines is None else lines.codes_of(codes.codes)]


def mark_quantized(model: Any) -> None:
    """Quantize the codes that enter a model to themselves, so that it is known as quantized."""
    for parameter in model.get_parameters():
        if parameter.get_element_type() != openvino.Type.u8:
            continue
        readers = parameter.output(0).get_target_inputs()
        real = ops.convert(parameter, "f32").output(0)
        codes = _fake_quantized(real, _Grid(np.ones(1, np.float32), np.float32(0)))
        for reader in readers:
            reader.replace_source_output(codes)


def _grid(context: Any) -> _Grid:
    scale = _constant(context.get_input(1))
    zero: NDArray[Any] | None = np.zeros(1, np.uint8)
    if context.get_input_size() > 2:
        zero = _constant(context.get_input(2))
    if scale is None or zero is None or zero.dtype != np.uint8 or np.unique(zero).size != 1:
        raise RuntimeError("QuantizeLinear: expected scales and one zero point of type uint8")
    return _Grid(scale.reshape(-1).astype(np.float32), np.float32(zero.flat[0]))


def _convolution_codes(convolution: _Convolution, grid: _Grid) -> Output:
    """Codes of a convolution: integer sums times one multiplier per channel, rounded."""
    data, weight = convolution.data, convolution.weight
    values = ops.convert(data.codes, "f32")
    if data.zero.any():
        values = ops.subtract(values, np.float32(data.zero.item()))
    sums = _convolved(convolution.node, ops.multiply(values, _HALF), weight)
    spread = (1, -1, *(1 for _ in sums.get_output_partial_shape(0)[2:]))
    if convolution.bias is not None:
        sums = ops.add(sums, convolution.bias.reshape(spread))
    # Rounding integers changes none, and keeps the multiplier from being moved before the bias.
    sums = ops.round(sums, "half_to_even")
    multiplier = data.scale * weight.scale / grid.scale
    rounded = ops.round(ops.multiply(sums, multiplier.reshape(spread)), "half_to_even")
    return ops.convert(ops.clamp(ops.add(rounded, grid.zero), 0, _TOP), "u8").output(0)


def _convolved(node: Node, values: Node, weight: _Dequantized) -> Node:
    """Convolution of these values as the node has it, by weights that are integers."""
    shape = list(node.get_input_shape(1))
    kernel = ops.constant(_peeled(weight.codes).get_node().data.reshape(shape))
    depth = 2 if node.get_type_name() == "GroupConvolution" else 1
    doubled = np.full((*shape[:depth], *(1 for _ in shape[depth:])), 1 / _HALF, np.float32)
    make = ops.group_convolution if depth == 2 else ops.convolution
    keys = "strides", "pads_begin", "pads_end", "dilations", "auto_pad"
    attributes = node.get_attributes()
    return make(
        values,
        ops.multiply(ops.convert(kernel, "f32"), doubled),
        **{key: attributes[key] for key in keys},
    )


def _fake_quantized(values: Output, grid: _Grid) -> Output:
    """Codes of values by OpenVINO's own operator."""
    scale = np.float32(grid.scale.item())
    low, high = -grid.zero * scale, (_TOP - grid.zero) * scale
    codes = ops.fake_quantize(values, low, high, np.float32(0), np.float32(_TOP), _TOP + 1)
    return ops.convert(codes, "u8").output(0)


def _table(values: Output, codes: _Dequantized, grid: _Grid) -> NDArray[np.uint8] | None:
    """Codes after an activation by the code before it: (1, 256), or (C, 256) for scales by channel.

    None if the activation itself differs by channel.
    """
    count = max(codes.scale.size, grid.scale.size)
    shape = (1, count, *_TABLE[2:])
    parameter, entry = ops.parameter(shape, np.uint8), codes.cast.input(0)
    entry.replace_source_output(parameter.output(0))
    try:
        model = openvino.Model([values], [parameter], "activation")
        model.validate_nodes_and_infer_types()
        after = openvino.Tensor(openvino.Type.f32, openvino.Shape(values.get_shape()))
        every = np.arange(_TOP + 1, dtype=np.uint8).reshape(_TABLE)
        before = openvino.Tensor(np.ascontiguousarray(np.broadcast_to(every, shape)))
        if after.data.shape != shape or not model.evaluate([after], [before]):
            return None
        steps = np.rint(after.data.reshape(count, -1) / grid.scale[:, None]) + grid.zero
        table: NDArray[np.uint8] = np.clip(steps, 0, _TOP).astype(np.uint8)
    except RuntimeError:
        return None
    else:
        return table
    finally:
        entry.replace_source_output(codes.codes)
        _infer_shapes(values, codes)


def _line(x: NDArray[Any], steps: NDArray[Any]) -> float:
    """Slope of a line through the origin that rounds to these steps, far from ties; 0 of none."""
    if not x.size:
        return 0.0
    ends = np.sort(np.stack([(steps - 0.5) / x, (steps + 0.5) / x]), axis=0)
    return float(ends[0].max() + ends[1].min()) / 2


def _looked_up(codes: Output, table: NDArray[np.uint8]) -> Output:
    """Codes after an activation, by its table."""
    index = ops.convert(codes, "i32")
    return ops.gather(ops.constant(table), index, ops.constant(0, np.int32)).output(0)


def _looked_up_by_channel(codes: Output, table: NDArray[np.uint8]) -> Output:
    """Codes after an activation, by the table of each channel."""
    first = (_TOP + 1) * np.arange(len(table), dtype=np.int32).reshape(1, -1, 1, 1)
    return _looked_up(ops.add(ops.convert(codes, "i32"), first).output(0), table.reshape(-1))


def _infer_shapes(values: Output, codes: _Dequantized) -> None:
    """Have the operators of an activation infer their shapes again, from its codes on."""
    nodes: dict[int, Node] = {}
    waiting = [values.get_node()]
    while waiting:
        node = waiting.pop()
        if node.get_instance_id() in nodes:
            continue
        nodes[node.get_instance_id()] = node
        if node.get_instance_id() != codes.cast.get_instance_id():
            waiting += [each.get_node() for each in node.input_values()]
    for _, node in sorted(nodes.items()):  # in the order that they were made in
        node.validate_and_infer_types()


def _activated(values: Output) -> _Dequantized | None:
    """The codes that values depend on alone, element by element; None if there are no such."""
    found: list[_Dequantized] = []
    seen: set[int] = set()
    waiting = [values]
    while waiting:
        value = waiting.pop()
        node = value.get_node()
        if node.get_instance_id() in seen:
            continue
        seen.add(node.get_instance_id())
        codes, constant = _dequantized(value), _constant(value)
        if codes is not None:
            found.append(codes)
        elif node.get_type_name() in _BY_ELEMENT:
            waiting += node.input_values()
        elif constant is None or constant.size != 1:
            return None
    if len(found) != 1 or not _is(found[0].codes, openvino.Type.u8):
        return None
    return found[0]


def _convolution(values: Output) -> _Convolution | None:
    """The convolution of codes that gives these values, if one does."""
    node, bias = values.get_node(), None
    if node.get_type_name() == "Add":
        bias = _dequantized(_peeled(node.input_value(1)))
        node = node.input_value(0).get_node()
        if bias is None:
            return None
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return None
    data, weight = _dequantized(node.input_value(0)), _dequantized(_peeled(node.input_value(1)))
    if data is None or weight is None or data.scale.size != 1 or weight.zero.any():
        return None
    if not (_is(data.codes, openvino.Type.u8) and _is(weight.codes, openvino.Type.i8)):
        return None
    if bias is None:
        return _Convolution(node, data, weight, None)
    if bias.zero.any() or not np.array_equal(bias.scale, data.scale * weight.scale):
        return None
    integers = _constant(bias.codes)
    return None if integers is None else _Convolution(node, data, weight, integers.astype("f4"))


def _dequantized(values: Output) -> _Dequantized | None:
    """The DequantizeLinear that gives these values, if one does."""
    node = values.get_node()
    if node.get_type_name() != "Multiply":
        return None
    scale = _constant(node.input_value(1))
    zero: NDArray[Any] | None = np.zeros(1, np.float32)
    node = node.input_value(0).get_node()
    if node.get_type_name() == "Subtract":
        zero = _constant(node.input_value(1))
        node = node.input_value(0).get_node()
    if scale is None or zero is None or node.get_type_name() != "Convert":
        return None
    return _Dequantized(
        node.input_value(0), node, scale.reshape(-1), zero.astype(np.float32).reshape(-1)
    )


def _constant(values: Output) -> NDArray[Any] | None:
    """The constant behind conversions and changes of shape; None if it is none."""
    node = _peeled(values).get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None


def _peeled(values: Output) -> Output:
    """Values before conversions and changes of shape."""
    while values.get_node().get_type_name() in ("Convert", "Reshape", "Unsqueeze"):
        values = values.get_node().input_value(0)
    return values


def _is(values: Output, kind: Any) -> bool:
    return bool(values.get_element_type() == kind)
