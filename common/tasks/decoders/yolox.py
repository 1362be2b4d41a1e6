"""YOLOX: one row (5 + C) per cell of all maps."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    corners,
    expand,
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
from common.tasks.decoders.yolov8 import Stride


class YoloX(Decoder):
    """Decoder of a YOLOX (Ge et al. 2021; yolox/models/yolo_head.py, `decode_outputs`).

        x = (tx + column) * stride              w = exp(tw) * stride
        score of a class = objectness * class score

    Attributes:
        decoded: Whether boxes are in pixels already; else they are in cells, sizes as logarithms.
        strides: Input pixels per cell of the maps, in the order of the rows.
        logits: Whether objectness and class scores have yet to pass a sigmoid.
        layout: Whether the table has a row per cell; or the maps (5 + C, h, w) as they lie in
            memory, one after the other, which some exports only reshape to (N, 5 + C).
    """

    kind: Literal["yolox"] = "yolox"
    decoded: bool = False
    strides: tuple[Stride, ...] = Field(default=(8, 16, 32), min_length=1, max_length=8)
    logits: bool = False
    layout: Literal["rows", "maps"] = "rows"

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        expected = points(size, self.strides), 5 + classes
        if len(shapes) == 1 and same(shapes[0], expected):
            return None
        return misfit("yolox", f"{expected}", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: boxes in cells, of three strides."""
        del names
        decoder = cls()
        classes = decoder.classes_in(shapes)
        if not classes or classes < 1 or decoder.fits(shapes, size, classes) is not None:
            return None
        return decoder

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if not shapes or len(shapes[0]) != 2 or shapes[0][1] is None:
            return None
        return shapes[0][1] - 5

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        rows = outputs[0] if self.layout == "rows" else self._rows(outputs[0], size, classes)
        likely = np.flatnonzero(rows[:, 4] >= (logit(threshold) if self.logits else threshold))
        kept = likely[finite(rows[likely])]
        rows = rows[kept]
        scores = sigmoid(rows[:, 4:]) if self.logits else rows[:, 4:].clip(0, 1)
        if self.decoded:
            boxes = corners(rows[:, :2], rows[:, 2:4])
        else:
            cells, strides = grid(size, self.strides)
            cells, strides = cells[kept], strides[kept]
            # A centre further off than any map is wide cannot be honest.
            centres = (rows[:, :2].clip(-1e4, 1e4) + cells) * strides
            boxes = corners(centres, expand(rows[:, 2:4]) * strides)
        row, found, labels = select(scores[:, :1] * scores[:, 1:], threshold)
        return Candidates(boxes[row], found, labels)

    def _rows(self, table: Floats, size: Size, classes: int) -> Floats:
        """Rows (N, 5 + C) of a table that holds maps as they lie in memory."""
        cells = [rows * columns for rows, columns in grid_sizes(size, self.strides)]
        parts = np.split(table, np.cumsum(cells)[:-1])
        return np.concatenate([part.reshape(5 + classes, -1).T for part in parts])
