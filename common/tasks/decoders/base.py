"""The seam of detection decoders, and the arithmetic that several of them share.

    outputs of a network -> Decoder.candidates -> boxes in its input -> suppression -> Detections

A decoder is a record with the parameters of its family. Outputs are hostile: a row with a value
that is not finite reports nothing, huge values are clamped, and nothing warns.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from common.records import Record
from common.tasks.base import Floats, Integers, Shapes, in_words

# A sigmoid is 0 or 1 in float32 beyond this, and a box e^16 times its anchor is beyond any image.
MAX_LOGIT: Final = 30.0
MAX_LOG_SCALE: Final = 16.0
# Beyond any image, and small enough that no sum or product of two leaves float32.
MAX_PIXELS: Final = 1e8

Size = tuple[int, int]
"""(height, width) of the network's input."""


class Candidates(NamedTuple):
    """Boxes before suppression.

    Attributes:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels of the network's input.
        scores: (N,) in [0, 1].
        classes: (N,) indices of classes.
    """

    boxes: Floats
    scores: Floats
    classes: Integers


class Decoder(Record, ABC):
    """Decoding of the outputs of a family of detectors to boxes.

    Attributes:
        kind: The family.
        overlaps: Whether it reports an object several times, so that duplicates are suppressed.
    """

    kind: str
    overlaps: ClassVar[bool] = True

    @abstractmethod
    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Say in one line what was expected and found; None if outputs of these shapes fit.

        Args:
            shapes: Shapes of the outputs, without the batch.
            size: (height, width) of the network's input.
            classes: Number of classes.
        """

    @classmethod
    @abstractmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """The decoder with the family's usual parameters that these outputs may be of, if any.

        Args:
            shapes: Shapes of the outputs, without the batch.
            names: Names of the outputs.
            size: (height, width) of the network's input.
        """

    @classmethod
    def guess(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """The preset, where shapes and names leave no parameter open; else None."""
        del shapes, names, size
        return None

    @abstractmethod
    def classes_in(self, shapes: Shapes) -> int | None:
        """Number of classes that outputs of these shapes have; None if the shapes do not say."""

    @abstractmethod
    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """All boxes above a threshold.

        Args:
            outputs: The network's outputs, of shapes that fit.
            size: (height, width) of the network's input.
            classes: Number of classes.
            threshold: Lowest score to report, 0 to 1.
        """

    def check(self, size: Size) -> None:
        """Require that the parameters suit an input.

        Raises:
            ValueError: If they do not.
        """


def misfit(kind: str, expected: str, shapes: Shapes) -> str:
    """Line that says which outputs a decoder expects and which there are."""
    return f"{kind}: expected output {expected}, found {in_words(shapes)}"


def same(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a shape is as expected; None on either side stands for anything."""
    return len(shape) == len(expected) and all(
        a is None or b is None or a == b for a, b in zip(shape, expected, strict=True)
    )


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of several outputs as one."""
    boxes, scores, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Candidates(boxes, scores, classes)


def select(scores: Floats, threshold: float) -> tuple[NDArray[np.intp], Floats, Integers]:
    """Find the entries of a table of scores that reach the threshold.

    Args:
        scores: (N, C); what is not finite reaches nothing, what is above 1 counts as 1.
        threshold: Lowest score.

    Returns:
        Row, score and class of each, (K,).
    """
    row, label = ((scores >= threshold) & np.isfinite(scores)).nonzero()
    return row, scores[row, label].clip(0, 1), label.astype(np.int32)


def finite(rows: Floats) -> NDArray[np.intp]:
    """Indices of the rows of (N, K) whose values are all finite."""
    return np.flatnonzero(np.isfinite(rows).all(axis=1))


def corners(centres: Floats, sizes: Floats) -> Floats:
    """Corners (N, 4) of boxes with these centres and sizes, (N, 2) each, clamped."""
    middle = centres.clip(-MAX_PIXELS, MAX_PIXELS)
    halves = sizes.clip(0, MAX_PIXELS) * np.float32(0.5)
    return np.concatenate([middle - halves, middle + halves], axis=1)


def grid_sizes(size: Size, strides: Sequence[int]) -> list[tuple[int, int]]:
    """(rows, columns) of the map of each stride; a cell that the input covers in part counts."""
    return [(math.ceil(size[0] / stride), math.ceil(size[1] / stride)) for stride in strides]


def grid(size: Size, strides: Sequence[int]) -> tuple[Floats, Floats]:
    """Cells of maps of several strides, one map after the other, row by row.

    Args:
        size: (height, width) of the network's input.
        strides: Input pixels per cell.

    Returns:
        (N, 2) column and row of each cell, and (N, 1) its stride.
    """
    cells, steps = [], []
    for (rows, columns), stride in zip(grid_sizes(size, strides), strides, strict=True):
        y, x = np.divmod(np.arange(rows * columns), columns)
        cells.append(np.stack([x, y], axis=1).astype(np.float32))
        steps.append(np.full((rows * columns, 1), stride, np.float32))
    return np.concatenate(cells), np.concatenate(steps)


def points(size: Size, strides: Sequence[int]) -> int:
    """Number of cells of maps of these strides."""
    return sum(rows * columns for rows, columns in grid_sizes(size, strides))


def logit(probability: float) -> float:
    """The logit, a little below the exact one, so that float32 rounding loses no candidate."""
    inside = min(max(probability, 1e-12), 1 - 1e-7)
    return math.log(inside / (1 - inside)) - 1e-3


def sigmoid(values: Floats) -> Floats:
    """Logistic function of finite values."""
    odds: Floats = np.exp(-values.clip(-MAX_LOGIT, MAX_LOGIT))
    return np.float32(1) / (np.float32(1) + odds)


def softmax(values: Floats) -> Floats:
    """Softmax of finite values over the last axis."""
    usable = values.clip(-MAX_PIXELS, MAX_PIXELS)
    powers: Floats = np.exp(usable - usable.max(axis=-1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def expand(values: Floats) -> Floats:
    """Exponential of logarithmic sizes, clamped."""
    powers: Floats = np.exp(values.clip(-MAX_LOG_SCALE, MAX_LOG_SCALE))
    return powers


def distances(logits: Floats, bins: int) -> Floats:
    """Distances of box sides as distributions over bins (DFL; Li et al. 2020, section 3).

    Args:
        logits: (N, 4 x bins) of left, top, right, bottom.
        bins: How many each has.

    Returns:
        (N, 4) expected distances, in cells.
    """
    weights = softmax(logits.reshape(-1, 4, bins))
    steps: Floats = np.arange(bins, dtype=np.float32)
    expected: Floats = weights @ steps
    return expected


def around(centres: Floats, sides: Floats) -> Floats:
    """Corners (N, 4) of boxes by the distances (N, 4) of their sides from a point (N, 2)."""
    middle, sides = centres.clip(-MAX_PIXELS, MAX_PIXELS), sides.clip(-MAX_PIXELS, MAX_PIXELS)
    return np.concatenate([middle - sides[:, :2], middle + sides[:, 2:]], axis=1)
