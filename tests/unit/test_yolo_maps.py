"""Decoding YOLO maps against the formulas, one value at a time; hostile maps, and their spec."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError

from common.errors import ModelError, SettingsError
from common.imaging.placement import Placement
from common.tasks.base import ResultSettings
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import Detections, DetectionTask, as_detections
from tests.tasks import yolo_task

Floats = NDArray[np.float32]
Box = tuple[float, float, float, float]

ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0))
HEADS = (AnchorMap(stride=32, anchors=ANCHORS), AnchorMap(stride=16, anchors=ANCHORS[:2]))
SPEC = yolo_task(64, 96, HEADS, ("cat", "dog", "bird", "fish"))
SHAPES = YoloV3(heads=HEADS).map_shapes((64, 96), 4)
WHOLE = Placement.fit(96, 64, (64, 96))
OFF = -20.0


def decode(maps: list[Floats], where: Placement, **options: Any) -> Detections:
    return as_detections(SPEC.decode(maps, where, ResultSettings(**options)))


def silent_maps() -> list[Floats]:
    return [np.full(shape, OFF, np.float32) for shape in SHAPES]


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


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def reference_candidates(maps: list[Floats], threshold: float) -> list[tuple[Box, float, int]]:
    """The formulas of `YoloV3`, one value at a time."""
    result = []
    for values, head in zip(maps, HEADS, strict=True):
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
        detections = decode(silent_maps(), WHOLE)
        assert len(detections) == 0
        assert detections.boxes.shape == (0, 4)

    def test_one_box_in_pixels(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=1, row=2, column=3, objectness=2, classes={2: 3})
        detections = decode(maps, WHOLE)
        x, y = 3.5 * 16, 2.5 * 16
        expected = [[x - 11.5, y - 13.5, x + 11.5, y + 13.5]]
        np.testing.assert_allclose(detections.boxes, expected, rtol=1e-6)
        np.testing.assert_allclose(detections.scores, [sigmoid(2) * sigmoid(3)], rtol=1e-6)
        assert detections.classes.tolist() == [2]

    def test_dtypes(self) -> None:
        maps = silent_maps()
        put(maps[0], anchor=0, row=0, column=0, classes={0: 5})
        detections = decode(maps, WHOLE)
        assert detections.boxes.dtype == np.float32
        assert detections.scores.dtype == np.float32
        assert detections.classes.dtype == np.int32

    def test_boxes_are_in_pixels_of_the_source(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=0, row=1, column=2, classes={0: 5})
        small = decode(maps, WHOLE).boxes
        large = decode(maps, Placement.fit(960, 640, (64, 96))).boxes
        np.testing.assert_allclose(large, small * 10, rtol=1e-5)

    def test_a_box_is_reported_for_every_class_above_the_threshold(self) -> None:
        maps = silent_maps()
        put(maps[0], anchor=0, row=0, column=0, classes={0: 1, 1: 3, 3: -3})
        assert decode(maps, WHOLE).classes.tolist() == [1, 0]

    def test_duplicates_of_a_class_are_suppressed_across_heads(self) -> None:
        maps = silent_maps()
        # Both centred at (32, 32): the corner of four cells of the second map, half a cell of the
        # first; the same anchor.
        put(maps[0], anchor=0, row=0, column=0, box=(20, 20, 0, 0), classes={0: 3, 1: 2})
        put(maps[1], anchor=0, row=1, column=1, box=(20, 20, 0, 0), classes={0: 1})
        detections = decode(maps, WHOLE)
        assert detections.classes.tolist() == [0, 1]

    def test_a_box_in_the_padding_is_dropped(self) -> None:
        maps = silent_maps()
        put(maps[1], anchor=0, row=0, column=0, classes={0: 5})
        high = Placement.fit(10, 640, (64, 96))
        assert high.left > 16
        assert len(decode(maps, high)) == 0

    def test_the_best_are_reported_first_and_no_more_than_asked(self) -> None:
        maps = silent_maps()
        for column in range(6):
            put(maps[1], anchor=0, row=0, column=column, objectness=column, classes={0: 20})
        detections = decode(maps, WHOLE, max_detections=3)
        expected = [sigmoid(5), sigmoid(4), sigmoid(3)]
        np.testing.assert_allclose(detections.scores, expected, rtol=1e-6)

    @given(seed=st.integers(0, 2**32 - 1), threshold=st.floats(0.05, 0.9))
    @settings(max_examples=60)
    def test_candidates_are_those_of_the_formulas(self, seed: int, threshold: float) -> None:
        rng = np.random.default_rng(seed)
        maps = [rng.normal(0, 1.5, shape).astype(np.float32) for shape in SHAPES]
        sure = reference_candidates(maps, threshold + 1e-5)
        perhaps = reference_candidates(maps, threshold - 1e-5)
        detections = decode(
            maps, WHOLE, score_threshold=threshold, iou_threshold=1, max_detections=1000
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
        assert decode(maps, WHOLE).classes.tolist() == [1]

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38, 88.8, -88.8, 0.0])
    @pytest.mark.parametrize("threshold", [0.0, 0.25, 1.0])
    def test_maps_of_one_value_neither_warn_nor_overflow(
        self, value: float, threshold: float
    ) -> None:
        maps = [np.full(shape, value, np.float32) for shape in SHAPES]
        with np.errstate(all="raise", under="ignore"):
            detections = decode(maps, WHOLE, score_threshold=threshold)
        assert np.isfinite(detections.boxes).all()
        assert len(detections) <= 100

    @given(seed=st.integers(0, 2**32 - 1))
    @settings(max_examples=50)
    def test_maps_of_any_bits(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        maps = [rng.integers(0, 2**32, shape, dtype=np.uint32).view(np.float32) for shape in SHAPES]
        with np.errstate(all="raise", under="ignore"):
            detections = decode(maps, WHOLE)
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
        with pytest.raises(ModelError, match="expected output"):
            decode(maps, WHOLE)

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
            decode(silent_maps(), WHOLE, **options)


class TestSpec:
    def test_it_survives_json(self) -> None:
        assert DetectionTask.model_validate_json(SPEC.model_dump_json()) == SPEC

    def test_map_shapes(self) -> None:
        assert SHAPES == ((27, 2, 3), (18, 4, 6))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"class_names": []}, "at least 1"),
            ({"image": {"height": 60, "width": 96}}, "no multiple"),
            ({"image": {"height": 64, "width": 0}}, "greater than or equal"),
            ({"decoder": {"kind": "yolov3", "heads": []}}, "at least 1"),
            ({"decoder": {"kind": "yolov9", "heads": []}}, "yolov3"),
            ({"kind": "divination"}, "detection"),
            ({"colour": "red"}, "Extra inputs"),
        ],
    )
    def test_what_does_not_fit_together(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            DetectionTask.model_validate(SPEC.model_dump() | change)

    @pytest.mark.parametrize(
        "change", [{"stride": 0}, {"anchors": []}, {"anchors": [[0, 1]]}, {"anchors": [[1]]}]
    )
    def test_heads_that_make_no_sense(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            AnchorMap.model_validate(HEADS[0].model_dump() | change)

    def test_infinite_anchors_are_refused(self) -> None:
        with pytest.raises(ValidationError):
            AnchorMap(stride=32, anchors=((math.inf, 1.0),))
