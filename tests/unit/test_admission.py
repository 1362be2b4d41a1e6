"""Admission: turns, bounds and callers that have gone. Work is held by events, never by time."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest

from cloud.admission import Admission, LaneLimits, LaneName
from common.errors import OverloadedError

ROOMY = LaneLimits(queue=8, per_client=4)


@contextmanager
def _pool(count: int, limits: LaneLimits = ROOMY) -> Iterator[Admission]:
    with ThreadPoolExecutor(count) as workers:
        yield Admission(workers, count, edge=limits, rest=limits)


@asynccontextmanager
async def _busy(admission: Admission, lane: LaneName = "edge") -> AsyncIterator[threading.Event]:
    """One worker that works until the event is set, or the block ends."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait()

    task = asyncio.create_task(admission.run(lane, "someone", work))
    await asyncio.to_thread(begun.wait)
    try:
        yield go_on
    finally:
        go_on.set()
        await task


def _queued(
    admission: Admission, lane: LaneName, client: str, call: Callable[[], object] = lambda: None
) -> "asyncio.Task[object]":
    return asyncio.create_task(admission.run(lane, client, call))


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


def test_a_call_runs_and_gives_what_it_returns() -> None:
    with _pool(1) as admission:
        assert asyncio.run(admission.run("rest", "x", lambda: 7)) == 7


def test_an_error_is_the_callers_and_frees_the_worker() -> None:
    async def scenario(admission: Admission) -> None:
        with pytest.raises(ZeroDivisionError):
            await admission.run("rest", "x", lambda: 1 // 0)
        assert await admission.run("rest", "x", lambda: 7) == 7

    with _pool(1) as admission:
        asyncio.run(scenario(admission))


def test_clients_of_a_lane_take_turns() -> None:
    order: list[str] = []

    async def scenario(admission: Admission) -> None:
        async with _busy(admission):
            names = ["many-1", "many-2", "many-3", "few-1"]
            tasks = [
                _queued(admission, "edge", n.split("-", maxsplit=1)[0], partial(order.append, n))
                for n in names
            ]
            await _until(lambda: admission.waiting("edge") == 4)
        await asyncio.gather(*tasks)

    with _pool(1) as admission:
        asyncio.run(scenario(admission))
    assert order == ["many-1", "few-1", "many-2", "many-3"]


def test_edges_go_first_and_leave_every_fifth_turn_to_rest() -> None:
    order: list[str] = []

    async def scenario(admission: Admission) -> None:
        async with _busy(admission):
            edges: list[LaneName] = ["edge"] * 6
            lanes: list[LaneName] = ["rest", "rest", *edges]
            tasks = [
                _queued(admission, lane, str(k), partial(order.append, lane))
                for k, lane in enumerate(lanes)
            ]
            await _until(lambda: admission.waiting("edge") == 6 and admission.waiting("rest") == 2)
        await asyncio.gather(*tasks)

    with _pool(1) as admission:
        asyncio.run(scenario(admission))
    assert order == [*["edge"] * 4, "rest", *["edge"] * 2, "rest"]


def test_rest_leaves_a_worker_to_edges() -> None:
    async def scenario(admission: Admission) -> None:
        async with _busy(admission, "rest"):
            waits = _queued(admission, "rest", "x")
            await _until(lambda: admission.waiting("rest") == 1)
            assert await admission.run("edge", "y", lambda: 7) == 7
            assert not waits.done()
        await waits

    with _pool(2) as admission:
        asyncio.run(scenario(admission))


@pytest.mark.parametrize(
    ("limits", "clients", "said"),
    [
        (LaneLimits(queue=2, per_client=2), "ab", "2 calls wait already"),
        (LaneLimits(queue=9, per_client=2), "aa", "2 calls of this client wait already"),
    ],
)
def test_a_full_queue_turns_callers_away_with_a_hint(
    limits: LaneLimits, clients: str, said: str
) -> None:
    async def scenario(admission: Admission) -> None:
        async with _busy(admission):
            tasks = [_queued(admission, "edge", client) for client in clients]
            await _until(lambda: admission.waiting("edge") == 2)
            with pytest.raises(OverloadedError, match=said) as caught:
                await admission.run("edge", "a", lambda: None)
            assert caught.value.retry_after_s >= 1
            assert admission.shed == {"edge": 1, "rest": 0}
        await asyncio.gather(*tasks)

    with _pool(1, limits) as admission:
        asyncio.run(scenario(admission))


def test_a_call_that_waits_too_long_is_turned_away() -> None:
    async def scenario(admission: Admission) -> None:
        async with _busy(admission):
            with pytest.raises(OverloadedError, match="no worker was free within 0 s"):
                await admission.run("edge", "a", lambda: None)
            assert admission.waiting("edge") == 0

    with _pool(1, LaneLimits(queue=2, per_client=2, max_wait_s=0)) as admission:
        asyncio.run(scenario(admission))


def test_work_of_a_caller_that_has_gone_is_never_run() -> None:
    ran: list[int] = []

    async def scenario(admission: Admission) -> None:
        async with _busy(admission):
            tasks = [_queued(admission, "rest", "x", partial(ran.append, k)) for k in range(4)]
            await _until(lambda: admission.waiting("rest") == 4)
            for task in tasks[:3]:
                task.cancel()
            await _until(lambda: admission.waiting("rest") == 1)
        await tasks[3]
        assert admission.abandoned == {"edge": 0, "rest": 3}

    with _pool(1) as admission:
        asyncio.run(scenario(admission))
    assert ran == [3]


def test_a_worker_is_busy_until_its_work_ends_even_if_the_caller_has_gone() -> None:
    async def scenario(admission: Admission) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            go_on.wait()

        gone = _queued(admission, "rest", "x", work)
        await asyncio.to_thread(begun.wait)
        gone.cancel()
        await asyncio.wait({gone})
        assert admission.running("rest") == 1
        waits = _queued(admission, "rest", "x")
        await _until(lambda: admission.waiting("rest") == 1)
        go_on.set()
        await waits
        await _until(lambda: admission.running("rest") == 0)

    with _pool(1) as admission:
        asyncio.run(scenario(admission))
