"""Detections over the wire: there and back, and what is refused."""

import numpy as np
import pytest

from common.detections import Detections
from common.errors import PayloadError
from common.messages import (
    MAX_DETECTIONS,
    checked_threshold,
    detections_from_message,
    detections_to_message,
    microseconds,
)
from common.rpc import splitpoint_pb2 as pb

NAN = float("nan")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_and_back(count: int) -> None:
    rng = np.random.default_rng(count)
    sent = Detections(
        boxes=rng.uniform(0, 640, (count, 4)).astype(np.float32),
        scores=rng.uniform(0, 1, count).astype(np.float32),
        classes=rng.integers(0, 80, count).astype(np.int32),
    )
    data = detections_to_message(sent).SerializeToString()

    got = detections_from_message(pb.Detections.FromString(data), 80)

    np.testing.assert_array_equal(got.boxes, sent.boxes)
    np.testing.assert_array_equal(got.scores, sent.scores)
    np.testing.assert_array_equal(got.classes, sent.classes)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(pb.Detections(boxes=[1, 2, 3], scores=[0.5], classes=[0]), id="3 coordinates"),
        pytest.param(pb.Detections(boxes=[1, 2, 3, 4], scores=[0.5]), id="no class"),
        pytest.param(pb.Detections(boxes=[1, 2, 3, 4], classes=[0]), id="no score"),
        pytest.param(pb.Detections(boxes=[1, 2, NAN, 4], scores=[0.5], classes=[0]), id="NaN box"),
        pytest.param(pb.Detections(boxes=[1, 2, 3, 4], scores=[NAN], classes=[0]), id="NaN score"),
        pytest.param(pb.Detections(boxes=[1, 2, 3, 4], scores=[1.5], classes=[0]), id="score > 1"),
        pytest.param(pb.Detections(boxes=[1, 2, 3, 4], scores=[0.5], classes=[2]), id="class 2"),
        pytest.param(
            pb.Detections(boxes=[1, 2, 3, 4], scores=[0.5], classes=[2**32 - 1]), id="class 2^32-1"
        ),
        pytest.param(
            pb.Detections(
                boxes=[0] * 4 * (MAX_DETECTIONS + 1),
                scores=[0.5] * (MAX_DETECTIONS + 1),
                classes=[0] * (MAX_DETECTIONS + 1),
            ),
            id="too many",
        ),
        pytest.param(pb.Detections(boxes=[0] * 4 * (MAX_DETECTIONS + 1)), id="too many boxes"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(message: pb.Detections) -> None:
    with pytest.raises(PayloadError, match=r"^detections: "):
        detections_from_message(message, classes=2)


def test_a_threshold_of_zero_stands_for_the_default() -> None:
    assert checked_threshold(0, 0.25) == 0.25
    assert checked_threshold(0.5, 0.25) == 0.5


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, float("inf")])
def test_other_thresholds_are_refused(value: float) -> None:
    with pytest.raises(PayloadError, match="threshold"):
        checked_threshold(value, 0.25)


@pytest.mark.parametrize(("ms", "us"), [(0, 0), (1.5, 1500), (-1, 0), (1e9, 2**32 - 1)])
def test_microseconds_stay_within_32_bits(ms: float, us: int) -> None:
    assert microseconds(ms) == us
