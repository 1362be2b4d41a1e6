"""The model of context coding, as a file of the bundle: what it says is explained in context.py."""

import math
import struct
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import BundleError

PRECISION: Final = 15
"""Bits of a probability."""
UNIT: Final = 32
"""Activities, weights and biases are in 1/32 nat."""
CLASSES: Final = 64
OFFSET: Final = 320
SHIFT: Final = 3
"""Class of an activity a: (a + OFFSET) >> SHIFT, kept within the classes."""
MAX_MAGNITUDE: Final = 3
NEIGHBOURS: Final = ((0, 0), (0, -1), (-1, -1), (-1, 0), (-1, 1))
"""Offset (row, column) of each neighbour from the position that is coded."""
BEFORE: Final = tuple((down, right) for down in (-1, 0, 1) for right in (-1, 0, 1))
"""Offset (row, column) of each neighbour in the frame before."""

_HEADER: Final = struct.Struct("<4sHHHI")
_MAGIC: Final = b"SPCX"


def class_of(activity: NDArray[np.int16]) -> NDArray[np.int32]:
    """The class, 0 to 63, of each activity."""
    classes: NDArray[np.int32] = (activity.astype(np.int32) + OFFSET) >> SHIFT
    return np.clip(classes, 0, CLASSES - 1)


def even_tables(levels: int) -> NDArray[np.uint16]:
    """(64, levels + 1) cumulative frequencies of symbols that are all as likely."""
    even = np.linspace(0, 1 << PRECISION, levels + 1).astype(np.uint16)
    return np.tile(even, (CLASSES, 1))


@dataclass(frozen=True, eq=False)
class ContextModel:
    """Static probability model of one tensor's symbols, fixed before a frame is seen.

    Attributes:
        weights: (T, C, C) int8, in 1/32 nat: neighbour, its channel, the channel that is coded. The
            neighbours are the position itself (earlier channels only), west, north-west, north and
            north-east.
        before: (9, C) int8, in 1/32 nat: neighbour in the frame before, its and the coded channel;
            (0, C) of a model that does not look back.
        bias: (C,) int16, in 1/32 nat.
        magnitudes: (L,) uint8, how much each of the L symbols counts as a neighbour, 0 to 3.
        cumulative: (64, L + 1) uint16: of each class, how often a lower symbol comes in 32768.
    """

    weights: NDArray[np.int8]
    before: NDArray[np.int8]
    bias: NDArray[np.int16]
    magnitudes: NDArray[np.uint8]
    cumulative: NDArray[np.uint16]

    def __post_init__(self) -> None:
        """Require what coding relies on.

        Raises:
            BundleError: If a part has another size, or a table is no distribution.
        """
        taps, channels, levels = len(self.weights), len(self.bias), len(self.magnitudes)
        fits = (
            taps == len(NEIGHBOURS)
            and self.weights.shape == (taps, channels, channels)
            and self.before.shape in {(0, channels), (len(BEFORE), channels)}
            and self.cumulative.shape == (CLASSES, levels + 1)
        )
        if not fits:
            raise BundleError("the context model's parts do not belong together")
        if np.tril(self.weights[0]).any():
            raise BundleError("the context model looks at channels that are not yet known")
        if self.magnitudes.max() > MAX_MAGNITUDE:
            raise BundleError(f"the context model has a magnitude above {MAX_MAGNITUDE}")
        whole = (self.cumulative[:, 0] == 0) & (self.cumulative[:, -1] == 1 << PRECISION)
        if not whole.all() or (np.diff(self.cumulative.astype(np.int32)) < 1).any():
            raise BundleError("the context model's tables are no distributions")

    def for_symbols(self, magnitudes: NDArray[np.uint8]) -> "ContextModel":
        """A model of the same neighbours for other symbols, all of them as likely."""
        return replace(self, magnitudes=magnitudes, cumulative=even_tables(len(magnitudes)))

    @property
    def channels(self) -> int:
        """C of the tensor."""
        return len(self.bias)

    @property
    def looks_back(self) -> bool:
        """Whether it needs the frame before."""
        return len(self.before) > 0

    @property
    def levels(self) -> int:
        """Number of different symbols."""
        return len(self.magnitudes)

    def to_bytes(self) -> bytes:
        """Serialise as a file of the bundle: a header, then the parts, little-endian."""
        header = _HEADER.pack(_MAGIC, 1, self.levels, len(self.before), self.channels)
        parts = (self.bias.astype("<i2"), self.magnitudes, self.cumulative.astype("<u2"))
        return header + b"".join(part.tobytes() for part in (*parts, self.before, self.weights))

    @classmethod
    def from_bytes(cls, data: bytes, name: str) -> "ContextModel":
        """Read a file of the bundle, called `name` in errors.

        Raises:
            BundleError: If it is no context model.
        """
        if len(data) < _HEADER.size:
            raise BundleError(f"{name}: no context model: {len(data)} bytes; search again")
        magic, version, levels, before, channels = _HEADER.unpack_from(data)
        if magic != _MAGIC or version != 1:
            raise BundleError(f"{name}: no context model that this version reads; search again")
        shapes = {
            "bias": ("<i2", (channels,)),
            "magnitudes": ("u1", (levels,)),
            "cumulative": ("<u2", (CLASSES, levels + 1)),
            "before": ("i1", (before, channels)),
            "weights": ("i1", (len(NEIGHBOURS), channels, channels)),
        }
        sizes = {key: np.dtype(kind).itemsize * math.prod(s) for key, (kind, s) in shapes.items()}
        if not levels or not channels or len(data) != _HEADER.size + sum(sizes.values()):
            raise BundleError(f"{name}: a context model of another size; search again")
        parts, offset = {}, _HEADER.size
        for key, (kind, shape) in shapes.items():
            part = np.frombuffer(data, kind, math.prod(shape), offset).reshape(shape)
            parts[key] = part.astype(part.dtype.newbyteorder("="))
            offset += sizes[key]
        try:
            return cls(**parts)
        except BundleError as error:
            raise BundleError(f"{name}: {error}; search again") from error
