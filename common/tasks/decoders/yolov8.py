"""YOLOv8, YOLO11 and their like without anchors: boxes and class scores in one tensor, or maps."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    around,
    corners,
    distances,
    finite,
    grid,
    grid_sizes,
    logit,
    misfit,
    points,
    same,
    select,
    sigmoid,
)

Stride = Annotated[int, Field(ge=1, le=4096)]
_COCO = 80
_BINS = 16


class YoloV8(Decoder):
    """Decoder of a YOLOv8 (ultralytics/nn/modules/head.py, `Detect`).

    Attributes:
        bins: Bins of the distributions of a box's sides, where the graph does not decode them: one
            output (4 x bins + C, N), or a map (4 x bins + C, h, w) per stride. None where it does:
            one output (4 + C, N) with centre, width and height in pixels. (N, ...) is taken, too.
        strides: Input pixels per cell of the maps; only with `bins`.
        logits: Whether class scores have yet to pass a sigmoid.
    """

    kind: Literal["yolov8"] = "yolov8"
    bins: int | None = Field(default=None, ge=2, le=64)
    strides: tuple[Stride, ...] = Field(default=(8, 16, 32), min_length=1, max_length=8)
    logits: bool = False

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        channels = self._sides + classes
        total = None if self.bins is None else points(size, self.strides)
        if len(shapes) == 1 and _is_table(shapes[0], channels, total):
            return None
        one = f"({channels}, {'N' if total is None else total})"
        if self.bins is None:
            return misfit("yolov8", one, shapes)
        maps = [(channels, *cells) for cells in grid_sizes(size, self.strides)]
        if len(shapes) == len(maps) and all(map(same, shapes, maps)):
            return None
        return misfit("yolov8", f"{one} or {maps}", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: one table of all cells, or a map for each of three strides.

        A table of 144 channels is taken for 16 bins and 80 classes, not for 140 classes.
        """
        del names
        raw = cls(bins=_BINS, logits=True)
        for decoder in (cls(), raw) if shapes and shapes[0][:1] != (64 + _COCO,) else (raw, cls()):
            classes = decoder.classes_in(shapes)
            total = points(size, decoder.strides)
            covers = len(shapes) > 1 or (bool(shapes) and total in shapes[0])
            if classes and classes > 0 and covers and decoder.fits(shapes, size, classes) is None:
                return decoder
        return None

    @classmethod
    def guess(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.guess`: for COCO's 80 classes, as poses and masks look alike."""
        found = cls.preset(shapes, names, size)
        if found is None or found.bins is not None or shapes[0][:1] != (4 + _COCO,):
            return None
        return found

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if not shapes or len(shapes[0]) not in {2, 3}:
            return None
        sides = [side for side in shapes[0] if side is not None]
        if len(shapes[0]) == 3:
            return None if shapes[0][0] is None else shapes[0][0] - self._sides
        return min(sides) - self._sides if sides else None

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        channels = self._sides + classes
        table = np.concatenate([_rows(values, channels) for values in outputs])
        least = logit(threshold) if self.logits else threshold
        likely = np.flatnonzero((table[:, self._sides :] >= least).any(axis=1))
        kept = likely[finite(table[likely])]
        sides, scores = table[kept, : self._sides], table[kept, self._sides :]
        scores = sigmoid(scores) if self.logits else scores
        if self.bins is None:
            boxes = corners(sides[:, :2], sides[:, 2:])
        else:
            cells, strides = grid(size, self.strides)
            centres = cells[kept] + np.float32(0.5)
            boxes = around(centres, distances(sides, self.bins)) * strides[kept]
        row, found, labels = select(scores, threshold)
        return Candidates(boxes[row], found, labels)

    @property
    def _sides(self) -> int:
        return 4 if self.bins is None else 4 * self.bins


def _is_table(shape: tuple[int | None, ...], channels: int, total: int | None) -> bool:
    return same(shape, (channels, total)) or same(shape, (total, channels))


def _rows(values: Floats, channels: int) -> Floats:
    """The output as rows of channels (N, channels)."""
    if values.ndim == 3:
        return values.reshape(channels, -1).T
    return values.T if values.shape[0] == channels else values
