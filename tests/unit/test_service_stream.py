"""A whole stream as the cloud serves it: the protocol, backpressure and draining."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError

from cloud.admission import Admission, LaneLimits
from cloud.edges import Edge, Edges
from cloud.reference_frames import ReferenceFrames
from cloud.service import SplitService
from cloud.store.samples import PendingMeasurements, SampleSource
from cloud.store.store import Store
from cloud.streams import StreamLimits, Streams
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.imaging.images import letterbox
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import detections_to_message
from edge.detector import find_plan
from edge.head import open_plans
from tests import tiny

HELLO = pb.EdgeMessage(hello=pb.Hello(edge_id="test", bundle_digest=bytes(32)))


class Aborted(Exception):  # noqa: N818
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class FakeContext:
    """The service's side of a stream, without a network."""

    def __init__(self, *messages: pb.EdgeMessage, hang_up: bool = True) -> None:
        self.written: list[pb.CloudMessage] = []
        self.certificate: dict[str, list[bytes]] = {}
        self.reads = 0
        self.wrote = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages:
            self._messages.put_nowait(message)
        if hang_up:
            self._messages.put_nowait(grpc.aio.EOF)

    async def read(self) -> Any:
        message = await self._messages.get()
        self.reads += 1
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, message: pb.CloudMessage) -> None:
        self.written.append(message)
        self.wrote.set()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.certificate

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code, details)


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


def frame(bundle: Bundle, frame_id: int, name: str = tiny.SPLIT) -> pb.EdgeMessage:
    digest = find_plan(bundle, name)
    pixels = letterbox(tiny.image(), (tiny.SIZE, tiny.SIZE))
    payloads = open_plans(bundle, [digest])[digest].cut(pixels).payloads
    return pb.EdgeMessage(
        frame=pb.Frame(
            frame_id=frame_id,
            plan_digest=digest,
            image_width=48,
            image_height=40,
            payloads=payloads,
        )
    )


def stream(
    tails: Tails, workers: ThreadPoolExecutor, *messages: pb.EdgeMessage
) -> list[pb.CloudMessage]:
    """What the cloud writes to an edge that sends these messages and hangs up."""

    async def run() -> list[pb.CloudMessage]:
        context = FakeContext(*messages)
        await serve(SplitService(tails, Admission(workers, 2)), context)
        return context.written

    return asyncio.run(run())


def serve(service: SplitService, context: FakeContext) -> Awaitable[None]:
    untyped: Any = context
    return service.Stream(untyped, untyped)


def test_a_hello_is_welcomed_with_the_plans_that_have_tails(
    tails: Tails, workers: ThreadPoolExecutor
) -> None:
    (message,) = stream(tails, workers, HELLO)
    assert tuple(message.welcome.plan_digests) == tails.digests


