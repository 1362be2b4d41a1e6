"""Decoding YOLO maps, suppression against a slow and obvious reference, and the formats that leave."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from common import coco
from common.detections import (
    MAX_CANDIDATES,
    Agreement,
    Detections,
    DetectorSpec,
    YoloHeadSpec,
    agreement,
    box_iou,
    decode_yolo,
    suppress,
)
from common.errors import ModelError, SettingsError
from common.images import Letterbox

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
SPEC = DetectorSpec(
    kind="yolov3",
    input_height=64,
    input_width=96,
    heads=(
        YoloHeadSpec(stride=32, anchors=ANCHORS, classes=4),
        YoloHeadSpec(stride=16, anchors=ANCHORS[:2], classes=4),
    ),
    class_names=("cat", "dog", "bird", "fish"),
)
WHOLE = Letterbox.fit(96, 64, (64, 96))
OFF = -20.0


def silent_maps() -> list[Floats]:
    return [np.full(shape, OFF, np.float32) for shape in SPEC.map_shapes]


def put(
    values: Floats,
    *,
    anchor: int,
    row: int,
    column: int,
    box: Box = (0, 0, 0, 0),
    objectness: float = 10,
    classes: dict[int, float],
) -> None:
    start = anchor * (5 + 4)
    cell = values[start : start + 9, row, column]
    cell[:4] = box
    cell[4] = objectness
    for index, value in classes.items():
        cell[5 + index] = value


def found(
    boxes: list[Box], scores: list[float] | None = None, classes: list[int] | None = None
) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores or np.linspace(0.9, 0.5, count), np.float32),
        np.array(classes or [0] * count, np.int32),
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def reference_iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def reference_suppress(
    boxes: list[Box], scores: list[float], classes: list[int], iou_threshold: float
) -> list[int]:
    """Best first: keep a box unless a kept one of its class overlaps it too much."""
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        rivals = [k for k in kept if classes[k] == classes[index]]
        if all(reference_iou(boxes[k], boxes[index]) <= iou_threshold for k in rivals):
            kept.append(index)
    return kept


def reference_candidates(maps: list[Floats], threshold: float) -> list[tuple[Box, float, int]]:
    """The formulas of `decode_yolo`, one value at a time."""
    result = []
    for values, head in zip(maps, SPEC.heads, strict=True):
        for a, (anchor_width, anchor_height) in enumerate(head.anchors):
            for row, column in np.ndindex(values.shape[1:]):
                cell = values[a * 9 : a * 9 + 9, row, column].tolist()
                x = (sigmoid(cell[0]) + column) * head.stride
                y = (sigmoid(cell[1]) + row) * head.stride
                w, h = anchor_width * math.exp(cell[2]), anchor_height * math.exp(cell[3])
                corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
                for index, value in enumerate(cell[5:]):
                    score = sigmoid(cell[4]) * sigmoid(value)
                    if score >= threshold:
                        result.append((corners, score, index))
    return result


class TestDecode:
    def test_a_silent_network_finds_nothing(self) -> None:
        detections = decode_yolo(silent_maps(), SPEC, WHOLE)
        assert len(detections) == 0
        assert detections.boxes.shape == (0, 4)

    def test_one_box_in_pixels(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=1, row=2, column=3, objectness=2, classes={2: 3})
        detections = decode_yolo(maps, SPEC, WHOLE)
        x, y = 3.5 * 16, 2.5 * 16
        expected = [[x - 11.5, y - 13.5, x + 11.5, y + 13.5]]
        np.testing.assert_allclose(detections.boxes, expected, rtol=1e-6)
        np.testing.assert_allclose(detections.scores, [sigmoid(2) * sigmoid(3)], rtol=1e-6)
        assert detections.classes.tolist() == [2]

    def test_dtypes(self) -> None:
        maps = silent_maps()
        put(maps[0], anchor=0, row=0, column=0, classes={0: 5})
        detections = decode_yolo(maps, SPEC, WHOLE)
        assert detections.boxes.dtype == np.float32
        assert detections.scores.dtype == np.float32
        assert detections.classes.dtype == np.int32

    def test_boxes_are_in_pixels_of_the_source(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=0, row=1, column=2, classes={0: 5})
        small = decode_yolo(maps, SPEC, WHOLE).boxes
        large = decode_yolo(maps, SPEC, Letterbox.fit(960, 640, (64, 96))).boxes
        np.testing.assert_allclose(large, small * 10, rtol=1e-5)

    def test_a_box_is_reported_for_every_class_above_the_threshold(self) -> None:
        maps = silent_maps()
        put(maps[0], anchor=0, row=0, column=0, classes={0: 1, 1: 3, 3: -3})
        assert decode_yolo(maps, SPEC, WHOLE).classes.tolist() == [1, 0]

    def test_duplicates_of_a_class_are_suppressed_across_heads(self) -> None:
        maps = silent_maps()
        # Both centred at (32, 32): the corner of four cells of the second map, half a cell of the
        # first; the same anchor.
        put(maps[0], anchor=0, row=0, column=0, box=(20, 20, 0, 0), classes={0: 3, 1: 2})
        put(maps[1], anchor=0, row=1, column=1, box=(20, 20, 0, 0), classes={0: 1})
        detections = decode_yolo(maps, SPEC, WHOLE)
        assert detections.classes.tolist() == [0, 1]

    def test_a_box_in_the_padding_is_dropped(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=0, row=0, column=0, classes={0: 5})
        high = Letterbox.fit(10, 640, (64, 96))
        assert high.left > 16
        assert len(decode_yolo(maps, SPEC, high)) == 0

    def test_the_best_are_reported_first_and_no_more_than_asked(self) -> None:
        maps = silent_maps()
        for column in range(6):
            put(maps[1], anchor=0, row=0, column=column, objectness=column, classes={0: 20})
        detections = decode_yolo(maps, SPEC, WHOLE, max_detections=3)
        expected = [sigmoid(5), sigmoid(4), sigmoid(3)]
        np.testing.assert_allclose(detections.scores, expected, rtol=1e-6)

    @given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0.05, 0.9))
    @settings(deadline=None, max_examples=60)
    def test_it_equals_the_reference(self, seed: int, threshold: float) -> None:
        rng = np.random.default_rng(seed)
        maps = [rng.normal(0, 2, shape).astype(np.float32) for shape in SPEC.map_shapes]
        candidates = [c for c in reference_candidates(maps, threshold)]
        if any(abs(score - threshold) < 1e-5 for _, score, _ in candidates):
            return
        detections = decode_yolo(
            maps, SPEC, WHOLE, score_threshold=threshold, iou_threshold=1, max_detections=10_000
        )
        extent = (96, 64, 96, 64)
        expected = sorted(
            (-score, index, [min(max(v, 0), e) for v, e in zip(box, extent, strict=True)])
            for box, score, index in candidates
        )
        np.testing.assert_allclose(detections.scores, [-score for score, *_ in expected], rtol=1e-4)
        got = {
            (index, *np.round(box).tolist())
            for index, box in zip(detections.classes.tolist(), detections.boxes, strict=True)
        }
        assert len(got) > 0 or not expected
        ordered = sorted(zip(detections.scores.tolist(), detections.classes.tolist(), strict=True))
        assert [index for _, index in ordered][::-1] == detections.classes.tolist()
        np.testing.assert_allclose(
            detections.boxes.sum(axis=0), np.sum([box for *_, box in expected], axis=0), rtol=1e-3
        )
