"""Import of a torch module into the graph, by `torch.export`.

`torch.export` traces the module into ATen operators with static shapes; each supported one becomes
a call of ONNX's operators. Any other operator is refused by name: nothing is dropped in silence.
"""

import contextlib
import io
import logging
import operator
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export.graph_signature import InputKind

from common.errors import ModelError
from search.network.graph import IMAGE, Graph, Shape
from search.network.importers.calls import Array, Call, GraphBuilder, UnsupportedCallError, as_pair
from search.network.importers.onnx_operators import read_call
from search.network.importers.scaling import InputScaling, scale_image, size_advice
from search.network.onnx_builder import OPSET

_AS_IT_IS = InputScaling()
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]+)')


def import_module(
    module: torch.nn.Module, input_size: tuple[int, int], scaling: InputScaling = _AS_IT_IS
) -> Graph:
    """Export `module`, which maps an image to one or several tensors, each with the batch first.

    Args:
        module: In eval mode.
        input_size: (H, W).
        scaling: How the module's input is made of an image (N, 3, H, W) in [0, 1].

    Raises:
        ModelError: If the module cannot be exported or holds an operator that the graph does not
            support.
    """
    if module.training:
        raise ModelError("the module is in training mode: call .eval() first")
    example = torch.zeros(1, 3, *input_size)
    if scaling.channels_last:
        example = example.permute(0, 2, 3, 1).contiguous()
    try:
        with _quiet():
            program = torch.export.export(module, (example,))
    except Exception as error:  # of torch, or of the module's own code
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the module cannot be exported{_line_of_error(error)}: "
            f"{_advice(module, error, example)}; "
            f"torch.export says: {reason}"
        ) from error
    return _ExportedModule(program).graph(input_size, scaling)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's logs and output on a failure; the error that it raises has them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _made_by(frames: Iterable[tuple[str, int, str]]) -> str:
    """The innermost line that is not torch's, of (file, number, code), as ", made by ..."."""
    own = [frame for frame in frames if f"{os.sep}torch{os.sep}" not in frame[0]]
    if not own:
        return ""
    file, number, code = own[-1]
    return f", made by {Path(file).name}:{number} `{code.strip()}`,"


def _line_of(node: fx.Node) -> str:
    found = _FRAME.findall(node.stack_trace or "")
    return _made_by((file, int(number), code) for file, number, code in found)


def _line_of_error(error: BaseException) -> str:
    inner = traceback.extract_tb(error.__traceback__)
    # The first frame is the call of torch.export here.
    return _made_by((frame.filename, frame.lineno or 0, frame.line or "") for frame in inner[1:])


def _advice(module: torch.nn.Module, error: Exception, example: torch.Tensor) -> str:
    """Say what may be wrong, as far as the error tells."""
    if isinstance(error, torch.fx.experimental.symbolic_shapes.GuardOnDataDependentSymNode):
        return "control flow that depends on the image has no graph"
    last = example.shape[3] == 3
    height, width = example.shape[1:3] if last else example.shape[2:]

    def fits(size: tuple[int, int]) -> bool:
        shape = (1, *size, 3) if last else (1, 3, *size)
        try:
            with torch.inference_mode():
                module(torch.zeros(shape))
        except Exception:  # noqa: BLE001 - the module's own code may raise anything
            return False
        return True

    called = f"it is called with one float32 image of {height}x{width} pixels"
    return size_advice((height, width), fits) or called


def _output(value: Any) -> str:
    """Name of an output."""
    if not isinstance(value, fx.Node):
        raise ModelError(f"the module gives {value!r} among its outputs: only tensors can be sent")
    return value.name


