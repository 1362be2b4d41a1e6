"""The client's stream: handshake, frames in flight, rejections, loss and the next stream."""

import threading
import time
from collections.abc import Callable, Iterable

import pytest

from common.errors import (
    CloudFailedError,
    CloudOverloadedError,
    CloudUnavailableError,
    PlanNotHeldError,
    SplitpointError,
    StaleReferenceError,
)
from common.rpc import splitpoint_pb2 as pb
from edge.link.estimate import Passage, Transit
from edge.reporter import EdgeOnlyReporter
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport, Transport

PLAN = bytes(range(32))
HELLO = pb.Hello(edge_id="test", bundle_digest=bytes(32))
Handler = Callable[[pb.EdgeMessage], Iterable[pb.CloudMessage]]


def cloud(on_frame: Handler) -> Handler:
    """A cloud that greets and leaves frames and reports to the test."""

    def handle(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        if message.WhichOneof("kind") == "hello":
            return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=[PLAN]))]
        return on_frame(message)

    return handle


def client_of(on_frame: Handler) -> CloudClient:
    return CloudClient(lambda: InProcessTransport(cloud(on_frame)), HELLO, answer_timeout_s=60)


def result(frame_id: int) -> pb.CloudMessage:
    return pb.CloudMessage(result=pb.Result(frame_id=frame_id))


def frame() -> pb.Frame:
    return pb.Frame(plan_digest=PLAN)


