"""Detections over the wire: there and back, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cloud.message_sizes import largest_message_bytes
from common.bundle.bundle import open_codecs
from common.errors import PayloadError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import (
    MAX_MEASUREMENTS,
    MAX_PROBE_BYTES,
    microseconds,
)
from common.tables.rows import MAX_PROFILE_ROWS
from common.tasks.base import ResultSettings
from common.tasks.detections import MAX_DETECTIONS, Detections, as_detections
from tests import tiny

NAN = float("nan")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_and_back(count: int) -> None:
    rng = np.random.default_rng(count)
    sent = Detections(
        boxes=rng.uniform(0, 640, (count, 4)).astype(np.float32),
        scores=rng.uniform(0, 1, count).astype(np.float32),
        classes=rng.integers(0, 2, count).astype(np.int32),
    )
    result = pb.Result()
    sent.write(result)

    got = as_detections(tiny.DETECTOR.read(pb.Result.FromString(result.SerializeToString())))

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
        tiny.DETECTOR.read(pb.Result(detections=message))


def test_more_than_any_end_finds_are_refused_before_they_are_looked_at() -> None:
    count = MAX_DETECTIONS + 1
    message = pb.Detections(boxes=[0.0] * 4 * count, scores=[NAN] * count, classes=[0] * count)
    with pytest.raises(PayloadError, match="at most 1000, got 1001"):
        tiny.DETECTOR.read(pb.Result(detections=message))


def test_as_many_as_one_end_can_find_are_taken() -> None:
    count = MAX_DETECTIONS
    message = pb.Detections(boxes=[0.0] * 4 * count, scores=[0.5] * count, classes=[0] * count)
    assert len(tiny.DETECTOR.read(pb.Result(detections=message))) == count


class TestLargestMessage:
    def test_an_honest_frame_of_every_plan_fits(self, tmp_path: Path) -> None:
        """With noise, which no codec makes smaller."""
        names = (tiny.SPLIT, tiny.SPLIT_8, tiny.SPLIT_CONTEXT, tiny.CLOUD_ONLY)
        bundle = tiny.build(tmp_path / "bundle", names)
        for plan in bundle.plans.values():
            limit = largest_message_bytes([plan])
            data = b"".join(
                codec.encode(_noise(tensor.shape, tensor.bits), tensor.bits)
                for codec, tensor in zip(open_codecs(bundle, plan), plan.wire, strict=True)
            )
            assert len(data) < limit

    def test_grows_with_the_plan(self, tmp_path: Path) -> None:
        bundle = tiny.build(tmp_path / "bundle", (tiny.CLOUD_ONLY,))
        (plan,) = bundle.plans.values()
        wide = plan.wire[0].model_copy(update={"shape": (3, 416, 416)})
        large = plan.model_copy(update={"wire": (wide,)})
        assert 2 * 3 * 416**2 < largest_message_bytes([plan, large]) < 2.1 * 3 * 416**2

    def test_every_message_without_payloads_fits(self) -> None:
        digest = bytes(32)
        times = pb.EdgeTimes(
            **{f.name: 2**31 for f in pb.EdgeTimes.DESCRIPTOR.fields if f.name != "uplink_bps"}
        )
        measured = [pb.Measurement(frame_id=2**63, times=times)] * MAX_MEASUREMENTS
        found = pb.Detections(
            boxes=[1.0] * 4 * MAX_DETECTIONS,
            scores=[1.0] * MAX_DETECTIONS,
            classes=[2**31] * MAX_DETECTIONS,
        )
        row = pb.StageTimes(
            plan_digest=digest,
            stage="postprocess",
            n=2**31,
            median_us=2**31,
            p90_us=2**31,
            low_us=2**31,
            high_us=2**31,
        )
        expected = pb.Expectation(
            plan_digest=digest, latency_us=2**31, fixed_us=2**31, uplink_bytes=2**31
        )
        messages = [
            pb.EdgeMessage(report=pb.Report(detections=found, times=times, measured=measured)),
            pb.EdgeMessage(probe=pb.Probe(padding=bytes(MAX_PROBE_BYTES))),
            pb.EdgeMessage(switch=pb.Switch(reason="\U0001f4f7" * 300, expected=[expected] * 256)),
            pb.EdgeMessage(profile=pb.ProfileReport(rows=[row] * MAX_PROFILE_ROWS)),
        ]
        assert max(message.ByteSize() for message in messages) < largest_message_bytes([])


def _noise(shape: tuple[int, int, int], bits: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 1 << bits, shape, dtype=np.uint8)


def test_a_threshold_of_zero_stands_for_the_default() -> None:
    assert ResultSettings.from_frame(pb.Frame()) == ResultSettings()
    assert ResultSettings.from_frame(pb.Frame(score_threshold=0.5)).score_threshold == 0.5


@pytest.mark.parametrize("value", [-0.1, 1.1, NAN, float("inf")])
def test_other_thresholds_are_refused(value: float) -> None:
    with pytest.raises(PayloadError, match="threshold"):
        ResultSettings.from_frame(pb.Frame(score_threshold=value))


@pytest.mark.parametrize(("ms", "us"), [(0, 0), (1.5, 1500), (-1, 0), (1e9, 2**32 - 1)])
def test_microseconds_stay_within_32_bits(ms: float, us: int) -> None:
    assert microseconds(ms) == us
