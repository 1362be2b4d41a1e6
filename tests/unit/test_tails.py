"""The cloud's half: what is checked before a tail runs, and what it makes of a frame."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.codec import seal
from common.errors import PayloadError, UnknownPlanError
from common.imaging.placement import fit_image
from common.rpc import splitpoint_pb2 as pb
from common.tasks.detections import as_detections
from edge.detector import find_plan
from edge.head import open_plans
from tests import tiny


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(
        tmp_path_factory.mktemp("bundle") / "b", [*tiny.ALL_PLANS, tiny.SPLIT_8, tiny.SPLIT_CONTEXT]
    )


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    return Tails(bundle)


def frame_of(bundle: Bundle, name: str) -> pb.Frame:
    digest = find_plan(bundle, name)
    pixels = fit_image(tiny.image(), (tiny.SIZE, tiny.SIZE))
    cut = open_plans(bundle, [digest])[digest].cut(pixels)
    return pb.Frame(plan_digest=digest, image_width=48, image_height=40, payloads=cut.payloads)


@pytest.mark.parametrize("name", [tiny.SPLIT, tiny.SPLIT_8, tiny.SPLIT_CONTEXT, tiny.CLOUD_ONLY])
def test_a_frame_is_finished(bundle: Bundle, tails: Tails, name: str) -> None:
    frame = frame_of(bundle, name)

    finished = tails.runner(frame.plan_digest).finish(frame)

    assert len(as_detections(finished.result)) > 0
    assert (as_detections(finished.result).boxes[:, 2:] <= (48, 40)).all()
    assert min(finished.decode_ms, finished.tail_ms, finished.postprocess_ms) >= 0


def test_how_symbols_are_coded_changes_nothing_else(bundle: Bundle, tails: Tails) -> None:
    frames = [frame_of(bundle, name) for name in (tiny.SPLIT, tiny.SPLIT_CONTEXT)]

    one, other = (as_detections(tails.runner(f.plan_digest).finish(f).result) for f in frames)

    assert frames[0].payloads[0].data != frames[1].payloads[0].data
    np.testing.assert_array_equal(one.boxes, other.boxes)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_the_threshold_of_the_frame_holds(bundle: Bundle, tails: Tails) -> None:
    frame = frame_of(bundle, tiny.SPLIT)
    frame.score_threshold = 0.9

    found = as_detections(tails.runner(frame.plan_digest).finish(frame).result)
    assert (found.scores >= 0.9).all()


def truncate(frame: pb.Frame) -> None:
    data = frame.payloads[0].data[:-1]
    frame.payloads[0].data = data
    frame.payloads[0].crc32 = seal(data)


def flip_a_bit(frame: pb.Frame) -> None:
    data = bytearray(frame.payloads[0].data)
    data[len(data) // 2] ^= 1
    frame.payloads[0].data = bytes(data)


def lengthen(frame: pb.Frame) -> None:
    data = frame.payloads[0].data + b"\0"
    frame.payloads[0].data = data
    frame.payloads[0].crc32 = seal(data)


def empty(frame: pb.Frame) -> None:
    frame.payloads[0].CopyFrom(pb.Payload(crc32=seal(b"")))


def add_a_payload(frame: pb.Frame) -> None:
    frame.payloads.add()


def drop_payloads(frame: pb.Frame) -> None:
    del frame.payloads[:]


def no_width(frame: pb.Frame) -> None:
    frame.image_width = 0


def vast_height(frame: pb.Frame) -> None:
    frame.image_height = 2**32 - 1


def threshold_nan(frame: pb.Frame) -> None:
    frame.score_threshold = float("nan")


def threshold_over_one(frame: pb.Frame) -> None:
    frame.score_threshold = 1.5


def threshold_negative(frame: pb.Frame) -> None:
    frame.score_threshold = -0.1


@pytest.mark.parametrize("name", [tiny.SPLIT, tiny.SPLIT_8, tiny.CLOUD_ONLY])
@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        flip_a_bit,
        lengthen,
        empty,
        add_a_payload,
        drop_payloads,
        no_width,
        vast_height,
        threshold_nan,
        threshold_over_one,
        threshold_negative,
    ],
)
def test_a_spoilt_frame_is_a_bad_payload(
    bundle: Bundle, tails: Tails, name: str, spoil: Callable[[pb.Frame], None]
) -> None:
    frame = frame_of(bundle, name)
    spoil(frame)
    with pytest.raises(PayloadError):
        tails.runner(frame.plan_digest).finish(frame)


def test_plans_with_the_same_tail_share_one_model(tails: Tails) -> None:
    assert len(tails.digests) == 4
    assert tails.opened == 2


def test_ready_once_every_tail_has_run(bundle: Bundle) -> None:
    tails = Tails(bundle)
    assert not tails.ready
    tails.warm_up()
    assert tails.ready


def test_an_edge_only_plan_has_no_tail(bundle: Bundle, tails: Tails) -> None:
    digest = find_plan(bundle, tiny.EDGE_ONLY)
    assert digest not in tails.digests
    with pytest.raises(UnknownPlanError):
        tails.runner(digest)
    tails.check_report(digest)


def test_a_report_of_another_plan_is_refused(bundle: Bundle, tails: Tails) -> None:
    for digest in (bytes(32), find_plan(bundle, tiny.SPLIT)):
        with pytest.raises(UnknownPlanError):
            tails.check_report(digest)


def test_the_image_runner_is_the_whole_network(tails: Tails) -> None:
    assert tails.image_runner().plan.name == tiny.CLOUD_ONLY


def test_without_a_cloud_only_plan_there_is_no_image_runner(tmp_path: Path) -> None:
    tails = Tails(tiny.build(tmp_path / "b", [tiny.SPLIT]))
    with pytest.raises(UnknownPlanError, match="no cloud-only plan"):
        tails.image_runner()


def test_symbols_become_values_by_the_plans_table(bundle: Bundle, tails: Tails) -> None:
    runner = tails.runner(find_plan(bundle, tiny.SPLIT))
    (wire,) = runner.plan.wire
    symbols = np.arange(np.prod(wire.shape), dtype=np.int64).reshape(wire.shape) % 16

    (values,) = runner.values([symbols.astype(np.uint8)])

    np.testing.assert_array_equal(values, np.array(wire.to_value, np.float32)[symbols])
