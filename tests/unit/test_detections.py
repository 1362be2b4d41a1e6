"""Decoding YOLO maps, suppression against a slow, obvious reference, and what is made of both."""

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
    @settings(max_examples=60)
    def test_candidates_are_those_of_the_formulas(self, seed: int, threshold: float) -> None:
        rng = np.random.default_rng(seed)
        maps = [rng.normal(0, 1.5, shape).astype(np.float32) for shape in SPEC.map_shapes]
        sure = reference_candidates(maps, threshold + 1e-5)
        perhaps = reference_candidates(maps, threshold - 1e-5)
        detections = decode_yolo(
            maps, SPEC, WHOLE, score_threshold=threshold, iou_threshold=1, max_detections=10_000
        )
        assert len(sure) <= len(detections) <= len(perhaps)
        columns = [detections.boxes, detections.scores[:, None], detections.classes[:, None]]
        rows = np.concatenate(columns, axis=1)
        for (x1, y1, x2, y2), score, index in sure:
            row = [max(x1, 0), max(y1, 0), min(x2, 96), min(y2, 64), score, index]
            assert (np.abs(rows - row) < 1e-2).all(axis=1).any()


class TestHostileMaps:
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("channel", [0, 2, 4, 5])
    def test_a_cell_that_is_not_finite_reports_nothing(self, value: float, channel: int) -> None:
        maps = silent_maps()
        put(maps[0], anchor=0, row=0, column=0, classes={0: 5})
        put(maps[0], anchor=0, row=1, column=2, classes={1: 5})
        maps[0][channel, 0, 0] = value
        assert decode_yolo(maps, SPEC, WHOLE).classes.tolist() == [1]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 88.8, -88.8, 0.0])
    @pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0])
    def test_maps_of_one_value_neither_warn_nor_overflow(
        self, value: float, threshold: float
    ) -> None:
        maps = [np.full(shape, value, np.float32) for shape in SPEC.map_shapes]
        with np.errstate(all="raise", under="ignore"):
            detections = decode_yolo(maps, SPEC, WHOLE, score_threshold=threshold)
        assert np.isfinite(detections.boxes).all()
        assert len(detections) <= 100

    @given(seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=50)
    def test_maps_of_any_bits(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        maps = [
            rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32)
            for shape in SPEC.map_shapes
        ]
        with np.errstate(all="raise", under="ignore"):
            detections = decode_yolo(maps, SPEC, WHOLE)
        assert np.isfinite(detections.boxes).all()
        assert ((detections.boxes >= 0) & (detections.boxes <= (96, 64, 96, 64))).all()
        assert ((detections.scores >= 0.25) & (detections.scores <= 1)).all()
        assert (np.diff(detections.scores) <= 0).all()

    @pytest.mark.parametrize(
        "maps",
        [
            [],
            silent_maps()[:1],
            silent_maps()[::-1],
            [values[None] for values in silent_maps()],
            [values.astype(np.float64) for values in silent_maps()],
        ],
        ids=["none", "one missing", "swapped", "batched", "float64"],
    )
    def test_maps_of_another_shape_are_refused(self, maps: list[Floats]) -> None:
        with pytest.raises(ModelError, match="expected output maps"):
            decode_yolo(maps, SPEC, WHOLE)

    @pytest.mark.parametrize(
        "options",
        [
            {"score_threshold": -0.1},
            {"score_threshold": math.nan},
            {"iou_threshold": 1.1},
            {"max_detections": 0},
        ],
    )
    def test_options_without_sense_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(SettingsError):
            decode_yolo(silent_maps(), SPEC, WHOLE, **options)


# Whole numbers keep float32 exact, so the reference in float64 meets the same ties.
corner = st.integers(0, 12)
side = st.integers(0, 8)
scored_box = st.tuples(corner, corner, side, side, st.integers(0, 10), st.integers(0, 2))


