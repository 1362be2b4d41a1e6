"""YOLOv3: maps of A anchors of 4 box values, objectness and C class values each."""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field

from common.records import Record
from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    MAX_LOG_SCALE,
    Candidates,
    Decoder,
    Size,
    joined,
    logit,
    same,
    sigmoid,
)

Side = Annotated[float, Field(gt=0, le=65536)]


class AnchorMap(Record):
    """One output map of a YOLO with anchors.

    Attributes:
        stride: Input pixels per cell of the map.
        anchors: (width, height) in input pixels.
    """

    stride: int = Field(ge=1, le=4096)
    anchors: tuple[tuple[Side, Side], ...] = Field(min_length=1, max_length=64)

    def channels(self, classes: int) -> int:
        """Channels of the map: A x (5 + C)."""
        return len(self.anchors) * (5 + classes)


class YoloV3(Decoder):
    """Decoder of a YOLOv3's raw output maps (Redmon & Farhadi 2018, section 2.1).

        x = (sigmoid(tx) + column) * stride         w = anchor width * exp(tw)
        y = (sigmoid(ty) + row) * stride            h = anchor height * exp(th)
        score of a class = sigmoid(objectness) * sigmoid(class value)

    A box is reported once for every class whose score reaches the threshold.

    Attributes:
        heads: One per output map (A x (5 + C), h, w), in the order of the maps.
    """

    kind: Literal["yolov3"] = "yolov3"
    heads: tuple[AnchorMap, ...] = Field(min_length=1, max_length=16)

    def check(self, size: Size) -> None:
        """Require that the input is a multiple of every stride."""
        check_strides(self.heads, size)

    def map_shapes(self, size: Size, classes: int) -> tuple[tuple[int, int, int], ...]:
        """The shape (channels, height, width) of each output map."""
        return tuple(
            (head.channels(classes), size[0] // head.stride, size[1] // head.stride)
            for head in self.heads
        )

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        expected = self.map_shapes(size, classes)
        if len(shapes) == len(expected) and all(map(same, shapes, expected)):
            return None
        return f"yolov3: expected output maps {list(expected)}, got {list(shapes)}"

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: with the anchors of YOLOv3 or YOLOv3-tiny for COCO."""
        del names
        for heads in _PRESETS:
            decoder = cls(heads=heads)
            channels = shapes[0][0] if shapes and shapes[0] else None
            if not channels or channels % 3 or channels // 3 <= 5:
                continue
            if decoder.fits(shapes, size, channels // 3 - 5) is None:
                return decoder
        return None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        channels = shapes[0][0]
        return None if channels is None else channels // len(self.heads[0].anchors) - 5

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        del size
        parts = [
            _candidates(values, head, classes, threshold)
            for values, head in zip(outputs, self.heads, strict=True)
        ]
        return joined(parts)


def check_strides(heads: Sequence[AnchorMap], size: Size) -> None:
    """Require that an input is a multiple of the stride of every head.

    Raises:
        ValueError: If it is not.
    """
    for head in heads:
        if size[0] % head.stride or size[1] % head.stride:
            raise ValueError(
                f"the input {size[0]}x{size[1]} is no multiple of the stride {head.stride}"
            )


def _candidates(values: Floats, head: AnchorMap, classes: int, threshold: float) -> Candidates:
    columns = values.shape[2]
    cells = values.reshape(len(head.anchors), 5 + classes, -1)
    # A score is at most its objectness, so most cells end here, having cost one comparison.
    anchor, cell = (cells[:, 4] >= logit(threshold)).nonzero()
    rows = cells[anchor, :, cell]
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        anchor, cell, rows = anchor[finite], cell[finite], rows[finite]
    probabilities = sigmoid(rows[:, 4:5]) * sigmoid(rows[:, 5:])
    row, label = (probabilities >= threshold).nonzero()
    grid = np.stack([cell % columns, cell // columns], axis=1).astype(np.float32)
    centres = (sigmoid(rows[:, :2]) + grid) * np.float32(head.stride)
    scales = np.exp(rows[:, 2:4].clip(-MAX_LOG_SCALE, MAX_LOG_SCALE))
    halves = np.array(head.anchors, np.float32)[anchor] * scales * np.float32(0.5)
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    return Candidates(boxes[row], probabilities[row, label], label.astype(np.int32))


_PRESETS = (
    (
        AnchorMap(stride=32, anchors=((81, 82), (135, 169), (344, 319))),
        AnchorMap(stride=16, anchors=((10, 14), (23, 27), (37, 58))),
    ),
    (
        AnchorMap(stride=32, anchors=((116, 90), (156, 198), (373, 326))),
        AnchorMap(stride=16, anchors=((30, 61), (62, 45), (59, 119))),
        AnchorMap(stride=8, anchors=((10, 13), (16, 30), (33, 23))),
    ),
)
"""Anchors of YOLOv3-tiny and of YOLOv3 (cfg/yolov3-tiny.cfg and cfg/yolov3.cfg of darknet)."""
