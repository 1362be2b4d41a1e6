"""Tensors: the outputs of a network as they are, for callers that decode them by themselves.

    outputs -> Tensors -> Result, REST answer (base64 of float32, little-endian)

The task of networks that no other task fits. Outputs are bounded in bytes, as they travel whole.
"""

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from PIL import Image

from common.errors import ModelError, PayloadError
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import (
    Agreement,
    Carrier,
    Floats,
    ResultSettings,
    ResultTable,
    Shapes,
    Task,
    TaskResult,
    in_words,
)

MAX_TENSOR_BYTES: Final = 4 << 20
"""Most bytes of all outputs of a frame."""
MAX_TENSORS: Final = 64
MAX_RANK: Final = 8
SAME_ERROR: Final = 0.1
"""Relative error within which two tensors agree."""
_FLOAT_BYTES: Final = 4


@dataclass(frozen=True, eq=False)
class Tensors(TaskResult):
    """The outputs of a network for one image.

    Attributes:
        tensors: One float32 array per output, of any rank, in the network's order.
    """

    tensors: tuple[Floats, ...]

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def size_bytes(self) -> int:
        """Memory that its arrays take."""
        return sum(each.nbytes for each in self.tensors)

    def write(self, carrier: Carrier) -> None:
        """Put it into a message."""
        carrier.tensors.CopyFrom(_message(self.tensors))

    def to_json(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Records of a REST answer: `shape`, `dtype` and `data`, base64 of little-endian values."""
        del class_names
        return [
            {
                "shape": list(each.shape),
                "dtype": "float32",
                "data": base64.b64encode(_little_endian(each)).decode(),
            }
            for each in self.tensors
        ]

    def to_records(self, image_id: int, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Entries of a results file: the records with their `image_id`."""
        return [{"image_id": image_id, **each} for each in self.to_json(class_names)]

    def to_table(self, class_names: Sequence[str]) -> ResultTable:
        """Shapes of the outputs with the range of their finite values."""
        del class_names
        rows = []
        for index, each in enumerate(self.tensors):
            values = each[np.isfinite(each)]
            ends = (f"{values.min():.4g}", f"{values.max():.4g}") if values.size else ("-", "-")
            rows.append((str(index), "x".join(map(str, each.shape)) or "1", *ends))
        return ResultTable(("output", "shape", "least", "greatest"), tuple(rows))

    def draw(self, picture: Image.Image, class_names: Sequence[str]) -> None:
        """Draw nothing: nobody knows what the outputs mean."""

    def agreement(self, found: Self) -> Agreement:
        """Count the outputs whose relative error is at most `SAME_ERROR`."""
        matched = sum(
            one.shape == other.shape and relative_error(one, other) <= SAME_ERROR
            for one, other in zip(self.tensors, found.tensors, strict=False)
        )
        return Agreement(matched, len(self) - matched, len(found) - matched)


class TensorsTask(Task):
    """The network's outputs, undecoded."""

    kind: Literal["tensors"] = "tensors"
    message: ClassVar[str] = "tensors"

    def misfit(self, shapes: Shapes) -> str | None:
        """Say in one line why outputs of these shapes are too many or too large; None if not."""
        if not 1 <= len(shapes) <= MAX_TENSORS or any(len(each) > MAX_RANK for each in shapes):
            return (
                f"tensors: expected 1 to {MAX_TENSORS} outputs of at most {MAX_RANK} sides, "
                f"found {in_words(shapes)}"
            )
        size = _FLOAT_BYTES * sum(math.prod(side or 1 for side in each) for each in shapes)
        if size > MAX_TENSOR_BYTES:
            return (
                f"tensors: expected outputs of at most {MAX_TENSOR_BYTES} bytes, found "
                f"{in_words(shapes)}, {size} bytes: a task that decodes them sends less"
            )
        return None

    def empty(self) -> Tensors:
        """No outputs."""
        return Tensors(())

    def from_json(self, records: Iterable[Any]) -> Tensors:
        """Read the records of a REST answer.

        Raises:
            PayloadError: If they are no tensors.
        """
        try:
            return Tensors(tuple(_from_base64(each["shape"], each["data"]) for each in records))
        except (KeyError, TypeError, ValueError) as error:
            raise PayloadError(f"tensors: cannot be read: {error}") from error

    def _decode(
        self, outputs: Sequence[Floats], where: Placement, settings: ResultSettings
    ) -> Tensors:
        del where, settings
        size = sum(each.nbytes for each in outputs)
        if size > MAX_TENSOR_BYTES:
            raise ModelError(self.misfit([each.shape for each in outputs]) or "")
        return Tensors(tuple(outputs))

    def _read(self, message: pb.Tensors) -> Tensors:
        ranks, sides = list(message.ranks[: MAX_TENSORS + 1]), message.sides
        if len(ranks) > MAX_TENSORS or max(ranks, default=0) > MAX_RANK:
            raise PayloadError(
                f"tensors: expected at most {MAX_TENSORS} of at most {MAX_RANK} sides, got more"
            )
        if len(message.data) > MAX_TENSOR_BYTES:
            raise PayloadError(f"tensors: expected at most {MAX_TENSOR_BYTES} bytes, got more")
        ends = list(accumulate(ranks, initial=0))
        shapes = [tuple(sides[start:end]) for start, end in pairwise(ends)]
        sizes = [math.prod(shape) for shape in shapes]
        if ends[-1] != len(sides) or _FLOAT_BYTES * sum(sizes) != len(message.data):
            raise PayloadError(
                f"tensors: {len(sides)} sides and {len(message.data)} bytes do not belong together"
            )
        values = np.frombuffer(message.data, "<f4").astype(np.float32)
        parts = np.split(values, list(accumulate(sizes))[:-1])
        return Tensors(
            tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
            if shapes
            else ()
        )


def relative_error(expected: Floats, found: Floats) -> float:
    """Norm of the difference over the norm of what was expected, 0 to infinity.

    Values that are not finite in both count as equal; in one of them only, as infinitely wrong.
    """
    usable = np.isfinite(expected)
    if not np.array_equal(usable, np.isfinite(found)):
        return math.inf
    one, other = expected[usable].astype(np.float64), found[usable].astype(np.float64)
    norm = float(np.sqrt((one**2).sum()))
    error = float(np.sqrt(((one - other) ** 2).sum()))
    return error / norm if norm > 0 else (0.0 if error == 0 else math.inf)


def _message(tensors: Sequence[Floats]) -> pb.Tensors:
    return pb.Tensors(
        ranks=[each.ndim for each in tensors],
        sides=[side for each in tensors for side in each.shape],
        data=b"".join(map(_little_endian, tensors)),
    )


def _from_base64(shape: Sequence[int], data: str) -> Floats:
    values = np.frombuffer(base64.b64decode(data, validate=True), "<f4")
    return values.astype(np.float32).reshape(shape)


def _little_endian(values: Floats) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()
