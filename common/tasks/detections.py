"""Detections: from the network's output maps to boxes.

    maps -> decode_yolo -> Detections -> Result, COCO file, REST answer, drawing

The cloud decodes the tail's maps, an edge-only plan decodes on the edge, and the search judges
plans by the same code, so a plan's accuracy is that of what is deployed. A network may be fed
anything: values that are not finite are ignored, huge ones are clamped, and nothing warns.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.errors import ModelError, SettingsError
from common.imaging.images import Letterbox
from common.tasks import labels as coco

Floats = NDArray[np.float32]
Integers = NDArray[np.int32]

# Candidates that enter non-maximum suppression, best first: bounds its cost, N^2, on hostile maps.
MAX_CANDIDATES: Final = 1000
# A sigmoid is 0 or 1 in float32 beyond this, and a box e^16 times its anchor is beyond any image.
_MAX_LOGIT = 30.0
_MAX_LOG_SCALE = 16.0


_Side = Annotated[float, Field(gt=0, le=65536)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class YoloHeadSpec(_Spec):
    """One output map of a YOLOv3: A anchors of 4 box values, objectness and C class values each.

    Attributes:
        stride: Input pixels per cell of the map.
        anchors: (width, height) in input pixels.
        classes: C.
    """

    stride: int = Field(ge=1, le=4096)
    anchors: tuple[tuple[_Side, _Side], ...] = Field(min_length=1, max_length=64)
    classes: int = Field(ge=1, le=65536)

    @property
    def channels(self) -> int:
        """Channels of the map: A x (5 + C)."""
        return len(self.anchors) * (5 + self.classes)


class DetectorSpec(_Spec):
    """Meaning of a detector's output maps; part of a bundle's manifest.

    Attributes:
        kind: The family that says how maps are decoded.
        input_height: Of the network's input, in pixels.
        input_width: Of the network's input, in pixels.
        heads: One per output map, in the order of the maps.
        class_names: One per class, in the order of the class values.
    """

    kind: Literal["yolov3"]
    input_height: int = Field(ge=1, le=65536)
    input_width: int = Field(ge=1, le=65536)
    heads: tuple[YoloHeadSpec, ...] = Field(min_length=1, max_length=16)
    class_names: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        for head in self.heads:
            if head.classes != len(self.class_names):
                raise ValueError(
                    f"the head of stride {head.stride} has {head.classes} classes, "
                    f"there are {len(self.class_names)} class names"
                )
            if self.input_height % head.stride or self.input_width % head.stride:
                raise ValueError(
                    f"the input {self.input_height}x{self.input_width} is no multiple "
                    f"of the stride {head.stride}"
                )
        return self

    @property
    def map_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """The shape (channels, height, width) of each output map."""
        return tuple(
            (head.channels, self.input_height // head.stride, self.input_width // head.stride)
            for head in self.heads
        )


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of one image, by falling score.

    Attributes:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels of the source image.
        scores: (N,) in [0, 1].
        classes: (N,) indices into the detector's class names.

    Raises:
        ValueError: If the three do not have these shapes.
    """

    boxes: Floats
    scores: Floats
    classes: Integers

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = self.boxes.shape, self.scores.shape, self.classes.shape
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"expected shapes (N, 4), (N,) and (N,), got {shapes}")

    @classmethod
    def empty(cls) -> Self:
        """Nothing found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.scores)

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a COCO results file: `image_id`, `category_id`, `bbox` [x, y, w, h], `score`.

        Args:
            image_id: The image's id in the annotation file.
            category_ids: The id of each class; COCO's own 80 unless given.

        Raises:
            ModelError: If a class has no id.
        """
        ids = coco.CATEGORY_IDS if category_ids is None else category_ids
        return [
            {"image_id": image_id, "category_id": ids[index], "bbox": bbox, "score": score}
            for index, score, bbox in self._rounded(len(ids))
        ]

    def to_json(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Records of a REST answer: `class_name`, `category_id`, `score` and `bbox` [x, y, w, h].

        Raises:
            ModelError: If a class has no name.
        """
        ids = coco.category_ids(class_names)
        return [
            {
                "class_name": class_names[index],
                "category_id": ids[index],
                "score": score,
                "bbox": bbox,
            }
            for index, score, bbox in self._rounded(len(ids))
        ]

    def _rounded(self, known: int) -> Iterator[tuple[int, float, list[float]]]:
        """(class, score to 4 decimals, [x, y, w, h] to 2 decimals) of each detection."""
        if len(self) and not 0 <= self.classes.min() <= self.classes.max() < known:
            raise ModelError(
                f"expected classes below {known}, got {self.classes.min()} to {self.classes.max()}"
            )
        for index, score, (x1, y1, x2, y2) in zip(
            self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
        ):
            bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield index, round(score, 4), bbox


@dataclass(frozen=True)
class Agreement:
    """Counts of detections that two lists share, or only the expected or the found one has.

    Counts of several images add up.
    """

    matched: int = 0
    missing: int = 0
    extra: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.matched + other.matched, self.missing + other.missing, self.extra + other.extra
        )


def agreement(expected: Detections, found: Detections, iou: float = 0.5) -> Agreement:
    """Pair up two lists of detections of one image, greedily, best expected score first.

    Args:
        expected: The reference.
        found: What is compared with it.
        iou: Least intersection over union of a pair; both must be of the same class.
    """
    overlap = box_iou(expected.boxes, found.boxes)
    overlap[expected.classes[:, None] != found.classes] = 0
    matched = 0
    for row in np.argsort(-expected.scores, kind="stable") if len(found) else ():
        best = int(overlap[row].argmax())
        if overlap[row, best] >= iou and overlap[row, best] > 0:
            matched += 1
            overlap[:, best] = 0
    return Agreement(matched, len(expected) - matched, len(found) - matched)


def decode_yolo(
    maps: Sequence[Floats],
    spec: DetectorSpec,
    letterbox: Letterbox,
    *,
    score_threshold: float = 0.25,
    iou_threshold: float = 0.45,
    max_detections: int = 100,
) -> Detections:
    """Decode a YOLOv3's output maps (Redmon & Farhadi 2018, section 2.1) and suppress duplicates.

        x = (sigmoid(tx) + column) * stride         w = anchor width * exp(tw)
        y = (sigmoid(ty) + row) * stride            h = anchor height * exp(th)
        score of a class = sigmoid(objectness) * sigmoid(class value)

    A box is reported once for every class whose score reaches the threshold. Only the best
    `MAX_CANDIDATES` enter suppression. A cell with a value that is not finite reports nothing.

    Args:
        maps: One (A * (5 + C), h, w) per head, raw network outputs.
        spec: What the maps mean.
        letterbox: Where the image lies in the network's input.
        score_threshold: Lowest score to report, 0 to 1.
        iou_threshold: Boxes of a class that overlap a better one by more are dropped, 0 to 1.
        max_detections: The most to report, best first.

    Raises:
        ModelError: If the maps are not float32 of the shapes that `spec` implies.
        SettingsError: If a threshold is outside 0 to 1, or `max_detections` below 1.
    """
    if not (0 <= score_threshold <= 1 and 0 <= iou_threshold <= 1 and max_detections >= 1):
        raise SettingsError(
            "expected thresholds from 0 to 1 and at least 1 detection, got "
            f"score {score_threshold}, IoU {iou_threshold}, {max_detections} detections"
        )
    _check_maps(maps, spec)
    parts = [
        _candidates(values, head, score_threshold)
        for values, head in zip(maps, spec.heads, strict=True)
    ]
    boxes, scores, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
    kept = suppress(boxes, scores, classes, iou_threshold)
    # A box may lie in the padding altogether: clipped to the image, nothing of it remains.
    corners = letterbox.to_image(boxes[kept])
    visible = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))[:max_detections]
    kept = kept[visible]
    return Detections(corners[visible], scores[kept], classes[kept])


def suppress(
    boxes: Floats, scores: Floats, classes: Integers, iou_threshold: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression within each class, among the best `MAX_CANDIDATES`.

    Args:
        boxes: (N, 4) corners.
        scores: (N,); of equal scores the earlier wins.
        classes: (N,).
        iou_threshold: A box is dropped when its IoU with a better kept one is above this.

    Returns:
        (K,) indices of what is kept, by falling score.
    """
    candidates = np.arange(len(scores))
    if len(scores) > MAX_CANDIDATES:
        lowest = np.partition(scores, -MAX_CANDIDATES)[-MAX_CANDIDATES]
        candidates = np.flatnonzero(scores >= lowest)
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:MAX_CANDIDATES]
    boxes, classes = boxes[order], classes[order]
    drops = (box_iou(boxes, boxes) > iou_threshold) & (classes[:, None] == classes)
    drops &= np.arange(len(order))[:, None] < np.arange(len(order))  # only worse ones
    kept = np.ones(len(order), np.bool_)
    for index in drops.any(axis=1).nonzero()[0]:
        if kept[index]:
            kept[drops[index]] = False
    return order[kept]


