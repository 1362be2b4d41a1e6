"""Limits of streams and of frames: who is refused, with which status, and when to come back."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from cloud.admission import Admission, LaneLimits
from cloud.streams import StreamLimits, Streams
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from tests import tiny
from tests.planes import HELLO, Aborted, FakeContext, frame, serve, sessions


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


class TestLimits:
    def test_a_peer_that_does_not_greet_loses_its_stream(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        async def run() -> None:
            streams = Streams(StreamLimits(hello_timeout_s=0.0))
            served = sessions(tails, Admission(workers, 1), streams=streams)
            with pytest.raises(Aborted, match="expected a Hello within 0 s") as caught:
                await serve(served, FakeContext(hang_up=False))
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
            streams = Streams(StreamLimits(hello_timeout_s=0.01))
            served = sessions(tails, Admission(workers, 1), streams=streams)
            with pytest.raises(Aborted, match="within"):
                await serve(served, Deaf(HELLO, hang_up=False))
            assert streams.count() == (0, 0)

        asyncio.run(run())

    def test_an_edge_too_many_is_refused(self, tails: Tails, workers: ThreadPoolExecutor) -> None:
        async def run() -> None:
            streams = Streams(StreamLimits(edges=1))
            served = sessions(tails, Admission(workers, 1), streams=streams)
            first = FakeContext(HELLO, hang_up=False)
            serving = asyncio.ensure_future(serve(served, first))
            await first.wrote.wait()
            with pytest.raises(Aborted, match="at most 1 edges") as caught:
                await serve(served, FakeContext(HELLO, hang_up=False))
            assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            again = FakeContext(HELLO)
            await serve(served, again)
            assert again.written[0].HasField("welcome")

        asyncio.run(run())

    def test_a_stream_that_is_opened_again_ends_the_older_one(
        self, tails: Tails, workers: ThreadPoolExecutor
    ) -> None:
        hello = pb.EdgeMessage(hello=pb.Hello(edge_id="test", bundle_digest=bytes(32), instance=7))

        async def run() -> None:
            streams = Streams(StreamLimits(edges=1))  # there is no room for both
            served = sessions(tails, Admission(workers, 1), streams=streams)
            first = FakeContext(hello, hang_up=False)
            serving = asyncio.ensure_future(serve(served, first))
            await first.wrote.wait()
            await serve(served, FakeContext(hello))
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
            await serve(sessions(tails, admission, most_bytes=most_bytes), context)
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
            serving = asyncio.ensure_future(serve(sessions(tails, admission), context))
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
