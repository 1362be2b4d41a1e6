"""Answering one message of a stream: results, rejections, and nothing that escapes."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge
from cloud.reference_frames import ReferenceFrames
from cloud.sessions import EdgeSessions, check_hello
from cloud.store.samples import SampleSource
from cloud.streams import ProtocolError
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.codec import make_codec, seal
from common.rpc import splitpoint_pb2 as pb
from edge.head import open_plans
from tests import tiny
from tests.planes import answer_to


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def plane(bundle: Bundle) -> DataPlane:
    return DataPlane(Tails(bundle), Admission(ThreadPoolExecutor(1), 1))


def _digest(bundle: Bundle, name: str) -> bytes:
    return next(digest for digest, plan in bundle.plans.items() if plan.name == name)


def _frame(bundle: Bundle, name: str = tiny.SPLIT) -> pb.Frame:
    digest = _digest(bundle, name)
    plan = open_plans(bundle, [digest])[digest]
    image = tiny.image(width=tiny.SIZE, height=tiny.SIZE).transpose(2, 0, 1).copy()
    return pb.Frame(
        frame_id=7,
        plan_digest=digest,
        image_width=tiny.SIZE,
        image_height=tiny.SIZE,
        payloads=plan.cut(image).payloads,
    )


@pytest.mark.parametrize("name", [tiny.SPLIT, tiny.CLOUD_ONLY])
def test_a_frame_becomes_a_result_with_its_times(
    plane: DataPlane, bundle: Bundle, name: str
) -> None:
    arrived_s = time.perf_counter()
    answer = answer_to(
        plane, pb.EdgeMessage(frame=_frame(bundle, name)), arrived_s, ReferenceFrames()
    )
    result = answer.result
    assert result.frame_id == 7
    assert len(result.detections.scores) > 0
    times = result.times
    stages = times.decode_us + times.queue_us + times.tail_us + times.postprocess_us
    assert 0 < stages <= times.total_us + 4  # four roundings


def test_a_report_is_acknowledged_without_detections(plane: DataPlane, bundle: Bundle) -> None:
    found = pb.Detections(boxes=[1, 2, 3, 4], scores=[0.5], classes=[1])
    report = pb.Report(frame_id=9, plan_digest=_digest(bundle, tiny.EDGE_ONLY), detections=found)
    answer = answer_to(plane, pb.EdgeMessage(report=report), 0.0, ReferenceFrames())
    assert answer.result.frame_id == 9
    assert len(answer.result.detections.scores) == 0


def test_an_unknown_plan_is_rejected_and_named(plane: DataPlane) -> None:
    frame = pb.Frame(frame_id=3, plan_digest=bytes(32))
    rejection = answer_to(plane, pb.EdgeMessage(frame=frame), 0.0, ReferenceFrames()).rejection
    assert (rejection.frame_id, rejection.reason) == (3, pb.Rejection.REASON_UNKNOWN_PLAN)
    assert "000000000000" in rejection.message


def _flip(frame: pb.Frame) -> None:
    data = bytearray(frame.payloads[0].data)
    data[-1] ^= 1
    frame.payloads[0].data = bytes(data)


def _truncate(frame: pb.Frame) -> None:
    data = frame.payloads[0].data[:-1]
    frame.payloads[0].CopyFrom(pb.Payload(data=data, crc32=seal(data)))


def _double(frame: pb.Frame) -> None:
    frame.payloads.append(frame.payloads[0])


def _no_size(frame: pb.Frame) -> None:
    frame.image_width = 0


@pytest.mark.parametrize(
    "spoil",
    [
        _flip,  # a bit flipped on the way
        _truncate,  # a payload cut short, honestly sealed
        _double,  # one tensor too many
        _no_size,  # an image without width
    ],
)
def test_a_spoilt_frame_costs_itself_only(plane: DataPlane, bundle: Bundle, spoil: object) -> None:
    frame = _frame(bundle)
    spoil(frame)  # type: ignore[operator]
    rejection = answer_to(plane, pb.EdgeMessage(frame=frame), 0.0, ReferenceFrames()).rejection
    assert rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD
    assert "\n" not in rejection.message
    good = answer_to(plane, pb.EdgeMessage(frame=_frame(bundle)), 0.0, ReferenceFrames())
    assert good.HasField("result")


def test_a_failure_inside_is_no_detail_for_the_peer(
    plane: DataPlane, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> pb.Result:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(plane, "_finish", fail)
    rejection = answer_to(
        plane, pb.EdgeMessage(frame=_frame(bundle)), 0.0, ReferenceFrames()
    ).rejection
    assert rejection.reason == pb.Rejection.REASON_INTERNAL
    assert "secret" not in rejection.message


@pytest.mark.parametrize("message", [pb.EdgeMessage(), pb.EdgeMessage(hello=pb.Hello())])
def test_another_hello_or_nothing_is_no_message(plane: DataPlane, message: pb.EdgeMessage) -> None:
    with pytest.raises(ProtocolError, match="expected a Frame or Report"):
        EdgeSessions(plane)._take_notification(message, _edge())


def test_a_switch_is_remembered_and_needs_no_answer(plane: DataPlane) -> None:
    edge = _edge()
    switch = pb.Switch(plan_digest=bytes(32), reason="faster", uplink_bps=3e6)
    assert EdgeSessions(plane)._take_notification(pb.EdgeMessage(switch=switch), edge)
    assert edge.switch == switch
    assert edge.switches == 1


@pytest.mark.parametrize(
    "switch",
    [
        pb.Switch(plan_digest=b"short"),
        pb.Switch(plan_digest=bytes(32), reason="x" * 301),
        pb.Switch(plan_digest=bytes(32), uplink_bps=float("nan")),
        pb.Switch(plan_digest=bytes(32), uplink_bps=-1.0),
        pb.Switch(plan_digest=bytes(32), expected=[pb.Expectation(plan_digest=bytes(32))] * 257),
        pb.Switch(plan_digest=bytes(32), expected=[pb.Expectation(plan_digest=b"short")]),
    ],
)
def test_a_switch_that_makes_no_sense_ends_the_stream(plane: DataPlane, switch: pb.Switch) -> None:
    edge = _edge()
    with pytest.raises(ProtocolError):
        EdgeSessions(plane)._take_notification(pb.EdgeMessage(switch=switch), edge)
    assert edge.switch is None


def test_a_probe_is_echoed_with_its_times(plane: DataPlane) -> None:
    probe = pb.Probe(frame_id=5, padding=bytes(64 << 10))
    result = answer_to(plane, pb.EdgeMessage(probe=probe), 12.5, ReferenceFrames()).result
    assert result.frame_id == 5
    assert result.times.arrived_us == 12_500_000


def test_a_probe_that_is_too_large_is_rejected(plane: DataPlane) -> None:
    probe = pb.Probe(frame_id=5, padding=bytes((64 << 10) + 1))
    rejection = answer_to(plane, pb.EdgeMessage(probe=probe), 0.0, ReferenceFrames()).rejection
    assert rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD


def _edge() -> Edge:
    async def send(_: pb.CloudMessage) -> None:
        pytest.fail("nothing is to be sent")

    return Edge(SampleSource("edge", "box", "onnxruntime"), "00", "test", send)


@pytest.mark.parametrize(
    "hello",
    [
        pb.Hello(edge_id="", bundle_digest=bytes(32)),  # no name
        pb.Hello(edge_id="x" * 129, bundle_digest=bytes(32)),  # a name too long
        pb.Hello(edge_id="edge", bundle_digest=bytes(31)),  # no digest
    ],
)
def test_a_hello_is_checked(hello: pb.Hello) -> None:
    with pytest.raises(ProtocolError):
        check_hello(pb.EdgeMessage(hello=hello))


def test_the_codec_of_the_plan_is_the_codec_of_the_payload(bundle: Bundle) -> None:
    plan = bundle.plan(_digest(bundle, tiny.SPLIT))
    assert plan.codec is not None
    payload = _frame(bundle).payloads[0]
    wire = plan.wire[0]
    assert make_codec(plan.codec).decode(payload.data, wire.shape, wire.bits).shape == wire.shape
