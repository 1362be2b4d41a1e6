"""Weights from outside put into an ONNX model, for runtimes that read them from the model alone.

    ModelProto.graph.initializer[name]: external -> raw_data

An edge has no onnx package, so the five messages that matter are described here, by the numbers of
their fields in onnx.proto. Everything else of a model is kept as it is: protobuf carries fields
that it does not know from the parser to the serialiser.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from common.errors import ModelError
from common.runtime.base import Array

_PACKAGE: Final = "splitpoint.onnx"
_Field = descriptor_pb2.FieldDescriptorProto
_ONE, _MANY = _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED
_FIELDS: Final[Mapping[str, list[tuple[str, int, Any, Any]]]] = {
    "Model": [("graph", 7, _ONE, "Graph")],
    "Graph": [("initializer", 5, _MANY, "Tensor")],
    "Tensor": [
        ("dims", 1, _MANY, _Field.TYPE_INT64),
        ("name", 8, _ONE, _Field.TYPE_STRING),
        ("raw_data", 9, _ONE, _Field.TYPE_BYTES),
        ("external_data", 13, _MANY, "Entry"),
        ("data_location", 14, _ONE, _Field.TYPE_INT32),
    ],
    "Entry": [],
}


def put_weights(model: bytes, weights: Mapping[str, Array]) -> bytes:
    """Replace the external tensors that have these names by their values.

    Args:
        model: An ONNX model.
        weights: Tensors by name, of the types that the model says.

    Raises:
        ModelError: If it is no model, or a tensor has another shape in it.
    """
    proto = _model_class()()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise ModelError(f"model in memory: not an ONNX model: {error}") from error
    for tensor in proto.graph.initializer:
        values = weights.get(tensor.name)
        if values is None:
            continue
        if tuple(tensor.dims) != values.shape:
            raise ModelError(
                f"{tensor.name}: the model expects {tuple(tensor.dims)}, its weights have "
                f"{values.shape}; search again"
            )
        tensor.raw_data = np.ascontiguousarray(values).tobytes()
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    data: bytes = proto.SerializeToString()
    return data


@cache
def _model_class() -> Any:
    """Class of a ModelProto of which only the fields above are known."""
    file = descriptor_pb2.FileDescriptorProto(
        name="splitpoint/onnx_weights.proto", package=_PACKAGE, syntax="proto2"
    )
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, label, kind in fields:
            described = message.field.add(name=field, number=number, label=label)
            if isinstance(kind, str):
                described.type = _Field.TYPE_MESSAGE
                described.type_name = f".{_PACKAGE}.{kind}"
            else:
                described.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Model"))