def test_every_frame_is_answered_by_its_id(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    names = {7: tiny.SPLIT, 9: tiny.CLOUD_ONLY, 8: tiny.SPLIT}
    frames = [frame(bundle, frame_id, name) for frame_id, name in names.items()]

    _, *answers = stream(tails, workers, HELLO, *frames)

    assert {answer.result.frame_id for answer in answers} == {7, 8, 9}
    for answer in answers:
        times = answer.result.times
        assert len(answer.result.detections.scores) > 0
        parts = times.decode_us + times.queue_us + times.tail_us + times.postprocess_us
        assert times.total_us >= parts - 4  # each of the four is rounded


def test_a_report_is_answered_without_detections(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    report = pb.Report(
        frame_id=3,
        plan_digest=find_plan(bundle, tiny.EDGE_ONLY),
        detections=pb.Detections(boxes=[0, 0, 1, 1], scores=[0.5], classes=[1]),
    )
    _, answer = stream(tails, workers, HELLO, pb.EdgeMessage(report=report))

    assert answer.result.frame_id == 3
    assert not answer.result.detections.scores


class TestReports:
    """What edge-only edges report: times alone, or detections too."""

    def _connected(
        self, tails: Tails, workers: ThreadPoolExecutor, *reports: pb.Report
    ) -> tuple[list[pb.CloudMessage], Edge]:
        async def run() -> tuple[list[pb.CloudMessage], Edge]:
            edges = Edges()
            context = FakeContext(
                HELLO, *(pb.EdgeMessage(report=r) for r in reports), hang_up=False
            )
            service = SplitService(tails, Admission(workers, 1), edges=edges)
            serving = asyncio.ensure_future(serve(service, context))
            while len(context.written) < 1 + len(reports):
                await asyncio.sleep(0.001)
            found = edges.find("test")
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return context.written[1:], found

        return asyncio.run(run())

    def test_detections_are_kept(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        digest = find_plan(bundle, tiny.EDGE_ONLY)
        found = pb.Detections(boxes=[0, 0, 1, 1], scores=[0.5], classes=[1])
        report = pb.Report(frame_id=3, plan_digest=digest, detections=found)
        (answer,), edge = self._connected(tails, workers, report)
        assert answer.HasField("result")
        (kept,) = edge.detections
        assert (kept.frame_id, kept.plan) == (3, digest)
        assert detections_to_message(kept.detections) == found

    def test_times_alone_are_as_good(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        report = pb.Report(
            frame_id=3,
            plan_digest=find_plan(bundle, tiny.EDGE_ONLY),
            times=pb.EdgeTimes(total_us=5),
        )
        (answer,), edge = self._connected(tails, workers, report)
        assert answer.HasField("result")
        assert not edge.detections

    def test_what_is_refused_is_not_kept(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        found = pb.Detections(boxes=[0, 0, 1, 1], scores=[0.5], classes=[99])
        digest = find_plan(bundle, tiny.EDGE_ONLY)
        (answer,), edge = self._connected(
            tails, workers, pb.Report(plan_digest=digest, detections=found)
        )
        assert answer.rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD
        assert not edge.detections


class TestNames:
    """Who an edge is: by its certificate, if it has one."""

    def _name(
        self, tails: Tails, workers: ThreadPoolExecutor, certificate: dict[str, list[bytes]]
    ) -> str:
        async def run() -> str:
            edges = Edges()
            context = FakeContext(HELLO, hang_up=False)
            context.certificate = certificate
            serving = asyncio.ensure_future(
                serve(SplitService(tails, Admission(workers, 1), edges=edges), context)
            )
            while not edges.all():
                if serving.done():
                    await serving
                await asyncio.sleep(0)
            name = edges.all()[0].name
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            return name

        return asyncio.run(run())

    @pytest.mark.parametrize(
        ("certificate", "name"),
        [
            ({}, "test"),
            ({"transport_security_type": [b"ssl"]}, "test"),  # TLS without client certificates
            ({"x509_common_name": [b"door"]}, "door"),
            ({"x509_subject_alternative_name": [b"door.example", b"x"]}, "door.example"),
            ({"x509_common_name": [b"door"], "x509_subject_alternative_name": [b"x"]}, "door"),
        ],
    )
    def test_a_certificates_name_counts(
        self,
        tails: Tails,
        workers: ThreadPoolExecutor,
        certificate: dict[str, list[bytes]],
        name: str,
    ) -> None:
        assert self._name(tails, workers, certificate) == name

    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "a\u202eb", "a\u2028b", "\x00"])
    def test_names_are_printable(
        self, tails: Tails, workers: ThreadPoolExecutor, name: str
    ) -> None:
        hello = pb.EdgeMessage(hello=pb.Hello(edge_id=name, bundle_digest=bytes(32)))
        with pytest.raises(Aborted, match="expected printable characters") as caught:
            stream(tails, workers, hello)
        assert str(caught.value).isprintable()
        with pytest.raises(Aborted, match="expected printable characters"):
            self._name(tails, workers, {"x509_common_name": [name.encode()]})


class TestLimits:
    def test_a_peer_that_does_not_greet_loses_its_stream(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        async def run() -> None:
            streams = Streams(StreamLimits(greeting_s=0.0))
            service = SplitService(tails, Admission(workers, 1), streams=streams)
            with pytest.raises(Aborted, match="expected a Hello within 0 s") as caught:
                await serve(service, FakeContext(hang_up=False))
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
            assert streams.count() == (0, 0)
            assert streams.ended == {"greeting": 1}

        asyncio.run(run())

    def test_so_does_one_that_does_not_take_its_welcome(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        class Deaf(FakeContext):
            async def write(self, message: pb.CloudMessage) -> None:  # noqa: ARG002
                await asyncio.Event().wait()

        async def run() -> None:
            streams = Streams(StreamLimits(greeting_s=0.01))
            service = SplitService(tails, Admission(workers, 1), streams=streams)
            with pytest.raises(Aborted, match="within"):
                await serve(service, Deaf(HELLO, hang_up=False))
            assert streams.count() == (0, 0)

        asyncio.run(run())

    def test_an_edge_too_many_is_refused(self, tails: Tails, workers: ThreadPoolExecutor) -> None:
        async def run() -> None:
            streams = Streams(StreamLimits(edges=1))
            service = SplitService(tails, Admission(workers, 1), streams=streams)
            first = FakeContext(HELLO, hang_up=False)
            serving = asyncio.ensure_future(serve(service, first))
            await first.wrote.wait()
            with pytest.raises(Aborted, match="at most 1 edges") as caught:
                await serve(service, FakeContext(HELLO, hang_up=False))
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            again = FakeContext(HELLO)
            await serve(service, again)
            assert again.written[0].HasField("welcome")

        asyncio.run(run())

    def test_a_stream_that_is_opened_again_ends_the_older_one(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        hello = pb.EdgeMessage(hello=pb.Hello(edge_id="test", bundle_digest=bytes(32), instance=7))

        async def run() -> None:
            streams = Streams(StreamLimits(edges=1))  # there is no room for both
            service = SplitService(tails, Admission(workers, 1), streams=streams)
            first = FakeContext(hello, hang_up=False)
            serving = asyncio.ensure_future(serve(service, first))
            await first.wrote.wait()
            await serve(service, FakeContext(hello))
            with pytest.raises(Aborted, match="connected again") as caught:
                await serving
            assert caught.value.code is grpc.StatusCode.ABORTED

        asyncio.run(run())

    @pytest.mark.parametrize(
        ("queue", "most_bytes", "said"),
        [(0, 1 << 20, "0 calls wait already"), (8, 10, "of at most 0 MiB of messages")],
    )
    def test_a_frame_too_many_is_refused_with_a_hint(
        self,
        bundle: Bundle,
        tails: Tails,
        workers: ThreadPoolExecutor,
        queue: int,
        most_bytes: int,
        said: str,
    ) -> None:
        async def run() -> list[pb.CloudMessage]:
            context = FakeContext(HELLO, frame(bundle, 7))
            admission = Admission(workers, 1, edge=LaneLimits(queue=queue, per_client=8))
            await serve(SplitService(tails, admission, most_bytes=most_bytes), context)
            return context.written

        _, answer = asyncio.run(run())
        assert answer.rejection.frame_id == 7
        assert answer.rejection.reason == pb.Rejection.REASON_OVERLOADED
        assert answer.rejection.retry_after_ms == 1000
        assert said in answer.rejection.message

    def test_frames_that_wait_are_dropped_with_their_stream(
        self, bundle: Bundle, tails: Tails, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entered, release, ran = threading.Event(), threading.Event(), []
        original = tails.runner

        def slow(digest: bytes) -> Any:
            ran.append(digest)
            entered.set()
            release.wait()
            return original(digest)

        monkeypatch.setattr(tails, "runner", slow)

        async def run(workers: ThreadPoolExecutor) -> int:
            admission = Admission(workers, 1)
            frames = [frame(bundle, number) for number in range(4)]
            context = FakeContext(HELLO, *frames, hang_up=False)
            serving = asyncio.ensure_future(serve(SplitService(tails, admission), context))
            await asyncio.to_thread(entered.wait)
            while admission.waiting("edge") < 3:
                await asyncio.sleep(0)
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            while admission.waiting("edge"):
                await asyncio.sleep(0)
            release.set()
            return admission.abandoned["edge"]

        with ThreadPoolExecutor(1) as workers:
            assert asyncio.run(run(workers)) == 3
        assert len(ran) == 1


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
            stream(tails, workers, *messages)
        assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    def test_bytes_that_are_no_message_end_the_stream(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        garbage: Any = DecodeError("Wire format was corrupt")
        for messages in ([garbage], [HELLO, garbage]):
            with pytest.raises(Aborted, match="expected an EdgeMessage") as caught:
                stream(tails, workers, *messages)
            assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    def test_hanging_up_without_a_word_is_none(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        assert stream(tails, workers) == []


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

        _, *answers = stream(tails, workers, HELLO, bad, frame(bundle, 2))

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
        _, answer = stream(tails, workers, HELLO, pb.EdgeMessage(report=report))
        assert answer.rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD

    def test_a_failure_of_the_cloud_tells_nothing_of_its_inside(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr(tails, "runner", lambda _: 1 / 0)
        _, answer = stream(tails, workers, HELLO, frame(bundle, 1))
        assert answer.rejection.reason == pb.Rejection.REASON_INTERNAL
        assert "division" not in answer.rejection.message


def test_a_full_edge_is_not_read(tails: Tails) -> None:
    """With every slot taken, the next frame stays on the wire until an answer is out."""

    class HeldWorkers(ThreadPoolExecutor):
        def __init__(self) -> None:
            super().__init__(1)
            self.held: list[Future[Any]] = []

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            self.held.append(Future())
            return self.held[-1]

    async def run() -> tuple[int, int]:
        workers = HeldWorkers()
        reports = [pb.EdgeMessage(report=pb.Report(frame_id=i)) for i in range(5)]
        context = FakeContext(HELLO, *reports, hang_up=False)
        service = SplitService(tails, Admission(workers, 2), in_flight=2)
        serving = asyncio.ensure_future(serve(service, context))
        while len(workers.held) < 2:
            await asyncio.sleep(0)
        for _ in range(100):  # whatever it would do more, it does now
            await asyncio.sleep(0)
        before = context.reads
        workers.held[0].set_result(pb.CloudMessage(result=pb.Result()))
        while len(workers.held) < 3:
            await asyncio.sleep(0)
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        return before, context.reads

    assert asyncio.run(run()) == (1 + 2, 1 + 3)


def test_draining_answers_what_is_under_way_then_ends_the_stream(
    bundle: Bundle, tails: Tails, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    entered = threading.Event()
    original = tails.runner

    def slow(digest: bytes) -> Any:
        entered.set()
        release.wait()
        return original(digest)

    monkeypatch.setattr(tails, "runner", slow)

    async def run(workers: ThreadPoolExecutor) -> list[pb.CloudMessage]:
        service = SplitService(tails, Admission(workers, 2))
        context = FakeContext(HELLO, frame(bundle, 1), hang_up=False)
        serving = asyncio.ensure_future(serve(service, context))
        await asyncio.to_thread(entered.wait)
        service.drain()
        release.set()
        with pytest.raises(Aborted) as caught:
            await serving
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE
        return context.written

    with ThreadPoolExecutor(1) as workers:
        _, answer = asyncio.run(run(workers))
    assert answer.result.frame_id == 1


def test_detections_survive_the_wire(bundle: Bundle, tails: Tails, tmp_path: Path) -> None:
    message = frame(bundle, 1).frame
    expected = tails.runner(message.plan_digest).finish(message).detections
    with ThreadPoolExecutor(1) as workers:
        answer = SplitService(tails, Admission(workers, 2)).serve(
            pb.EdgeMessage(frame=message), 0.0, ReferenceFrames()
        )
    assert answer.result.detections == detections_to_message(expected)


def test_an_edge_that_lies_is_counted_and_served(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    store = Store()
    device = pb.Hello(
        edge_id="liar", bundle_digest=HELLO.hello.bundle_digest, device="box", runtime="r"
    )
    told = frame(bundle, 2)
    told.frame.measured.add(frame_id=1, times=pb.EdgeTimes(total_us=1, round_trip_us=1))
    told.frame.measured.add(frame_id=99, times=pb.EdgeTimes(total_us=10**6))

    async def run() -> list[pb.CloudMessage]:
        context = FakeContext(pb.EdgeMessage(hello=device), told)
        await serve(SplitService(tails, Admission(workers, 2), store=store), context)
        return context.written

    _, answer = asyncio.run(run())
    store.flush()
    assert answer.HasField("result")
    assert store.ignored == {"liar": 2}
    assert store.table() == []
    store.close()


def test_what_an_edge_tells_in_time_gets_into_the_table(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    store = Store()
    service = SplitService(tails, Admission(workers, 2), store=store)
    ledger = PendingMeasurements(SampleSource("edge7", "box", "r"))
    message = frame(bundle, 1)
    answer = service.serve(message, time.perf_counter(), ReferenceFrames())
    service._note(message, answer.result, ledger)
    later = frame(bundle, 2)
    later.frame.measured.add(
        frame_id=1, times=pb.EdgeTimes(head_us=10, round_trip_us=10**7, total_us=10**7 + 50)
    )
    service._learn(later, ledger)
    store.flush()
    rows = {row.stage: row for row in store.table()}
    assert rows["total"].median_ms == 10_000.05
    assert rows["tail"].median_ms == answer.result.times.tail_us / 1e3
    assert store.ignored == {}
    store.close()


def test_too_many_measurements_break_the_protocol(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    message = frame(bundle, 1)
    for frame_id in range(17):
        message.frame.measured.add(frame_id=frame_id)
    with pytest.raises(Aborted, match="at most 16 measurements"):
        stream(tails, workers, HELLO, message)