def box_iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair of boxes; 0 where both are without area.

    Args:
        first: (N, 4) corners.
        second: (M, 4) corners.

    Returns:
        (N, M) in [0, 1].
    """
    x1, y1, x2, y2 = np.ascontiguousarray(first.T)[:, :, None]
    u1, v1, u2, v2 = np.ascontiguousarray(second.T)
    shared: Floats = (np.minimum(x2, u2) - np.maximum(x1, u1)).clip(0)
    shared *= (np.minimum(y2, v2) - np.maximum(y1, v1)).clip(0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    shared /= np.where(union > 0, union, np.float32(1))
    return shared


def _candidates(
    values: Floats, head: YoloHeadSpec, score_threshold: float
) -> tuple[Floats, Floats, Integers]:
    """All (boxes, scores, classes) of one map above the threshold, boxes in input pixels."""
    columns = values.shape[2]
    cells = values.reshape(len(head.anchors), 5 + head.classes, -1)
    # A score is at most its objectness, so most cells end here, having cost one comparison.
    anchor, cell = (cells[:, 4] >= _logit(score_threshold)).nonzero()
    rows = cells[anchor, :, cell]
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        anchor, cell, rows = anchor[finite], cell[finite], rows[finite]
    probabilities = _sigmoid(rows[:, 4:5]) * _sigmoid(rows[:, 5:])
    row, label = (probabilities >= score_threshold).nonzero()
    grid = np.stack([cell % columns, cell // columns], axis=1).astype(np.float32)
    centres = (_sigmoid(rows[:, :2]) + grid) * np.float32(head.stride)
    scales = np.exp(rows[:, 2:4].clip(-_MAX_LOG_SCALE, _MAX_LOG_SCALE))
    halves = np.array(head.anchors, np.float32)[anchor] * scales * np.float32(0.5)
    boxes = np.concatenate([centres - halves, centres + halves], axis=1)
    return boxes[row], probabilities[row, label], label.astype(np.int32)


def _check_maps(maps: Sequence[Floats], spec: DetectorSpec) -> None:
    given = [(values.shape, str(values.dtype)) for values in maps]
    expected = [(shape, "float32") for shape in spec.map_shapes]
    if given != expected:
        raise ModelError(f"expected output maps {expected}, got {given}")


def _logit(probability: float) -> float:
    """The logit, a little below the exact one, so that float32 rounding loses no candidate."""
    inside = min(max(probability, 1e-12), 1 - 1e-7)
    return math.log(inside / (1 - inside)) - 1e-3


def _sigmoid(values: Floats) -> Floats:
    odds: Floats = np.exp(-values.clip(-_MAX_LOGIT, _MAX_LOGIT))
    return np.float32(1) / (np.float32(1) + odds)
