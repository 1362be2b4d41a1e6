"""Intake: the budget of bytes, the time of a body, turns, and callers that have gone."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from common.errors import ImageError, ImageTooLargeError, OverloadedError
from common.http.intake import Intake, IntakeLimits, SlowRequestError, unless_gone
from common.http.turns import TurnLimits, Turns

HOUR_S = 3600.0
STEP = 256 << 10
GONE: Message = {"type": "http.disconnect"}


def _limits(**changed: Any) -> IntakeLimits:
    patient = {"stall_s": HOUR_S, "body_s": HOUR_S}
    return IntakeLimits(**{**patient, **changed})


class Caller:
    """A request, whose body arrives when a test says so."""

    def __init__(self, declared: int | None = None, peer: str = "192.0.2.1") -> None:
        headers = [] if declared is None else [(b"content-length", str(declared).encode())]
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self.received = 0
        scope = {"type": "http", "method": "POST", "headers": headers, "client": (peer, 1)}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> Message:
        message = await self._messages.get()
        self.received += 1
        return message

    def send(self, body: bytes, *, more: bool = True) -> None:
        self._messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    def hang_up(self) -> None:
        self._messages.put_nowait(GONE)


async def _read(intake: Intake, caller: Caller, limit_bytes: int = 1 << 20) -> bytes:
    async with intake.body(caller.request, limit_bytes) as body:
        return body


@asynccontextmanager
async def _half_sent(intake: Intake, *callers: Caller) -> AsyncIterator[None]:
    """Bodies that are being read during the block, then end."""
    tasks = [asyncio.create_task(_read(intake, caller)) for caller in callers]
    for caller in callers:
        caller.send(b"some")
    await _until(lambda: all(caller.received for caller in callers))
    try:
        yield
    finally:
        for caller in callers:
            caller.hang_up()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended} == {ClientDisconnect}


async def _until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0)


def test_a_body_is_read_and_held_until_it_is_answered() -> None:
    async def scenario() -> None:
        intake, caller = Intake(_limits()), Caller(6)
        caller.send(b"abc")
        caller.send(b"def", more=False)
        async with intake.body(caller.request, 10) as body:
            assert body == b"abcdef"
            assert intake.held_bytes == 6
        assert intake.held_bytes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("bounds", "peer", "said"),
    [
        ({"total_bytes": 100}, "192.0.2.2", "100 bytes for bodies are taken"),
        ({"peer_bytes": 100}, "192.0.2.1", "100 bytes for bodies of one client are taken"),
        ({"bodies": 1}, "192.0.2.2", "1 bodies are being read already"),
    ],
)
def test_over_the_budget_a_body_is_turned_away_unread(
    bounds: dict[str, Any], peer: str, said: str
) -> None:
    async def scenario() -> None:
        intake, late = Intake(_limits(**bounds)), Caller(60, peer)
        late.send(bytes(60), more=False)
        async with _half_sent(intake, Caller(60)):
            with pytest.raises(OverloadedError, match=said) as caught:
                await _read(intake, late)
            assert caught.value.retry_after_s >= 1
            assert late.received == 0
            assert intake.held_bytes == 60
        assert sum(intake.refused.values()) == 1
        assert await _read(intake, late) == bytes(60)  # there is room again
        assert intake.held_bytes == 0

    asyncio.run(scenario())


def test_another_peer_has_room_where_one_has_taken_its_part() -> None:
    async def scenario() -> None:
        intake, other = Intake(_limits(peer_bytes=100)), Caller(60, "192.0.2.2")
        other.send(bytes(60), more=False)
        async with _half_sent(intake, Caller(60)):
            assert await _read(intake, other) == bytes(60)

    asyncio.run(scenario())


def test_a_body_of_unknown_length_takes_its_share_in_steps() -> None:
    async def scenario() -> None:
        intake, caller = Intake(_limits(total_bytes=4 * STEP)), Caller()
        async with _half_sent(intake, caller):
            assert intake.held_bytes == STEP
            caller.send(bytes(2 * STEP))
            await _until(lambda: intake.held_bytes > 2 * STEP)
        assert intake.held_bytes == 0

    asyncio.run(scenario())


def test_a_body_of_unknown_length_stops_at_the_budget() -> None:
    async def scenario() -> None:
        intake, caller = Intake(_limits(total_bytes=2 * STEP)), Caller()
        for _ in range(8):
            caller.send(bytes(STEP // 2))
        with pytest.raises(OverloadedError):
            await _read(intake, caller, 1 << 30)
        assert caller.received < 8
        assert intake.held_bytes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("declared", ["11", "9" * 5000])
def test_a_body_that_says_it_is_too_large_is_not_read(declared: str) -> None:
    async def scenario() -> None:
        caller = Caller()
        caller.request.scope["headers"] = [(b"content-length", declared.encode())]
        with pytest.raises(ImageTooLargeError):
            await _read(Intake(_limits()), caller, 10)
        assert caller.received == 0

    asyncio.run(scenario())


def test_a_body_over_the_limit_is_cut_off() -> None:
    async def scenario() -> None:
        caller = Caller()
        for _ in range(9):
            caller.send(bytes(6))
        with pytest.raises(ImageTooLargeError):
            await _read(Intake(_limits()), caller, 10)
        assert caller.received == 2

    asyncio.run(scenario())


def test_no_body_is_an_error_of_its_own() -> None:
    async def scenario() -> None:
        caller = Caller(0)
        caller.send(b"", more=False)
        with pytest.raises(ImageError, match="got nothing"):
            await _read(Intake(_limits()), caller)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "bounds",
    [
        {"stall_s": 0.02},  # nothing comes
        {"stall_s": 0.2, "least_bytes_per_s": 1 << 30},  # too little comes
        {"body_s": 0.05},  # it never ends
    ],
)
def test_a_slow_body_is_given_up(bounds: dict[str, Any]) -> None:
    async def trickle(caller: Caller) -> None:
        while True:
            caller.send(b"a")
            await asyncio.sleep(0.01 if bounds.get("stall_s") != 0.02 else HOUR_S)

    async def scenario() -> None:
        intake, caller = Intake(_limits(**bounds)), Caller()
        sending = asyncio.create_task(trickle(caller))
        with pytest.raises(SlowRequestError, match="too slowly"):
            await _read(intake, caller)
        sending.cancel()
        assert intake.refused == {"slow": 1}
        assert intake.held_bytes == 0

    asyncio.run(scenario())


def test_turns_run_so_many_at_once_and_let_so_many_wait() -> None:
    async def scenario() -> None:
        turns = Turns(TurnLimits(at_once=1, waiting=2, max_wait_s=HOUR_S))
        begun, go_on = threading.Event(), threading.Event()

        def work() -> int:
            begun.set()
            go_on.wait()
            return 7

        running = asyncio.create_task(turns.run(work))
        await asyncio.to_thread(begun.wait)
        waiting = [asyncio.create_task(turns.run(work)) for _ in range(2)]
        await _until(lambda: turns.waiting == 2)
        with pytest.raises(OverloadedError, match="2 requests wait already"):
            turns.check()
        with pytest.raises(OverloadedError, match="try again in"):
            await turns.run(work)
        go_on.set()
        assert await asyncio.gather(running, *waiting) == [7, 7, 7]
        assert (turns.waiting, turns.shed) == (0, 2)

    asyncio.run(scenario())


def test_a_turn_that_does_not_come_is_given_up() -> None:
    async def scenario() -> None:
        turns = Turns(TurnLimits(at_once=1, waiting=2, max_wait_s=0))
        begun, go_on = threading.Event(), threading.Event()

        def work() -> None:
            begun.set()
            go_on.wait()

        running = asyncio.create_task(turns.run(work))
        await asyncio.to_thread(begun.wait)
        with pytest.raises(OverloadedError, match="no turn came within 0 s"):
            await turns.run(lambda: None)
        go_on.set()
        await running
        assert await turns.run(lambda: 7) == 7

    asyncio.run(scenario())


def test_work_ends_when_its_caller_hangs_up() -> None:
    async def scenario() -> None:
        caller = Caller()
        caller.hang_up()
        with pytest.raises(ClientDisconnect):
            await unless_gone(caller.request, asyncio.sleep(HOUR_S))

    asyncio.run(scenario())


def test_an_error_of_the_work_is_the_callers() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        with pytest.raises(ZeroDivisionError):
            await unless_gone(Caller().request, fail())

    asyncio.run(scenario())
