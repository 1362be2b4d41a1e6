"""Boxes: networks whose graph ends in their own suppression of duplicates."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import MAX_PIXELS, Candidates, Decoder, Size, finite, misfit

Column = Literal["x1", "y1", "x2", "y2", "score", "class", "ignored"]
Output = Literal["boxes", "scores", "classes", "count", "ignored"]

_CORNERS: Final[tuple[Column, ...]] = ("x1", "y1", "x2", "y2")
_SIX: Final[tuple[Column, ...]] = (*_CORNERS, "score", "class")
_SEVEN: Final[tuple[Column, ...]] = ("ignored", *_CORNERS, "class", "score")
_NAMES: Final[Mapping[str, Output]] = MappingProxyType(
    {"box": "boxes", "score": "scores", "class": "classes", "label": "classes", "num": "count"}
)


class Boxes(Decoder):
    """Decoder of finished boxes: separate outputs, or one table (N, 6) or (N, 7).

    Attributes:
        outputs: What each of several outputs is; boxes (N, 4), scores (N,), classes (N,), count
            (1,), whose first sides of 1 do not count. Empty for one table.
        columns: What each column of boxes, or of the table, is, in order.
        unit: Whether corners are in 0 to 1, else in pixels of the input.
        first_class: Number of the first class: 1 where 0 stands for the background.
    """

    kind: Literal["boxes"] = "boxes"
    outputs: tuple[Output, ...] = Field(default=(), max_length=16)
    columns: tuple[Column, ...] = Field(default=_SIX, min_length=4, max_length=16)
    unit: bool = False
    first_class: int = Field(default=0, ge=0, le=1)
    overlaps: ClassVar[bool] = False

    @model_validator(mode="after")
    def _everything_is_there_once(self) -> Self:
        wanted: set[str] = set(_CORNERS) if self.outputs else set(_SIX)
        named = [each for each in self.columns if each != "ignored"]
        if set(named) != wanted or len(named) != len(wanted):
            raise ValueError(f"columns: expected each of {', '.join(sorted(wanted))} once")
        parts = [each for each in self.outputs if each not in {"ignored", "count"}]
        if self.outputs and sorted(parts) != ["boxes", "classes", "scores"]:
            raise ValueError("outputs: expected boxes, scores and classes once each")
        return self

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        del size, classes
        if not self.outputs:
            if len(shapes) == 1 and _ends_in(shapes[0], len(self.columns)):
                return None
            return misfit("boxes", f"(N, {len(self.columns)})", shapes)
        if len(shapes) == len(self.outputs) and all(
            kind != "boxes" or _ends_in(shape, len(self.columns))
            for kind, shape in zip(self.outputs, shapes, strict=True)
        ):
            return None
        expected = ", ".join(self.outputs)
        return misfit("boxes", f"{expected}, with boxes (N, {len(self.columns)})", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: a table of 6 or 7 columns, or outputs named after parts."""
        del size
        if len(shapes) == 1:
            width = shapes[0][1] if len(shapes[0]) == 2 else None
            columns = {6: _SIX, 7: _SEVEN}.get(width or 0)
            return None if columns is None else cls(columns=columns)
        parts = [_part_of(name.lower()) for name in names]
        kept = sorted(each for each in parts if each not in {"ignored", "count"})
        if len(parts) != len(shapes) or kept != ["boxes", "classes", "scores"]:
            return None
        decoder = cls(outputs=tuple(parts), columns=_CORNERS)
        return decoder if decoder.fits(shapes, (1, 1), 1) is None else None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`: shapes do not say."""
        del shapes
        return None

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        rows = self._table(outputs)
        order = [self._all_columns.index(name) for name in _SIX]
        rows = rows[:, order]
        rows = rows[finite(rows)]
        labels = np.rint(rows[:, 5].clip(-1, 1e6)).astype(np.int32) - self.first_class
        kept = (rows[:, 4] >= threshold) & (labels >= 0) & (labels < classes)
        rows, labels = rows[kept], labels[kept]
        scale = np.array([size[1], size[0]] * 2, np.float32) if self.unit else np.float32(1)
        found = rows[:, :4].clip(-1e6, 1e6) * scale
        places = found.clip(-MAX_PIXELS, MAX_PIXELS).astype(np.float32)
        return Candidates(places, rows[:, 4].clip(0, 1), labels)

    @property
    def _all_columns(self) -> tuple[str, ...]:
        return (*self.columns, "score", "class") if self.outputs else self.columns

    def _table(self, outputs: Sequence[Floats]) -> Floats:
        """All rows, in the columns of `_all_columns`."""
        width = len(self.columns)
        if not self.outputs:
            return outputs[0].reshape(-1, width)
        part = dict(zip(self.outputs, outputs, strict=True))
        boxes = part["boxes"].reshape(-1, width)
        scores, labels = part["scores"].reshape(-1), part["classes"].reshape(-1)
        count = min(len(boxes), len(scores), len(labels))
        if "count" in part and part["count"].size:
            told = float(part["count"].reshape(-1)[0])
            count = int(min(max(told, 0), count)) if np.isfinite(told) else 0
        return np.concatenate([boxes[:count], scores[:count, None], labels[:count, None]], axis=1)


def _part_of(name: str) -> Output:
    """Part that an output of this name is, by the words in it."""
    return next((_NAMES[known] for known in _NAMES if known in name), "ignored")


def _ends_in(shape: tuple[int | None, ...], width: int) -> bool:
    """Whether a shape is (N, width), apart from first sides of 1."""
    return 2 <= len(shape) <= 4 and shape[-1] in {width, None} and set(shape[:-2]) <= {1}
