"""A whole stream as the cloud serves it: answers, reports, backpressure and draining."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge, Edges
from cloud.reference_frames import ReferenceFrames
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import TaskResult
from edge.detector import find_plan
from tests import tiny
from tests.planes import HELLO, Aborted, FakeContext, answer_to, exchange, frame, serve, sessions


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


def test_a_hello_is_welcomed_with_the_plans_that_have_tails(
    tails: Tails, workers: ThreadPoolExecutor
) -> None:
    (message,) = exchange(tails, workers, HELLO)
    assert tuple(message.welcome.plan_digests) == tails.digests


def test_every_frame_is_answered_by_its_id(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    names = {7: tiny.SPLIT, 9: tiny.CLOUD_ONLY, 8: tiny.SPLIT}
    frames = [frame(bundle, frame_id, name) for frame_id, name in names.items()]

    _, *answers = exchange(tails, workers, HELLO, *frames)

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
    _, answer = exchange(tails, workers, HELLO, pb.EdgeMessage(report=report))

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
            served = sessions(tails, Admission(workers, 1), edges=edges)
            serving = asyncio.ensure_future(serve(served, context))
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
        (kept,) = edge.results
        assert (kept.frame_id, kept.plan) == (3, digest)
        assert _message(kept.result) == found

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
        assert not edge.results

    def test_what_is_refused_is_not_kept(
        self, bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        found = pb.Detections(boxes=[0, 0, 1, 1], scores=[0.5], classes=[99])
        digest = find_plan(bundle, tiny.EDGE_ONLY)
        (answer,), edge = self._connected(
            tails, workers, pb.Report(plan_digest=digest, detections=found)
        )
        assert answer.rejection.reason == pb.Rejection.REASON_BAD_PAYLOAD
        assert not edge.results


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
        served = sessions(tails, Admission(workers, 2), in_flight=2)
        serving = asyncio.ensure_future(serve(served, context))
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
        served = sessions(tails, Admission(workers, 2))
        context = FakeContext(HELLO, frame(bundle, 1), hang_up=False)
        serving = asyncio.ensure_future(serve(served, context))
        await asyncio.to_thread(entered.wait)
        served.drain()
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
    expected = tails.runner(message.plan_digest).finish(message).result
    with ThreadPoolExecutor(1) as workers:
        plane = DataPlane(tails, Admission(workers, 2))
        answer = answer_to(plane, pb.EdgeMessage(frame=message), 0.0, ReferenceFrames())
    assert answer.result.detections == _message(expected)


def _message(result: TaskResult) -> pb.Detections:
    carrier = pb.Result()
    result.write(carrier)
    return carrier.detections
