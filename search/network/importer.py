"""Import of a torch module into the graph, by `torch.export`.

`torch.export` traces the module into ATen operators with static shapes; each supported operator
becomes one node. Any other operator is refused by name: nothing is dropped in silence.
"""

import contextlib
import io
import logging
import math
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx
from torch.export.graph_signature import InputKind

from common.errors import ModelError
from search.network.graph import Activation, Graph, Node, Shape
from search.network.operators.registry import check_shapes

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in [^\n]+\n\s*([^\n]+)')


def import_module(module: torch.nn.Module, input_size: tuple[int, int]) -> Graph:
    """Export `module`, which maps one (N, 3, H, W) image to one or several (N, C, h, w) tensors.

    Args:
        module: In eval mode.
        input_size: (H, W).

    Raises:
        ModelError: If the module cannot be exported or holds an operator that the graph does not
            support.
    """
    if module.training:
        raise ModelError("the module is in training mode: call .eval() first")
    example = torch.zeros(1, 3, *input_size)
    try:
        with _quiet():
            program = torch.export.export(module, (example,))
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"the module cannot be exported{_line_of_error(error)}: control flow that depends on "
            f"the image has no graph; torch.export says: {reason}"
        ) from error
    return _Importer(program).graph()


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


class _Importer:
    """Walks an exported program once; keeps a node per tensor and a value per constant."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self._program = program
        self._nodes: list[Node] = []
        self._names: dict[str, str] = {}
        self._pending_pads: dict[str, tuple[str, tuple[int, int, int, int]]] = {}
        self._constants: dict[str, torch.Tensor] = {}

    def graph(self) -> Graph:
        state = {**self._program.state_dict, **self._program.constants}
        for spec in self._program.graph_signature.input_specs:
            name = spec.arg.name
            if spec.kind is InputKind.USER_INPUT:
                self._names[name] = name
            elif spec.target is not None:
                tensor = state[spec.target]
                if not isinstance(tensor, torch.Tensor):
                    raise ModelError(f"{spec.target}: a constant that is not a tensor")
                self._constants[name] = tensor.detach()
        outputs: tuple[str, ...] = ()
        for node in self._program.graph.nodes:
            if node.op == "placeholder" and node.name in self._names:
                self._nodes.append(Node(node.name, "input", (), _shape(node)))
            elif node.op == "call_function":
                self._operator(node)
            elif node.op == "output":
                outputs = tuple(self._names[arg.name] for arg in node.args[0])
        graph = Graph(tuple(self._nodes), outputs)
        check_shapes(graph)
        return graph

    def _operator(self, node: fx.Node) -> None:
        target = str(node.target)
        convert = _OPERATORS.get(target)
        if convert is None:
            raise ModelError(
                f"operator {target} (node {node.name}){_line_of(node)} is not supported; "
                "known are " + ", ".join(sorted(_OPERATORS))
            )
        convert(self, node)

    def tensor(self, node: Any) -> str:
        """Name of the graph's tensor behind an argument."""
        if not isinstance(node, fx.Node) or node.name not in self._names:
            if isinstance(node, fx.Node) and node.name in self._pending_pads:
                raise ModelError(f"{node.name}: padding is supported in front of max pooling only")
            raise ModelError(f"{node}: expected a tensor that depends on the image")
        return self._names[node.name]

    def constant(self, node: Any) -> NDArray[np.float32] | None:
        """Value of a weight argument."""
        if node is None:
            return None
        if not isinstance(node, fx.Node) or node.name not in self._constants:
            raise ModelError(f"{node}: expected a weight")
        value: NDArray[np.float32] = self._constants[node.name].to(torch.float32).numpy()
        return value

    def add(self, node: fx.Node, op: Any, inputs: tuple[str, ...], **fields: Any) -> None:
        """Append a graph node for an exported one."""
        self._names[node.name] = node.name
        self._nodes.append(Node(node.name, op, inputs, _shape(node), **fields))

    def conv(self, node: fx.Node) -> None:
        source, weight, bias, stride, padding, dilation, groups = _arguments(
            node, (None, None, None, [1, 1], [0, 0], [1, 1], 1)
        )
        if set(_pair(dilation)) != {1}:
            raise ModelError(f"{node.name}: dilated convolutions are not supported")
        top, left = _pair(padding)
        attributes = {
            "stride": _pair(stride),
            "pads": (top, left, top, left),
            "groups": int(groups),
        }
        self.add(
            node,
            "conv",
            (self.tensor(source),),
            attributes=attributes,
            weight=self.constant(weight),
            bias=self.constant(bias),
        )

    def batch_norm(self, node: fx.Node) -> None:
        source, weight, bias, mean, var, training, _, eps, _ = _arguments(node, (None,) * 9)
        if training:
            raise ModelError(f"{node.name}: batch normalisation in training mode")
        mean_, var_ = self.constant(mean), self.constant(var)
        if mean_ is None or var_ is None:
            raise ModelError(f"{node.name}: batch normalisation without running statistics")
        gain = self.constant(weight)
        scale = (np.ones_like(var_) if gain is None else gain) / np.sqrt(var_ + float(eps))
        shift = self.constant(bias)
        offset = (0.0 if shift is None else shift) - mean_ * scale
        self.add(
            node,
            "batch_norm",
            (self.tensor(source),),
            weight=scale.astype(np.float32),
            bias=np.asarray(offset, np.float32),
        )

    def leaky_relu(self, node: fx.Node) -> None:
        source, slope = _arguments(node, (None, 0.01))
        self.add(
            node,
            "activation",
            (self.tensor(source),),
            activation=Activation("leaky_relu", float(slope)),
        )

    def pad(self, node: fx.Node) -> None:
        source, pads, *rest = _arguments(node, (None, None, "constant", None))
        value = rest[-1] if rest[0] == "constant" else rest[0]
        if len(pads) != 4 or value != -math.inf:
            raise ModelError(
                f"{node.name}: only padding by -inf in front of max pooling is supported"
            )
        left, right, top, bottom = pads
        self._pending_pads[node.name] = (self.tensor(source), (top, left, bottom, right))

    def max_pool(self, node: fx.Node) -> None:
        source, kernel, stride, padding, dilation, ceil_mode = _arguments(
            node, (None, None, [], [0, 0], [1, 1], False)
        )
        if set(_pair(dilation)) != {1} or ceil_mode:
            raise ModelError(f"{node.name}: dilated or ceiling max pooling is not supported")
        top, left = _pair(padding)
        pads = (top, left, top, left)
        if isinstance(source, fx.Node) and source.name in self._pending_pads:
            tensor, before = self._pending_pads[source.name]
            pads = (
                pads[0] + before[0],
                pads[1] + before[1],
                pads[2] + before[2],
                pads[3] + before[3],
            )
        else:
            tensor = self.tensor(source)
        attributes = {"kernel": _pair(kernel), "stride": _pair(stride or kernel), "pads": pads}
        self.add(node, "max_pool", (tensor,), attributes=attributes)

    def average_pool(self, node: fx.Node) -> None:
        source, kernel, stride, padding, ceil_mode, count_padding, divisor = _arguments(
            node, (None, None, [], [0, 0], False, True, None)
        )
        top, left = _pair(padding)
        if ceil_mode or divisor is not None or (count_padding and (top, left) != (0, 0)):
            raise ModelError(
                f"{node.name}: average pooling is supported without ceil_mode, divisor_override "
                "and padding that counts"
            )
        attributes = {
            "kernel": _pair(kernel),
            "stride": _pair(stride or kernel),
            "pads": (top, left, top, left),
        }
        self.add(node, "average_pool", (self.tensor(source),), attributes=attributes)

    def upsample(self, node: fx.Node) -> None:
        source = self.tensor(node.args[0])
        before = next(n for n in self._nodes if n.name == source).shape
        after = _shape(node)
        factor = after[1] // before[1]
        if after[1] != before[1] * factor or after[2] != before[2] * factor:
            raise ModelError(f"{node.name}: upsampling by other than one whole factor")
        self.add(node, "upsample", (source,), attributes={"factor": factor})

    def concat(self, node: fx.Node) -> None:
        tensors, axis = _arguments(node, (None, 0))
        if axis != 1:
            raise ModelError(f"{node.name}: concatenation along other than the channels")
        self.add(node, "concat", tuple(self.tensor(tensor) for tensor in tensors))

    def sum(self, node: fx.Node) -> None:
        left, right = node.args
        if _shape(node) != _shape(left) or _shape(node) != _shape(right):
            raise ModelError(f"{node.name}: addition of different shapes")
        self.add(node, "add", (self.tensor(left), self.tensor(right)))

    def slice(self, node: fx.Node) -> None:
        source, axis, start, stop, step = _arguments(node, (None, 0, 0, None, 1))
        if axis != 1 or step != 1:
            raise ModelError(f"{node.name}: slices of other than whole channels")
        channels = _shape(source)[0]
        attributes = {"start": int(start or 0), "stop": min(int(stop or channels), channels)}
        self.add(node, "slice", (self.tensor(source),), attributes=attributes)

    def identity(self, node: fx.Node) -> None:
        self._names[node.name] = self.tensor(node.args[0])