class TestSuppress:
    @given(
        entries=st.lists(scored_box, max_size=40),
        iou_threshold=st.sampled_from([0.0, 0.3, 0.45, 0.5, 1.0]),
    )
    def test_it_equals_the_reference(
        self, entries: list[tuple[int, ...]], iou_threshold: float
    ) -> None:
        boxes: list[Box] = [(x, y, x + w, y + h) for x, y, w, h, _, _ in entries]
        scores = [entry[4] / 16 for entry in entries]
        classes = [entry[5] for entry in entries]
        kept = suppress(
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(classes, np.int32),
            iou_threshold,
        )
        assert kept.tolist() == reference_suppress(boxes, scores, classes, iou_threshold)

    def test_a_suppressed_box_suppresses_nothing(self) -> None:
        chain: list[Box] = [(0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)]
        row = found(chain)
        assert suppress(row.boxes, row.scores, row.classes, 0.4).tolist() == [0, 2]

    def test_only_the_best_candidates_enter(self) -> None:
        count = MAX_CANDIDATES + 500
        left = np.arange(count, dtype=np.float32) * 10
        boxes = np.stack([left, left * 0, left + 5, left * 0 + 5], axis=1)
        scores = np.linspace(0, 1, count, dtype=np.float32)
        kept = suppress(boxes, scores, np.zeros(count, np.int32), 0.45)
        assert kept.tolist() == list(range(count - 1, count - 1 - MAX_CANDIDATES, -1))

    def test_the_cap_takes_the_earlier_of_equal_scores(self) -> None:
        count = MAX_CANDIDATES + 1
        left = np.arange(count, dtype=np.float32) * 10
        boxes = np.stack([left, left * 0, left + 5, left * 0 + 5], axis=1)
        kept = suppress(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int32), 0.45)
        assert kept.tolist() == list(range(MAX_CANDIDATES))

    def test_iou(self) -> None:
        first = np.array([[0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
        second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], np.float32)
        expected = np.array([[1, 1 / 3, 0], [0, 0, 0]], np.float32)
        np.testing.assert_allclose(box_iou(first, second), expected, rtol=1e-6)


class TestDetections:
    def test_to_coco(self) -> None:
        detections = found([(1.006, 2, 11.5, 7)], [0.87654], [79])
        assert detections.to_coco(42) == [
            {"image_id": 42, "category_id": 90, "bbox": [1.01, 2.0, 10.49, 5.0], "score": 0.8765}
        ]

    def test_to_coco_with_ids_of_another_data_set(self) -> None:
        assert found([(0, 0, 1, 1)]).to_coco(1, [17])[0]["category_id"] == 17

    def test_to_json_is_json(self) -> None:
        entries = found([(1, 2, 4, 8)], [0.5], [16]).to_json(coco.CLASS_NAMES)
        expected = {"class_name": "dog", "category_id": 18, "score": 0.5, "bbox": [1, 2, 3, 6]}
        assert json.loads(json.dumps(entries)) == [expected]

    @pytest.mark.parametrize("index", [-1, 80])
    def test_an_unknown_class_is_refused(self, index: int) -> None:
        detections = found([(0, 0, 1, 1)], [0.5], [index])
        with pytest.raises(ModelError, match="classes below 80"):
            detections.to_coco(1)
        with pytest.raises(ModelError, match="classes below 80"):
            detections.to_json(coco.CLASS_NAMES)

    def test_empty(self) -> None:
        assert len(Detections.empty()) == 0
        assert Detections.empty().to_coco(1) == []

    def test_columns_of_unequal_length_are_refused(self) -> None:
        with pytest.raises(ValueError, match="shapes"):
            Detections(np.zeros((2, 4), np.float32), np.zeros(1, np.float32), np.zeros(2, np.int32))


class TestAgreement:
    LEFT: Box = (0, 0, 10, 10)
    NEAR_LEFT: Box = (1, 0, 11, 10)
    RIGHT: Box = (50, 0, 60, 10)

    @pytest.mark.parametrize(
        ("expected", "actual", "result"),
        [
            ([], [], (0, 0, 0)),
            ([LEFT], [], (0, 1, 0)),
            ([], [LEFT], (0, 0, 1)),
            ([LEFT, RIGHT], [RIGHT, NEAR_LEFT], (2, 0, 0)),
            ([LEFT], [RIGHT], (0, 1, 1)),
            ([LEFT], [LEFT, NEAR_LEFT], (1, 0, 1)),  # each is paired once
            ([LEFT, NEAR_LEFT], [LEFT], (1, 1, 0)),
        ],
    )
    def test_counts(
        self, expected: list[Box], actual: list[Box], result: tuple[int, int, int]
    ) -> None:
        assert agreement(found(expected), found(actual)) == Agreement(*result)

    def test_another_class_does_not_match(self) -> None:
        one = found([self.LEFT], [0.9], [0])
        other = found([self.LEFT], [0.9], [1])
        assert agreement(one, other) == Agreement(matched=0, missing=1, extra=1)

    def test_the_overlap_that_is_asked_for(self) -> None:
        one, other = found([self.LEFT]), found([self.NEAR_LEFT])  # IoU 9/11
        assert agreement(one, other, iou=0.81).matched == 1
        assert agreement(one, other, iou=0.82).matched == 0


class TestSpec:
    def test_it_survives_json(self) -> None:
        assert DetectorSpec.model_validate_json(SPEC.model_dump_json()) == SPEC

    def test_map_shapes(self) -> None:
        assert SPEC.map_shapes == ((27, 2, 3), (18, 4, 6))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"class_names": ["cat"]}, "4 classes"),
            ({"class_names": []}, "at least 1"),
            ({"input_height": 60}, "no multiple"),
            ({"input_width": 0}, "greater than or equal"),
            ({"heads": []}, "at least 1"),
            ({"kind": "yolov9"}, "yolov3"),
            ({"colour": "red"}, "Extra inputs"),
        ],
    )
    def test_what_does_not_fit_together(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            DetectorSpec.model_validate(SPEC.model_dump() | change)

    @pytest.mark.parametrize(
        "change",
        [{"stride": 0}, {"anchors": []}, {"anchors": [[0, 1]]}, {"classes": 0}, {"anchors": [[1]]}],
    )
    def test_heads_that_make_no_sense(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            YoloHeadSpec.model_validate(SPEC.heads[0].model_dump() | change)

    def test_infinite_anchors_are_refused(self) -> None:
        with pytest.raises(ValidationError):
            YoloHeadSpec(stride=32, anchors=((math.inf, 1.0),), classes=1)


class TestCoco:
    def test_80_classes_within_91_categories(self) -> None:
        assert len(coco.CLASS_NAMES) == len(set(coco.CLASS_NAMES)) == 80
        assert list(coco.CATEGORY_IDS) == sorted(set(coco.CATEGORY_IDS))
        assert set(range(1, 91)) - set(coco.CATEGORY_IDS) == {
            12, 26, 29, 30, 45, 66, 68, 69, 71, 83
        }  # fmt: skip

    def test_other_classes_are_numbered_from_1(self) -> None:
        assert coco.category_ids(["cat", "dog"]) == (1, 2)
        assert coco.category_ids(list(coco.CLASS_NAMES)) == coco.CATEGORY_IDS
