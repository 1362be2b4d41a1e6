"""YOLOv5 and YOLOv7: rows of box, objectness and class scores, or raw maps with anchors."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from common.tasks.base import Floats, Integers, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    corners,
    finite,
    grid,
    joined,
    logit,
    misfit,
    points,
    same,
    select,
    sigmoid,
)
from common.tasks.decoders.yolov3 import AnchorMap, check_strides

_STRIDES = (8, 16, 32)
_ANCHORS = (
    AnchorMap(stride=8, anchors=((10, 13), (16, 30), (33, 23))),
    AnchorMap(stride=16, anchors=((30, 61), (62, 45), (59, 119))),
    AnchorMap(stride=32, anchors=((116, 90), (156, 198), (373, 326))),
)
"""Anchors of YOLOv5 n to x at 640 (models/yolov5s.yaml of ultralytics/yolov5)."""


class YoloV5(Decoder):
    """Decoder of a YOLOv5 (models/yolo.py of ultralytics/yolov5, `Detect`).

        x = (2 sigmoid(tx) - 0.5 + column) * stride       w = anchor width * (2 sigmoid(tw))^2
        score of a class = objectness * class score

    Attributes:
        heads: Strides and anchors of raw maps, (A x (5 + C), h, w) or (A, h, w, 5 + C) each, in the
            order of the maps. Empty for one output (N, 5 + C) with centre, width and height in
            pixels, and scores.
    """

    kind: Literal["yolov5"] = "yolov5"
    heads: tuple[AnchorMap, ...] = Field(default=(), max_length=16)

    def check(self, size: Size) -> None:
        """Require that the input is a multiple of every stride."""
        check_strides(self.heads, size)

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        if not self.heads:
            if len(shapes) == 1 and same(shapes[0], (None, 5 + classes)):
                return None
            return misfit("yolov5", f"(N, {5 + classes}) of decoded boxes", shapes)
        flat = [_flat(head, size, classes) for head in self.heads]
        deep = [_deep(head, size, classes) for head in self.heads]
        if len(shapes) == len(flat) and any(all(map(same, shapes, e)) for e in (flat, deep)):
            return None
        return misfit("yolov5", f"{flat} or {deep} of raw maps", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: decoded boxes, or raw maps with YOLOv5's anchors."""
        del names
        if size[0] % _STRIDES[-1] or size[1] % _STRIDES[-1]:
            return None
        if len(shapes) == 1 and len(shapes[0]) == 2 and (shapes[0][1] or 0) > 5:
            return cls() if shapes[0][0] == 3 * points(size, _STRIDES) else None
        decoder = cls(heads=_ANCHORS)
        classes = decoder.classes_in(shapes)
        if classes is None or classes < 1 or decoder.fits(shapes, size, classes) is not None:
            return None
        return decoder

    @classmethod
    def guess(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.guess`: decoded boxes alone, as anchors cannot be seen."""
        found = cls.preset(shapes, names, size)
        return found if found is not None and not found.heads else None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if not shapes or len(shapes[0]) not in {2, 3, 4}:
            return None
        if len(shapes[0]) == 3:
            channels = shapes[0][0]
            return None if channels is None else channels // len(self.heads[0].anchors) - 5
        return None if shapes[0][-1] is None else shapes[0][-1] - 5

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        if not self.heads:
            rows = _usable(outputs[0], threshold)
            return _scored(rows, corners(rows[:, :2], rows[:, 2:4]), threshold)
        parts = [
            _raw(values, head, size, classes, threshold)
            for values, head in zip(outputs, self.heads, strict=True)
        ]
        return joined(parts)


def _raw(values: Floats, head: AnchorMap, size: Size, classes: int, threshold: float) -> Candidates:
    """Candidates of one raw map."""
    anchors = len(head.anchors)
    rows = values
    if values.ndim == 3:
        rows = values.reshape(anchors, 5 + classes, -1).transpose(0, 2, 1)
    rows = rows.reshape(-1, 5 + classes)
    cells, stride = grid(size, (head.stride,))
    cells = np.tile(cells, (anchors, 1))
    anchor = np.repeat(np.array(head.anchors, np.float32), len(cells) // anchors, axis=0)
    kept = _usable_rows(rows, logit(threshold))
    rows, cells, anchor = sigmoid(rows[kept]), cells[kept], anchor[kept]
    centres = (2 * rows[:, :2] - np.float32(0.5) + cells) * stride[0]
    return _scored(rows, corners(centres, anchor * (2 * rows[:, 2:4]) ** 2), threshold)


def _usable_rows(rows: Floats, threshold: float) -> Integers:
    """Indices of finite rows whose objectness reaches the threshold, as every score is below it."""
    above = np.flatnonzero(rows[:, 4] >= threshold)
    return above[finite(rows[above])].astype(np.int32)


def _usable(rows: Floats, threshold: float) -> Floats:
    return rows[_usable_rows(rows, threshold)]


def _scored(rows: Floats, boxes: Floats, threshold: float) -> Candidates:
    row, scores, classes = select(rows[:, 4:5].clip(0, 1) * rows[:, 5:].clip(0, 1), threshold)
    return Candidates(boxes[row], scores, classes)


def _flat(head: AnchorMap, size: Size, classes: int) -> tuple[int, ...]:
    return head.channels(classes), size[0] // head.stride, size[1] // head.stride


def _deep(head: AnchorMap, size: Size, classes: int) -> tuple[int, ...]:
    rows, columns = size[0] // head.stride, size[1] // head.stride
    return len(head.anchors), rows, columns, 5 + classes
