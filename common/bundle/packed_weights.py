"""Weights of fewer than 8 bits as a file: packed as stored and sent, unpacked to int8 to run.

    "SPPW", version, bytes of the directory          <4sHI
    directory: JSON [{"name", "bits", "shape"}, ...]
    for each tensor its packed integers, offset by 2^(bits - 1)

Most CPUs compute in 8 bits, so a weight of b bits runs in an 8-bit container on its b-bit grid, bit
for bit what the search evaluated; what it saves is storage, download and, on devices that unpack as
they go, memory.
"""

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from common.codec.packed import Packed
from common.errors import BundleError, PayloadError

Weights = NDArray[np.int8]

MAX_ELEMENTS: Final = 1 << 28
"""Most elements of all tensors together: a directory may not ask for more memory."""

_MAGIC: Final = b"SPPW"
_HEADER: Final = struct.Struct("<4sHI")
_Size = Annotated[int, Field(ge=1, le=1 << 20)]


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=200)
    bits: int = Field(ge=2, le=8)
    shape: list[_Size] = Field(min_length=1, max_length=4)


_DIRECTORY = TypeAdapter(list[_Entry])


@dataclass(frozen=True, eq=False)
class Packable:
    """Integers of `bits` bits: -2^(bits - 1) to 2^(bits - 1) - 1."""

    values: Weights
    bits: int


def pack_weights(tensors: Mapping[str, Packable]) -> bytes:
    """The file that holds some tensors."""
    entries, parts = [], []
    for name, tensor in tensors.items():
        entries.append(_Entry(name=name, bits=tensor.bits, shape=list(tensor.values.shape)))
        symbols = (tensor.values.astype(np.int16) + (1 << tensor.bits - 1)).astype(np.uint8)
        parts.append(Packed().encode(symbols, tensor.bits))
    directory = _DIRECTORY.dump_json(entries)
    return b"".join((_HEADER.pack(_MAGIC, 1, len(directory)), directory, *parts))


def unpack_weights(data: bytes, name: str) -> dict[str, Weights]:
    """The tensors of a file, called `name` in errors.

    Raises:
        BundleError: If it is no such file.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise BundleError(f"{name}: no packed weights; search again")
    _, version, length = _HEADER.unpack_from(data)
    if version != 1:
        raise BundleError(f"{name}: packed weights of version {version}, this reads version 1")
    start = _HEADER.size + length
    try:
        entries = _DIRECTORY.validate_json(data[_HEADER.size : start])
    except ValidationError as error:
        raise BundleError(f"{name}: its directory is damaged: {error.errors()[0]['msg']}") from None
    if sum(math.prod(entry.shape) for entry in entries) > MAX_ELEMENTS:
        raise BundleError(f"{name}: promises more than {MAX_ELEMENTS} weights")
    tensors: dict[str, Weights] = {}
    for entry in entries:
        size = Packed().size(math.prod(entry.shape), entry.bits)
        try:
            flat = Packed().decode(
                data[start : start + size], (1, 1, math.prod(entry.shape)), entry.bits
            )
        except PayloadError as error:
            raise BundleError(f"{name}: {entry.name}: {error}") from error
        signed = flat.astype(np.int16) - (1 << entry.bits - 1)
        tensors[entry.name] = signed.astype(np.int8).reshape(entry.shape)
        start += size
    if start != len(data) or len(tensors) != len(entries):
        raise BundleError(f"{name}: its length does not fit its directory; download it again")
    return tensors