def _simple(kind: Any) -> Callable[[_Importer, fx.Node], None]:
    def convert(importer: _Importer, node: fx.Node) -> None:
        source = importer.tensor(node.args[0])
        importer.add(node, "activation", (source,), activation=Activation(kind))

    return convert


_OPERATORS: dict[str, Callable[[_Importer, fx.Node], None]] = {
    "aten.conv2d.default": _Importer.conv,
    "aten.batch_norm.default": _Importer.batch_norm,
    "aten.leaky_relu.default": _Importer.leaky_relu,
    "aten.relu.default": _simple("relu"),
    "aten.sigmoid.default": _simple("sigmoid"),
    "aten.silu.default": _simple("silu"),
    "aten.pad.default": _Importer.pad,
    "aten.constant_pad_nd.default": _Importer.pad,
    "aten.max_pool2d.default": _Importer.max_pool,
    "aten.avg_pool2d.default": _Importer.average_pool,
    "aten.upsample_nearest2d.vec": _Importer.upsample,
    "aten.cat.default": _Importer.concat,
    "aten.add.Tensor": _Importer.sum,
    "aten.slice.Tensor": _Importer.slice,
    "aten.dropout.default": _Importer.identity,
    "aten.contiguous.default": _Importer.identity,
}


def _arguments(node: fx.Node, defaults: tuple[Any, ...]) -> tuple[Any, ...]:
    """Positional arguments, completed by defaults; keyword arguments are none in ATen's core."""
    return (*node.args, *defaults[len(node.args) :])


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    values = [int(v) for v in value]
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def _shape(node: Any) -> Shape:
    shape = tuple(int(size) for size in node.meta["val"].shape)
    if len(shape) != 4:
        raise ModelError(f"{node.name}: expected a (N, C, H, W) tensor, found shape {shape}")
    return shape[1], shape[2], shape[3]
