"""Peers that do not speak the protocol, and frames that are spoilt."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from edge.detector import find_plan
from tests import tiny
from tests.planes import HELLO, Aborted, exchange, frame


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    return Tails(bundle)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class TestProtocolErrors:
    @pytest.mark.parametrize(
        "messages",
        [
            pytest.param([pb.EdgeMessage()], id="nothing first"),
            pytest.param([pb.EdgeMessage(frame=pb.Frame())], id="a Frame first"),
            pytest.param([HELLO, HELLO], id="a second Hello"),
            pytest.param([HELLO, pb.EdgeMessage()], id="no kind"),
            pytest.param(
                [pb.EdgeMessage(hello=pb.Hello(bundle_digest=bytes(32)))], id="no edge_id"
            ),
            pytest.param(
                [pb.EdgeMessage(hello=pb.Hello(edge_id="x" * 129, bundle_digest=bytes(32)))],
                id="long edge_id",
            ),
            pytest.param(
                [pb.EdgeMessage(hello=pb.Hello(edge_id="x", bundle_digest=bytes(31)))],
                id="short digest",
            ),
        ],
    )
    def test_end_the_stream(
        self, tails: Tails, workers: ThreadPoolExecutor, messages: list[pb.EdgeMessage]
    ) -> None:
        with pytest.raises(Aborted, match="expected") as caught:
            exchange(tails, workers, *messages)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    def test_bytes_that_are_no_message_end_the_stream(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        garbage: Any = DecodeError("Wire format was corrupt")
        for messages in ([garbage], [HELLO, garbage]):
            with pytest.raises(Aborted, match="expected an EdgeMessage") as caught:
                exchange(tails, workers, *messages)
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    def test_hanging_up_without_a_word_is_none(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        assert exchange(tails, workers) == []


@pytest.mark.parametrize(
    "gone", [asyncio.InvalidStateError("RPC already finished."), grpc.aio.UsageError("closed")]
)
def test_a_peer_that_has_left_is_no_error(
    tails: Tails, workers: ThreadPoolExecutor, gone: Any
) -> None:
    (message,) = exchange(tails, workers, HELLO, gone)
    assert message.HasField("welcome")


class TestHostileFrames:
    """Each costs its frame; the good frame behind it is still answered."""

    @pytest.mark.parametrize(
        ("spoil", "reason"),
        [
            (lambda f: f.ClearField("plan_digest"), pb.Rejection.REASON_UNKNOWN_PLAN),
            (lambda f: f.ClearField("payloads"), pb.Rejection.REASON_BAD_PAYLOAD),
            (lambda f: f.ClearField("image_width"), pb.Rejection.REASON_BAD_PAYLOAD),
            (lambda f: setattr(f.payloads[0], "crc32", 0), pb.Rejection.REASON_BAD_PAYLOAD),
            (lambda f: setattr(f.payloads[0], "data", b""), pb.Rejection.REASON_BAD_PAYLOAD),
        ],
    )
    def test_are_rejected(
        self,
        bundle: Bundle,
        tails: Tails,
        workers: ThreadPoolExecutor,
        spoil: Callable[[pb.Frame], None],
        reason: pb.Rejection.Reason,
    ) -> None:
        bad = frame(bundle, 1)
        spoil(bad.frame)

        _, *answers = exchange(tails, workers, HELLO, bad, frame(bundle, 2))

        by_kind = {answer.WhichOneof("kind"): answer for answer in answers}
        assert by_kind["rejection"].rejection.frame_id == 1
        assert by_kind["rejection"].rejection.reason == reason
        assert "\n" not in by_kind["rejection"].rejection.message
        assert by_kind["result"].result.frame_id == 2

    def test_a_report_with_a_class_that_is_none_is_rejected(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        report = pb.Report(
            plan_digest=find_plan(bundle, tiny.EDGE_ONLY),
            detections=pb.Detections(boxes=[0, 0, 1, 1], scores=[0.5], classes=[2]),
        )
        _, answer = exchange(tails, workers, HELLO, pb.EdgeMessage(report=report))
        assert answer.rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD

    def test_a_failure_of_the_cloud_tells_nothing_of_its_inside(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(tails, "runner", lambda _: 1 / 0)
        _, answer = exchange(tails, workers, HELLO, frame(bundle, 1))
        assert answer.rejection.reason == pb.Rejection.REASON_INTERNAL
        assert "division" not in answer.rejection.message
