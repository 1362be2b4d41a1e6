"""PicoDet and NanoDet: class scores, and the sides of boxes as distributions, cell by cell."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    around,
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
from common.tasks.decoders.yolov8 import Stride


class PicoDet(Decoder):
    """Decoder of a PicoDet (Yu et al. 2021) or NanoDet: sides as distributions (DFL).

    Outputs are class scores (n, C) and box sides (n, 4 x bins) of every stride, all scores first
    and then all sides; or one output (N, C + 4 x bins) with both.

    Attributes:
        kind: The family.
        bins: Bins of a side's distribution.
        strides: Input pixels per cell of the maps, in the order of the outputs.
        cell_offset: Place of a cell's point within it, in cells: 0.5 for PicoDet and NanoDet, 0 for
            NanoDet-Plus.
        logits: Whether class scores have yet to pass a sigmoid.
    """

    kind: Literal["picodet", "nanodet"] = "picodet"
    bins: int = Field(default=8, ge=2, le=64)
    strides: tuple[Stride, ...] = Field(default=(8, 16, 32, 64), min_length=1, max_length=8)
    cell_offset: float = Field(default=0.5, ge=0, le=1)
    logits: bool = False

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        sides = 4 * self.bins
        cells = [rows * columns for rows, columns in grid_sizes(size, self.strides)]
        expected = [(n, classes) for n in cells] + [(n, sides) for n in cells]
        one = points(size, self.strides), classes + sides
        if len(shapes) == 1 and same(shapes[0], one):
            return None
        if len(shapes) == len(expected) and all(map(same, shapes, expected)):
            return None
        return misfit(self.kind, f"{expected} or {one}", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: PicoDet's outputs, or NanoDet-Plus' single one."""
        del names
        plus = len(shapes) == 1
        decoder = cls(kind="nanodet", cell_offset=0) if plus else cls()
        classes = decoder.classes_in(shapes)
        if not classes or classes < 1 or decoder.fits(shapes, size, classes) is not None:
            return None
        return decoder

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if not shapes or len(shapes[0]) != 2 or shapes[0][1] is None:
            return None
        return shapes[0][1] - (4 * self.bins if len(shapes) == 1 else 0)

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        half = len(outputs) // 2
        if half:
            scores, sides = np.concatenate(outputs[:half]), np.concatenate(outputs[half:])
        else:
            scores, sides = outputs[0][:, :classes], outputs[0][:, classes:]
        least = logit(threshold) if self.logits else threshold
        likely = np.flatnonzero((scores >= least).any(axis=1))
        likely = likely[finite(scores[likely])]
        kept = likely[finite(sides[likely])]
        cells, strides = grid(size, self.strides)
        centres = cells[kept] + np.float32(self.cell_offset)
        boxes = around(centres, distances(sides[kept], self.bins)) * strides[kept]
        scores = sigmoid(scores[kept]) if self.logits else scores[kept]
        row, found, labels = select(scores, threshold)
        return Candidates(boxes[row], found, labels)
