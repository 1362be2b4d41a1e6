"""Import of an ONNX file into the graph.

    file -> one image of a fixed size -> one opset -> simplified -> calls -> graph

The file is a stranger's: its size, the place of its weights, its inputs and operators are checked.
What is simplified is compared with the file as it was, on one seeded input. Operators without an
entry are taken over as they are; tails may hold them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import external_data_helper, helper, inliner, numpy_helper, version_converter

from common.errors import ModelError
from common.runtime.registry import open_model
from search.network.graph import Graph
from search.network.importers.calls import Call, GraphBuilder, UnsupportedCallError
from search.network.importers.onnx_operators import read_call
from search.network.importers.scaling import InputScaling, scale_image, size_advice
from search.network.onnx_builder import OPSET

MAX_BYTES = 2**31 - 1
"""Largest model, its weights included: a limit of protobuf's."""

_CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A checked ONNX model of one image of a fixed size.

    Attributes:
        model: The model, simplified.
        input: Name of the image.
        input_shape: Its shape, with the batch of 1.
        outputs: Names of what it makes.
        opset: Version of its operators.
    """

    model: onnx.ModelProto
    input: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    opset: int


def read_onnx(
    path: Path, shape: Sequence[int] | None = None, size: tuple[int, int] | None = None
) -> OnnxNetwork:
    """Read, check and simplify a model.

    Args:
        path: The file; weights outside of it lie in its folder.
        shape: Shape of the input, with the batch, in place of the declared one.
        size: (height, width) of the image, where neither is fixed by what is declared alone.

    Raises:
        ModelError: If it is no model that can be worked with; the message says what to do.
    """
    model = _load(path)
    image = _image_of(path, model)
    declared = _declared(image)
    wanted = shape if size is None else _resized(path, image.name, declared, shape, size)
    chosen = _checked_shape(path, image.name, declared, wanted)
    _set_shape(model, image.name, chosen)
    _check_operators(path, model)
    if size is not None:
        _check_size(path, model, image.name, chosen)
    plain = _converted(path, model)
    slimmed = _simplified(path, plain)
    _check_operators(path, slimmed)
    _compare(path, model, slimmed, image.name, chosen)
    outputs = tuple(output.name for output in slimmed.graph.output)
    return OnnxNetwork(slimmed, image.name, chosen, outputs, _opset(slimmed))


def import_onnx(network: OnnxNetwork, scaling: InputScaling) -> Graph:
    """The graph of a model, from an image (N, 3, H, W) in [0, 1] on.

    Raises:
        ModelError: If an output does not depend on the image.
    """
    constants = {
        each.name: np.array(numpy_helper.to_array(each)) for each in network.model.graph.initializer
    }
    declared = _declared_shapes(network.model)
    _, *size = network.input_shape
    height, width = size[:2] if scaling.channels_last else size[1:]
    builder = GraphBuilder("image", (3, height, width), constants, declared)
    scale_image(builder, network.input, scaling)
    for index, node in enumerate(network.model.graph.node):
        call = _call(node, index)
        try:
            read_call(call, builder)
        except UnsupportedCallError as reason:
            builder.add_opaque(call, reason)
    return builder.graph(network.outputs, max(network.opset, OPSET))


def _call(node: onnx.NodeProto, index: int) -> Call:
    attributes = {
        attribute.name: _plain(helper.get_attribute_value(attribute))
        for attribute in node.attribute
    }
    op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
    place = f"node {node.name or index}"
    return Call(
        op,
        tuple(node.input),
        tuple(node.output),
        attributes,
        place,
        node.SerializeToString(deterministic=True),
    )


def _plain(value: Any) -> Any:
    """An attribute's value: text as text, arrays as arrays."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _load(path: Path) -> onnx.ModelProto:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path}: over 2 GiB: keep its weights in a file of their own")
        model = onnx.load_model_from_string(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file") from error
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX file")
    if model.ir_version > onnx.IR_VERSION:
        raise ModelError(
            f"{path}: it has ONNX IR version {model.ir_version}, at most {onnx.IR_VERSION} is "
            "read here: export it again with an older one"
        )
    newest = onnx.defs.onnx_opset_version()
    if _opset(model) > newest:
        raise ModelError(
            f"{path}: it has opset {_opset(model)}, at most {newest} is read here: export it "
            "again with an older one"
        )
    _load_weights(path, model)
    return model


def _load_weights(path: Path, model: onnx.ModelProto) -> None:
    """Read weights outside of the file, from its folder only."""
    folder = path.parent.resolve()
    outside = [t for t in model.graph.initializer if external_data_helper.uses_external_data(t)]
    total = path.stat().st_size
    for tensor in outside:
        location = external_data_helper.ExternalDataInfo(tensor).location
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise ModelError(f"{path}: its weights {location} lie outside of its folder")
        if not file.is_file():
            raise ModelError(f"{path}: its weights {location} are missing: put them beside it")
    total += sum(
        (folder / location).stat().st_size
        for location in {external_data_helper.ExternalDataInfo(t).location for t in outside}
    )
    if total > MAX_BYTES:
        raise ModelError(f"{path}: over 2 GiB with its weights")
    try:
        for tensor in outside:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its weights cannot be read: {error}") from error


def _image_of(path: Path, model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input."""
    given = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in given]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelError(f"{path}: it has {len(inputs)} inputs ({names}): one image is expected")
    (image,) = inputs
    if image.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(image.type.tensor_type.elem_type).lower()
        raise ModelError(f"{path}: its input {image.name} is {kind}: float32 is expected")
    return image


def _declared(image: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The declared shape; 0 for what varies."""
    return tuple(
        dimension.dim_value if dimension.HasField("dim_value") else 0
        for dimension in image.type.tensor_type.shape.dim
    )


def _resized(
    path: Path,
    name: str,
    declared: Sequence[int],
    wanted: Sequence[int] | None,
    size: tuple[int, int],
) -> tuple[int, ...]:
    """The wanted or declared shape with another height and width."""
    shape = list(declared if wanted is None else wanted)
    if len(shape) != 4:
        return tuple(shape)
    start = 1 if shape[1] != 3 and shape[3] == 3 else 2
    present = tuple(shape[start : start + 2])
    shape[start : start + 2] = size
    if wanted is None and min(present) > 0 and present != size:
        found = "x".join(map(str, declared))
        asked = "x".join(map(str, (shape[0] or 1, *shape[1:])))
        raise ModelError(
            f"{path}: its input {name} is {found}, and no other size: export it with a dynamic "
            f"one, or give --input {name}={asked} if what it declares is wrong"
        )
    return (shape[0] or 1, *shape[1:])


def _checked_shape(
    path: Path, name: str, declared: Sequence[int], wanted: Sequence[int] | None
) -> tuple[int, ...]:
    shape = tuple(declared if wanted is None else wanted)
    if wanted is None and shape and shape[0] == 0:
        shape = (1, *shape[1:])
    advice = f"give --input {name}=1x3x416x416, or the size that it was trained for"
    shown = "x".join(str(size) if size > 0 else "?" for size in declared)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ModelError(
            f"{path}: its input {name} is {shown}: one image of 3 channels is expected"
        )
    if shape[0] != 1:
        raise ModelError(f"{path}: its input {name} is {shown}, a batch of {shape[0]}: {advice}")
    if min(shape) < 1:
        raise ModelError(f"{path}: its input {name} is {shown}, of no fixed size: {advice}")
    if math.prod(shape) > 3 * 4096**2:
        raise ModelError(f"{path}: its input {name} is {shown}: at most 4096x4096 pixels are taken")
    return shape


def _set_shape(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> None:
    """Declare the input's shape, and forget what was declared of all others."""
    for value in model.graph.input:
        if value.name == name:
            dimensions = value.type.tensor_type.shape
            del dimensions.dim[:]
            for size in shape:
                dimensions.dim.add().dim_value = size
    del model.graph.value_info[:]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")


def _check_size(path: Path, model: onnx.ModelProto, name: str, shape: tuple[int, ...]) -> None:
    """Require a model to take an image of the shape that is set; says which one it would take."""
    start = 1 if shape[1] != 3 else 2

    def fits(size: tuple[int, int]) -> bool:
        other = (*shape[:start], *size, *shape[start + 2 :])
        _set_shape(model, name, other)
        try:
            _run(path, model, name, np.zeros(other, np.float32))
        except ModelError:
            return False
        return True

    size = (shape[start], shape[start + 1])
    if not fits(size) and (advice := size_advice(size, fits)):
        raise ModelError(f"{path}: {advice}")
    _set_shape(model, name, shape)


def _check_operators(path: Path, model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    for index, node in enumerate(model.graph.node):
        where = f"node {node.name or index}"
        if (node.domain, node.op_type) in local:
            continue
        if node.op_type in _CONTROL_FLOW and not node.domain:
            raise ModelError(
                f"{path}: {where} is control flow ({node.op_type}): export the model without it, "
                "or with its condition fixed"
            )
        if node.domain not in _DOMAINS:
            raise ModelError(
                f"{path}: {where} is a custom operator ({node.domain}.{node.op_type}): export the "
                "model without it"
            )


def _converted(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in the version of operators that tails are written in."""
    try:
        plain = inliner.inline_local_functions(model) if model.functions else model
        if _opset(plain) >= OPSET:
            return plain
        converted: onnx.ModelProto = version_converter.convert_version(plain, OPSET)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{path}: its operators cannot be converted from opset {_opset(model)} to {OPSET}; "
            f"export it again with opset {OPSET}: {reason}"
        ) from error
    return converted


def _simplified(path: Path, model: onnx.ModelProto) -> onnx.ModelProto:
    try:
        slimmed: onnx.ModelProto = onnxslim.slim(model)
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: it cannot be simplified by onnxslim: {reason}") from error
    return slimmed


def _compare(
    path: Path, before: onnx.ModelProto, after: onnx.ModelProto, name: str, shape: Sequence[int]
) -> None:
    """Require two models to compute the same of one seeded input."""
    image = np.random.default_rng(0).random(shape, np.float32)
    expected, found = (_run(path, model, name, image) for model in (before, after))
    for output, want, got in zip(before.graph.output, expected, found, strict=True):
        reach = float(np.abs(want).max(initial=0.0)) or 1.0
        if want.shape != got.shape or not np.allclose(got, want, 0, _TOLERANCE * reach):
            raise ModelError(f"{path}: output {output.name} is another one when simplified")


def _run(
    path: Path, model: onnx.ModelProto, name: str, image: NDArray[np.float32]
) -> list[NDArray[Any]]:
    try:
        return open_model(model.SerializeToString()).run({name: image})
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _declared_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of float32 tensors that are known, with the batch."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {}
    for value in (*inferred.graph.value_info, *inferred.graph.output):
        kind = value.type.tensor_type
        if kind.elem_type == onnx.TensorProto.FLOAT and kind.HasField("shape"):
            shape = _declared(value)
            if all(size > 0 for size in shape):
                shapes[value.name] = shape
    return shapes


def _opset(model: onnx.ModelProto) -> int:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max(versions, default=0)
