"""Suppression against a slow, obvious reference, and what is made of detections."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ModelError
from common.tasks import labels as coco
from common.tasks.base import Agreement
from common.tasks.detections import Detections
from common.tasks.suppression import MAX_CANDIDATES, box_iou, suppress

Box = tuple[float, float, float, float]


def found(
    boxes: list[Box], scores: list[float] | None = None, classes: list[int] | None = None
) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.array(scores or np.linspace(0.9, 0.5, count), np.float32),
        np.array(classes or [0] * count, np.int32),
    )


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
        assert found(expected).agreement(found(actual)) == Agreement(*result)

    def test_another_class_does_not_match(self) -> None:
        one = found([self.LEFT], [0.9], [0])
        other = found([self.LEFT], [0.9], [1])
        assert one.agreement(other) == Agreement(matched=0, missing=1, extra=1)

    def test_the_overlap_that_is_asked_for(self) -> None:
        one, other = found([self.LEFT]), found([self.NEAR_LEFT])  # IoU 9/11
        assert one.agreement(other, iou=0.81).matched == 1
        assert one.agreement(other, iou=0.82).matched == 0


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
