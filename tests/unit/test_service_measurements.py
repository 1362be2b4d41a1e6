"""Measurements that edges send: stored, or counted where they cannot be true."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge
from cloud.store.samples import SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from tests import tiny
from tests.planes import HELLO, Aborted, FakeContext, exchange, frame, serve, sessions


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


async def nowhere(message: pb.CloudMessage) -> None:
    raise AssertionError(f"nothing is sent here: {message}")


def test_an_edge_that_lies_is_counted_and_served(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    store = Store()
    device = pb.Hello(
        edge_id="liar", bundle_digest=HELLO.hello.bundle_digest, device="box", runtime="r"
    )
    lying = frame(bundle, 2)
    lying.frame.measured.add(frame_id=1, times=pb.EdgeTimes(total_us=1, round_trip_us=1))
    lying.frame.measured.add(frame_id=99, times=pb.EdgeTimes(total_us=10**6))

    async def run() -> list[pb.CloudMessage]:
        context = FakeContext(pb.EdgeMessage(hello=device), lying)
        await serve(sessions(tails, Admission(workers, 2), store=store), context)
        return context.written

    _, answer = asyncio.run(run())
    store.flush()
    assert answer.HasField("result")
    assert store.ignored == {"liar": 2}
    assert store.table() == []
    store.close()


def test_times_that_an_edge_sends_get_into_the_table(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    store = Store()
    plane = DataPlane(tails, Admission(workers, 2), store=store)
    edge = Edge(SampleSource("edge7", "box", "r"), "00", "1", nowhere)

    async def run() -> pb.Result:
        with plane.session(edge) as session:
            result = await plane.answer(frame(bundle, 1), time.perf_counter(), session)
            later = pb.Measurement(
                frame_id=1,
                times=pb.EdgeTimes(head_us=10, round_trip_us=10**7, total_us=10**7 + 50),
            )
            plane.measured([later], session)
            return result

    result = asyncio.run(run())
    store.flush()
    rows = {row.stage: row for row in store.table()}
    assert rows["total"].median_ms == 10_000.05
    assert rows["tail"].median_ms == result.times.tail_us / 1e3
    assert store.ignored == {}
    store.close()


def test_too_many_measurements_break_the_protocol(
    bundle: Bundle, tails: Tails, workers: ThreadPoolExecutor
) -> None:
    message = frame(bundle, 1)
    for frame_id in range(17):
        message.frame.measured.add(frame_id=frame_id)
    with pytest.raises(Aborted, match="at most 16 measurements"):
        exchange(tails, workers, HELLO, message)