class _ExportedModule:
    """Walks an exported program once, and writes its operators as calls."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._constants: dict[str, Array] = {}
        self._calls: list[Call] = []
        self._place = ""

    def graph(self, size: tuple[int, int], scaling: InputScaling) -> Graph:
        state = {**self._program.state_dict, **self._program.constants}
        image = ""
        for spec in self._program.graph_signature.input_specs:
            name = spec.arg.name
            if spec.kind is InputKind.USER_INPUT:
                image = name
            elif spec.target is not None:
                tensor = state[spec.target]
                if not isinstance(tensor, torch.Tensor):
                    raise ModelError(f"{spec.target}: a constant that is not a tensor")
                array = tensor.detach().numpy()
                floating = np.issubdtype(array.dtype, np.floating)
                self._constants[name] = array.astype(np.float32) if floating else array
        outputs: tuple[str, ...] = ()
        for node in self._program.graph.nodes:
            if node.op == "call_function":
                self._convert(node)
            elif node.op == "output":
                outputs = tuple(_output(arg) for arg in node.args[0])
        builder = GraphBuilder(IMAGE, (3, *size), self._constants)
        scale_image(builder, image, scaling)
        for call in self._calls:
            read_call(call, builder)
        for node in self._program.graph.nodes:
            if node.op == "call_function" and isinstance(node.meta.get("val"), torch.Tensor):
                builder.check_shape(node.name, _shape(node))
        return builder.graph(outputs, OPSET)

    def call(self, op: str, inputs: Iterable[str], output: str, **attributes: Any) -> str:
        """Append a call of one output; returns its name."""
        self._calls.append(Call(op, tuple(inputs), (output,), attributes, self._place))
        return output

    def split(self, source: str, name: str, sizes: list[int], axis: int) -> None:
        """Append a split; its outputs are read by their index."""
        outputs = tuple(f"{name}[{index}]" for index in range(len(sizes)))
        attributes = {"split": sizes, "axis": axis}
        self._calls.append(Call("Split", (source,), outputs, attributes, self._place))

    def input(self, value: Any) -> str:
        """Name of an argument: a tensor or a weight as it is, a number as a constant."""
        if value is None:
            return ""
        if isinstance(value, fx.Node):
            return value.name
        name = f"number {value!r}"
        self._constants[name] = np.array(value, np.float32)
        return name

    def constant(self, name: str, array: Array) -> str:
        """Add a constant; returns its name."""
        self._constants[name] = array
        return name

    def _convert(self, node: fx.Node) -> None:
        target = str(node.target)
        self._place = f"node {node.name}{_line_of(node)}"
        if node.target is operator.getitem:
            source, index = node.args
            self.call("Identity", (f"{self.input(source)}[{index}]",), node.name)
            return
        convert = _OPERATORS.get(target)
        if convert is None:
            raise UnsupportedCallError(
                f"operator {target} ({self._place}) is not supported for torch modules: export "
                "the module with torch.onnx.export, and give the file; its tail may hold any "
                "operator"
            )
        convert(self, node)


_Converter = Callable[[_ExportedModule, fx.Node], None]


def _plain(op: str, *names: str) -> _Converter:
    """A call of the same arguments, further numbers being the attributes of these names."""

    def convert(program: _ExportedModule, node: fx.Node) -> None:
        given = dict(zip(names, node.args[1:], strict=False))
        attributes = {name: value for name, value in given.items() if value is not None}
        program.call(op, (program.input(node.args[0]),), node.name, **attributes)

    return convert


def _tensors(op: str) -> _Converter:
    """A call whose arguments are all inputs."""

    def convert(program: _ExportedModule, node: fx.Node) -> None:
        program.call(op, (program.input(value) for value in node.args), node.name)

    return convert


def _fixed(op: str, **attributes: Any) -> _Converter:
    """A call of the first argument with attributes of its own."""

    def convert(program: _ExportedModule, node: fx.Node) -> None:
        program.call(op, (program.input(node.args[0]),), node.name, **attributes)

    return convert


def _conv(program: _ExportedModule, node: fx.Node) -> None:
    source, weight, bias, stride, padding, dilation, groups = _arguments(
        node, (None, None, None, [1, 1], [0, 0], [1, 1], 1)
    )
    program.call(
        "Conv",
        map(program.input, (source, weight, bias)),
        node.name,
        strides=as_pair(stride),
        pads=as_pair(padding) * 2,
        dilations=as_pair(dilation),
        group=groups,
    )


def _conv_transpose(program: _ExportedModule, node: fx.Node) -> None:
    source, weight, bias, stride, padding, extra, groups, dilation = _arguments(
        node, (None, None, None, [1, 1], [0, 0], [0, 0], 1, [1, 1])
    )
    program.call(
        "ConvTranspose",
        map(program.input, (source, weight, bias)),
        node.name,
        strides=as_pair(stride),
        pads=as_pair(padding) * 2,
        output_padding=as_pair(extra),
        dilations=as_pair(dilation),
        group=groups,
    )


def _linear(program: _ExportedModule, node: fx.Node) -> None:
    source, weight, bias = _arguments(node, (None, None, None))
    inputs = map(program.input, (source, weight, bias))
    program.call("Gemm", inputs, node.name, transB=1)


def _batch_norm(program: _ExportedModule, node: fx.Node) -> None:
    source, weight, bias, mean, variance, training, _, epsilon, _ = _arguments(node, (None,) * 9)
    if training:
        raise ModelError(f"{node.name}: batch normalisation in training mode")
    if mean is None or variance is None:
        raise ModelError(f"{node.name}: batch normalisation without running statistics")
    channels = _shape(node)[0]
    inputs = [
        program.input(source),
        program.input(weight)
        or program.constant(f"{node.name}.ones", np.ones(channels, np.float32)),
        program.input(bias)
        or program.constant(f"{node.name}.zeros", np.zeros(channels, np.float32)),
        program.input(mean),
        program.input(variance),
    ]
    program.call("BatchNormalization", inputs, node.name, epsilon=float(epsilon))


def _silu(program: _ExportedModule, node: fx.Node) -> None:
    source = program.input(node.args[0])
    gate = program.call("Sigmoid", (source,), f"{node.name}.gate")
    program.call("Mul", (source, gate), node.name)


def _gelu(program: _ExportedModule, node: fx.Node) -> None:
    approximate = node.kwargs.get("approximate", "none")
    program.call("Gelu", (program.input(node.args[0]),), node.name, approximate=approximate)


def _clamp(program: _ExportedModule, node: fx.Node) -> None:
    source, low, high = _arguments(node, (None, None, None))
    bounds = (program.input(bound) for bound in (low, high))
    program.call("Clip", (program.input(source), *bounds), node.name)


def _hardtanh(program: _ExportedModule, node: fx.Node) -> None:
    source, low, high = _arguments(node, (None, -1.0, 1.0))
    bounds = (program.input(bound) for bound in (low, high))
    program.call("Clip", (program.input(source), *bounds), node.name)


def _pad(program: _ExportedModule, node: fx.Node) -> None:
    source, pads, *rest = _arguments(node, (None, None, "constant", None))
    value = rest[-1] if rest[0] == "constant" else rest[0]
    if len(pads) not in (2, 4):
        raise UnsupportedCallError(f"{node.name}: padding of other axes than height and width")
    left, right, top, bottom = (*pads, 0, 0)[:4]
    program.call(
        "Pad",
        (program.input(source),),
        node.name,
        pads=[0, 0, top, left, 0, 0, bottom, right],
        value=float(value or 0.0),
    )


def _max_pool(program: _ExportedModule, node: fx.Node) -> None:
    source, kernel, stride, padding, dilation, ceil_mode = _arguments(
        node, (None, None, [], [0, 0], [1, 1], False)
    )
    program.call(
        "MaxPool",
        (program.input(source),),
        node.name,
        kernel_shape=as_pair(kernel),
        strides=as_pair(stride or kernel),
        pads=as_pair(padding) * 2,
        dilations=as_pair(dilation),
        ceil_mode=int(ceil_mode),
    )


def _average_pool(program: _ExportedModule, node: fx.Node) -> None:
    source, kernel, stride, padding, ceil_mode, counts_padding, divisor = _arguments(
        node, (None, None, [], [0, 0], False, True, None)
    )
    if divisor is not None:
        raise UnsupportedCallError(f"{node.name}: average pooling with a divisor of its own")
    program.call(
        "AveragePool",
        (program.input(source),),
        node.name,
        kernel_shape=as_pair(kernel),
        strides=as_pair(stride or kernel),
        pads=as_pair(padding) * 2,
        ceil_mode=int(ceil_mode),
        count_include_pad=int(counts_padding and any(as_pair(padding))),
    )


def _adaptive_pool(program: _ExportedModule, node: fx.Node) -> None:
    source = node.args[0]
    before, after = _shape(source)[1:], _shape(node)[1:]
    kernel = tuple(size // made for size, made in zip(before, after, strict=True))
    if tuple(k * made for k, made in zip(kernel, after, strict=True)) != before:
        raise UnsupportedCallError(f"{node.name}: adaptive pooling to sizes that do not divide")
    inputs = (program.input(source),)
    program.call("AveragePool", inputs, node.name, kernel_shape=kernel, strides=kernel)


def _mean(program: _ExportedModule, node: fx.Node) -> None:
    source, axes, keepdims = _arguments(node, (None, None, False))
    inputs = (program.input(source),)
    program.call("ReduceMean", inputs, node.name, axes=axes, keepdims=int(keepdims))


def _resize(mode: str) -> _Converter:
    def convert(program: _ExportedModule, node: fx.Node) -> None:
        sizes = program.constant(f"{node.name}.sizes", np.array([1, *_shape(node)], np.int64))
        aligned = mode == "linear" and bool(node.args[2])
        program.call(
            "Resize",
            (program.input(node.args[0]), "", "", sizes),
            node.name,
            mode=mode,
            coordinate_transformation_mode="align_corners" if aligned else "half_pixel",
        )

    return convert


def _concat(program: _ExportedModule, node: fx.Node) -> None:
    tensors, axis = _arguments(node, (None, 0))
    program.call("Concat", (program.input(tensor) for tensor in tensors), node.name, axis=axis)


def _slice(program: _ExportedModule, node: fx.Node) -> None:
    source, axis, start, stop, step = _arguments(node, (None, 0, 0, None, 1))
    bounds = [
        program.constant(f"{node.name}.{name}", np.array([value], np.int64))
        for name, value in (
            ("start", start or 0),
            ("stop", np.iinfo(np.int64).max if stop is None else stop),
            ("axis", axis),
            ("step", step),
        )
    ]
    program.call("Slice", (program.input(source), *bounds), node.name)


def _split(program: _ExportedModule, node: fx.Node) -> None:
    source, wanted, axis = _arguments(node, (None, None, 0))
    parts = [int(part.shape[axis]) for part in node.meta["val"]]
    del wanted
    program.split(program.input(source), node.name, parts, axis)


def _reshape(program: _ExportedModule, node: fx.Node) -> None:
    shape = program.constant(f"{node.name}.shape", np.array(list(node.meta["val"].shape), np.int64))
    program.call("Reshape", (program.input(node.args[0]), shape), node.name)


def _permute(program: _ExportedModule, node: fx.Node) -> None:
    source, order = _arguments(node, (None, ()))
    inputs = (program.input(source),)
    program.call("Transpose", inputs, node.name, perm=[axis % len(order) for axis in order])


def _transpose(program: _ExportedModule, node: fx.Node) -> None:
    source, first, second = _arguments(node, (None, 0, 0))
    order = list(range(len(node.meta["val"].shape)))
    order[first], order[second] = order[second], order[first]
    program.call("Transpose", (program.input(source),), node.name, perm=order)


def _pixel_shuffle(program: _ExportedModule, node: fx.Node) -> None:
    source, factor = node.args
    program.call("DepthToSpace", (program.input(source),), node.name, blocksize=factor, mode="CRD")


def _softmax(program: _ExportedModule, node: fx.Node) -> None:
    program.call("Softmax", (program.input(node.args[0]),), node.name, axis=node.args[1])


_OPERATORS: dict[str, _Converter] = {
    "aten.abs.default": _plain("Abs"),
    "aten.adaptive_avg_pool2d.default": _adaptive_pool,
    "aten.add.Tensor": _tensors("Add"),
    "aten.add_.Tensor": _tensors("Add"),
    "aten.avg_pool2d.default": _average_pool,
    "aten.batch_norm.default": _batch_norm,
    "aten.cat.default": _concat,
    "aten.chunk.default": _split,
    "aten.clamp.default": _clamp,
    "aten.clone.default": _fixed("Identity"),
    "aten.constant_pad_nd.default": _pad,
    "aten.contiguous.default": _fixed("Identity"),
    "aten.conv2d.default": _conv,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.div.Tensor": _tensors("Div"),
    "aten.dropout.default": _fixed("Identity"),
    "aten.elu.default": _plain("Elu", "alpha"),
    "aten.exp.default": _plain("Exp"),
    "aten.flatten.using_ints": _reshape,
    "aten.gelu.default": _gelu,
    "aten.hardsigmoid.default": _fixed("HardSigmoid", alpha=1 / 6, beta=0.5),
    "aten.hardswish.default": _fixed("HardSwish"),
    "aten.hardswish_.default": _fixed("HardSwish"),
    "aten.hardtanh.default": _hardtanh,
    "aten.hardtanh_.default": _hardtanh,
    "aten.leaky_relu.default": _plain("LeakyRelu", "alpha"),
    "aten.leaky_relu_.default": _plain("LeakyRelu", "alpha"),
    "aten.linear.default": _linear,
    "aten.max_pool2d.default": _max_pool,
    "aten.mean.dim": _mean,
    "aten.mish.default": _plain("Mish"),
    "aten.mul.Tensor": _tensors("Mul"),
    "aten.neg.default": _plain("Neg"),
    "aten.pad.default": _pad,
    "aten.permute.default": _permute,
    "aten.pixel_shuffle.default": _pixel_shuffle,
    "aten.pow.Tensor_Scalar": _tensors("Pow"),
    "aten.prelu.default": _tensors("PRelu"),
    "aten.relu.default": _plain("Relu"),
    "aten.relu6.default": _fixed("Clip", min=0.0, max=6.0),
    "aten.relu_.default": _plain("Relu"),
    "aten.reshape.default": _reshape,
    "aten.sigmoid.default": _plain("Sigmoid"),
    "aten.silu.default": _silu,
    "aten.silu_.default": _silu,
    "aten.slice.Tensor": _slice,
    "aten.softmax.int": _softmax,
    "aten.softplus.default": _plain("Softplus"),
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.sqrt.default": _plain("Sqrt"),
    "aten.squeeze.dims": _reshape,
    "aten.sub.Tensor": _tensors("Sub"),
    "aten.tanh.default": _plain("Tanh"),
    "aten.transpose.int": _transpose,
    "aten.unsqueeze.default": _reshape,
    "aten.upsample_bilinear2d.vec": _resize("linear"),
    "aten.upsample_nearest2d.vec": _resize("nearest"),
    "aten.view.default": _reshape,
}


def _arguments(node: fx.Node, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments, completed by defaults; keyword arguments are none in ATen's core."""
    return (*node.args, *defaults[len(node.args) :])


def _shape(node: Any) -> Shape:
    """The shape of a node's tensor without the batch."""
    return tuple(int(size) for size in node.meta["val"].shape)[1:]