def test_the_hello_comes_first_and_once() -> None:
    seen: list[str | None] = []

    def handle(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        seen.append(message.WhichOneof("kind"))
        return cloud(lambda m: [result(m.frame.frame_id)])(message)

    client = CloudClient(lambda: InProcessTransport(handle), HELLO)
    client.request(frame())
    client.request(frame())

    assert seen == ["hello", "frame", "frame"]


def test_connect_tells_the_plans_of_the_cloud() -> None:
    assert client_of(lambda _: []).connect() == {PLAN}


def test_answers_out_of_order_find_their_frames() -> None:
    held: list[int] = []

    def hold_until_three(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        held.append(message.frame.frame_id)
        return [result(i) for i in reversed(held)] if len(held) == 3 else []

    client = client_of(hold_until_three)

    futures = [client.submit(frame()) for _ in range(3)]

    assert [future.result(60).result.frame_id for future in futures] == held


def test_frame_ids_are_unique_over_frames_and_reports() -> None:
    def answer(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        return [result(message.frame.frame_id or message.report.frame_id)]

    client = client_of(answer)
    ids = [client.request(m).result.frame_id for m in (frame(), pb.Report(), frame())]

    assert len(set(ids)) == 3


def test_the_link_learns_when_a_message_went_and_not_when_it_was_handed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handed_over_s: list[float] = []

    class Noting(InProcessTransport):
        """Whatever it tells later than this is no hand-over."""

        def send(self, message: pb.EdgeMessage, gone: Callable[[], None] | None = None) -> None:
            handed_over_s.append(time.perf_counter())
            super().send(message, gone)

    def answer(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        times = pb.CloudTimes(arrived_us=1_000_000, total_us=1000)
        return [pb.CloudMessage(result=pb.Result(frame_id=message.frame.frame_id, times=times))]

    learnt: list[Transit] = []

    def passed(transit: Transit) -> Passage:
        learnt.append(transit)
        return Passage(10.0, 10.0)

    client = CloudClient(lambda: Noting(cloud(answer)), HELLO)
    monkeypatch.setattr(client.link, "passed", passed)
    round_trip_s = client.request(frame()).round_trip_ms / 1e3

    [transit] = learnt
    assert transit.gone_s is not None
    assert transit.sent_s < handed_over_s[-1] < transit.gone_s < transit.received_s
    assert round_trip_s == pytest.approx(transit.received_s - transit.sent_s)


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        (pb.Rejection.REASON_UNKNOWN_PLAN, PlanNotHeldError),
        (pb.Rejection.REASON_BAD_PAYLOAD, CloudFailedError),
        (pb.Rejection.REASON_INTERNAL, CloudFailedError),
        (pb.Rejection.REASON_UNSPECIFIED, CloudFailedError),
        (pb.Rejection.REASON_STALE_REFERENCE, StaleReferenceError),
        (5, CloudOverloadedError),
        (99, CloudFailedError),  # of a protocol to come
    ],
)
def test_a_rejection_is_the_right_error_on_one_line(
    reason: int, error: type[SplitpointError]
) -> None:
    def refuse(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        rejection = pb.Rejection(frame_id=message.frame.frame_id, message="no\ngood")
        rejection.MergeFromString(bytes([0x10, reason]))  # field 2, also where it is no known one
        return [pb.CloudMessage(rejection=rejection)]

    client = client_of(refuse)
    with pytest.raises(error, match="no good"):
        client.request(frame())
    assert client.connected, "a rejection costs a frame, not the stream"


def test_a_plan_that_the_cloud_lacks_is_not_sent() -> None:
    client = client_of(lambda _: pytest.fail("sent"))
    with pytest.raises(PlanNotHeldError, match="same bundle"):
        client.request(pb.Frame(plan_digest=bytes(32)))


def test_a_report_is_sent_whatever_tails_the_cloud_holds() -> None:
    client = client_of(lambda m: [result(m.report.frame_id)])
    assert client.request(pb.Report(plan_digest=bytes(32))).result.frame_id == 1


def test_a_lost_stream_fails_every_frame_that_waits() -> None:
    transports: list[InProcessTransport] = []

    def connect() -> Transport:
        transports.append(InProcessTransport(cloud(lambda _: [])))
        return transports[-1]

    client = CloudClient(connect, HELLO)
    futures = [client.submit(frame()) for _ in range(3)]

    transports[0].close()

    for future in futures:
        with pytest.raises(CloudUnavailableError):
            future.result(60)


def test_the_next_frame_opens_a_new_stream() -> None:
    streams = 0

    def connect() -> Transport:
        nonlocal streams
        streams += 1
        healthy = streams > 1

        def answer(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
            if not healthy:
                raise CloudUnavailableError("gone")
            return [result(message.frame.frame_id)]

        return InProcessTransport(cloud(answer))

    client = CloudClient(connect, HELLO)
    with pytest.raises(CloudUnavailableError, match="gone"):
        client.request(frame())

    assert client.request(frame()).result.frame_id == 1
    assert streams == 2


def test_a_frame_that_finds_its_stream_closed_goes_by_a_new_one() -> None:
    transports: list[InProcessTransport] = []

    class Unnoticed(InProcessTransport):
        """Its end is learned by sending only."""

        def receive(self, timeout_s: float | None = None) -> pb.CloudMessage:
            try:
                return super().receive(timeout_s)
            except CloudUnavailableError:
                noticed.wait(60)
                raise

    noticed = threading.Event()

    def connect() -> Transport:
        transports.append(Unnoticed(cloud(lambda m: [result(m.frame.frame_id)])))
        return transports[-1]

    client = CloudClient(connect, HELLO)
    client.connect()
    transports[0].close()

    assert client.connected
    assert client.request(frame()).result.frame_id == 1
    assert len(transports) == 2
    noticed.set()


def test_a_cloud_that_does_not_greet_is_unavailable() -> None:
    client = CloudClient(lambda: InProcessTransport(lambda _: []), HELLO, connect_timeout_s=0)
    with pytest.raises(CloudUnavailableError, match="no answer"):
        client.connect()


def test_a_cloud_that_greets_wrongly_is_unavailable() -> None:
    client = CloudClient(lambda: InProcessTransport(lambda _: [result(1)]), HELLO)
    with pytest.raises(CloudUnavailableError, match="expected a Welcome"):
        client.connect()


def test_no_answer_in_time_costs_the_frame_only() -> None:
    client = CloudClient(lambda: InProcessTransport(cloud(lambda _: [])), HELLO, answer_timeout_s=0)
    with pytest.raises(CloudUnavailableError, match="did not answer frame 1"):
        client.request(frame())
    assert client.connected


def test_a_closed_client_opens_no_stream() -> None:
    client = client_of(lambda _: [])
    client.close()
    with pytest.raises(CloudUnavailableError, match="closed"):
        client.request(frame())


class TestReporter:
    def test_reports_reach_the_cloud_before_it_closes(self) -> None:
        reporter = EdgeOnlyReporter(client_of(lambda m: [result(m.report.frame_id)]))
        for _ in range(3):
            reporter.report(pb.Report())
        reporter.close(timeout_s=60)
        assert (reporter.sent, reporter.lost) == (3, 0)

    def test_an_absent_cloud_is_counted_and_nothing_else(self) -> None:
        def connect() -> Transport:
            raise CloudUnavailableError("not there")

        reporter = EdgeOnlyReporter(CloudClient(connect, HELLO))
        for _ in range(3):
            reporter.report(pb.Report())
        reporter.close(timeout_s=60)
        assert (reporter.sent, reporter.lost) == (0, 3)

    def test_a_cloud_with_another_bundle_is_told_once(self) -> None:
        refused = 0

        def refuse(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
            nonlocal refused
            refused += 1
            reason = pb.Rejection.REASON_UNKNOWN_PLAN
            rejection = pb.Rejection(frame_id=message.report.frame_id, reason=reason)
            return [pb.CloudMessage(rejection=rejection)]

        reporter = EdgeOnlyReporter(client_of(refuse))
        for _ in range(5):
            reporter.report(pb.Report(plan_digest=PLAN))
        reporter.close(timeout_s=60)
        assert (refused, reporter.sent, reporter.lost) == (1, 0, 5)

    def test_what_is_lost_is_logged_sparingly(self, caplog: pytest.LogCaptureFixture) -> None:
        def connect() -> Transport:
            raise CloudUnavailableError("not there")

        reporter = EdgeOnlyReporter(CloudClient(connect, HELLO))
        for _ in range(30):
            reporter.report(pb.Report())
        reporter.close(timeout_s=60)
        assert len([line for line in caplog.messages if "reports did not" in line]) == 1
