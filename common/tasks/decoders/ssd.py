"""SSD and its like: boxes relative to priors, or decoded, and class scores with a background."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from common.records import Record
from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    corners,
    expand,
    finite,
    misfit,
    same,
    select,
    sigmoid,
    softmax,
)
from common.tasks.decoders.yolov3 import Side

Cells = Annotated[int, Field(ge=1, le=4096)]
_FEWEST_ROWS = 1000


class PriorMap(Record):
    """Priors of one map of an SSD, the same in every cell.

    Attributes:
        rows: Cells of the map, down.
        columns: Cells of the map, across.
        sizes: (width, height) of the priors of a cell, in input pixels, in the network's order.
    """

    rows: Cells
    columns: Cells
    sizes: tuple[tuple[Side, Side], ...] = Field(min_length=1, max_length=64)


class Ssd(Decoder):
    """Decoder of an SSD (Liu et al. 2016): boxes (N, 4) and scores (N, background + C).

        x = prior x + tx * variance * prior width           w = prior width * exp(tw * variance)

    Attributes:
        priors: The priors, map by map and cell by cell, centred in the cells. Empty where boxes are
            decoded already.
        variances: Of centres and of sizes; only with priors.
        unit: Whether decoded boxes are corners in 0 to 1, else in pixels.
        background: Place of the background among the scores.
        scores: Whether scores are logits to pass a softmax or a sigmoid, or probabilities.
        boxes_first: Whether boxes are the first output.
    """

    kind: Literal["ssd"] = "ssd"
    priors: tuple[PriorMap, ...] = Field(default=(), max_length=16)
    variances: tuple[Side, Side] = (0.1, 0.2)
    unit: bool = True
    background: Literal["first", "last", "none"] = "first"
    scores: Literal["softmax", "sigmoid", "probabilities"] = "probabilities"
    boxes_first: bool = True

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        del size
        rows = self._rows
        width = classes + (self.background != "none")
        expected = [(rows, 4), (rows, width)]
        if not self.boxes_first:
            expected.reverse()
        pairs = len(shapes) == 2 and shapes[0][:1] == shapes[1][:1]
        if pairs and all(map(same, shapes, expected)):
            return None
        count = "N" if rows is None else str(rows)
        order = "before" if self.boxes_first else "after"
        return misfit("ssd", f"boxes ({count}, 4) {order} scores ({count}, {width})", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: decoded boxes and probabilities, background first."""
        del names
        for boxes_first in (True, False):
            decoder = cls(boxes_first=boxes_first)
            classes = decoder.classes_in(shapes)
            rows = shapes[0][0] if shapes and shapes[0] else None
            many = rows is not None and rows >= _FEWEST_ROWS
            if many and classes and classes > 0 and decoder.fits(shapes, size, classes) is None:
                return decoder
        return None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if len(shapes) != 2 or len(shapes[self.boxes_first]) != 2:
            return None
        width = shapes[self.boxes_first][1]
        return None if width is None else width - (self.background != "none")

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        boxes, logits = (outputs[0], outputs[1]) if self.boxes_first else (outputs[1], outputs[0])
        kept = finite(np.concatenate([boxes, logits], axis=1))
        scores = {"softmax": softmax, "sigmoid": sigmoid}.get(self.scores, _as_they_are)(
            logits[kept]
        )
        first = int(self.background == "first")
        scores = scores[:, first : first + classes]
        likely = np.flatnonzero((scores >= threshold).any(axis=1))
        kept = kept[likely]
        row, found, labels = select(scores[likely], threshold)
        return Candidates(self._decoded(boxes, kept, size)[row], found, labels)

    def _decoded(self, boxes: Floats, kept: NDArray[np.intp], size: Size) -> Floats:
        values = boxes[kept]
        if not self.priors:
            scale = np.array([size[1], size[0]] * 2, np.float32) if self.unit else np.float32(1)
            decoded: Floats = (values.clip(-1e6, 1e6) * scale).astype(np.float32)
            return decoded
        centres, sizes = (part[kept] for part in self._placed(size))
        of_centre, of_size = map(np.float32, self.variances)
        moved = centres + values[:, :2].clip(-1e3, 1e3) * of_centre * sizes
        return corners(moved, sizes * expand(values[:, 2:] * of_size))

    def _placed(self, size: Size) -> tuple[Floats, Floats]:
        """Centres and sizes (N, 2) of all priors, in pixels of the input."""
        centres, sizes = [], []
        for each in self.priors:
            down, across = np.divmod(np.arange(each.rows * each.columns), each.columns)
            x = (across + 0.5) * (size[1] / each.columns)
            y = (down + 0.5) * (size[0] / each.rows)
            count = len(each.sizes)
            centres.append(np.repeat(np.stack([x, y], axis=1), count, axis=0))
            sizes.append(np.tile(np.array(each.sizes), (each.rows * each.columns, 1)))
        return np.concatenate(centres).astype(np.float32), np.concatenate(sizes).astype(np.float32)

    @property
    def _rows(self) -> int | None:
        if not self.priors:
            return None
        return sum(each.rows * each.columns * len(each.sizes) for each in self.priors)


def _as_they_are(values: Floats) -> Floats:
    return values
