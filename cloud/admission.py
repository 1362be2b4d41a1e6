"""Admission: who may use the worker pool next, and who is asked to come back later.

    Frame, Report, Probe -> lane "edge" --+
                                          +--> a free worker --> answer
    image by REST        -> lane "rest" --+
                                          +--> OverloadedError, with when to try again

Each lane is a bounded queue, and within it clients take turns, so that one that sends much waits
for itself. Edges go first, as a camera waits for its answer, but one of every few turns is left to
REST; and REST never holds every worker at once, if there is more than one. Work whose caller has
gone (its task was cancelled) is dropped while it waits. All of it lives in the event loop of the
server; only the work itself runs in threads.
"""

import asyncio
import contextlib
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from common.errors import OverloadedError

T = TypeVar("T")
LaneName = Literal["edge", "rest"]
LANES: tuple[LaneName, ...] = ("edge", "rest")

_EDGE_TURNS = 4
"""Turns of edges in a row while REST waits; the next one is REST's."""
_GAIN = 0.1


@dataclass(frozen=True)
class LaneLimits:
    """Bounds of one lane.

    Attributes:
        queue: Calls that may wait, of all clients.
        per_client: Calls that may wait, of one client.
        max_wait_s: How long a call waits for a worker before it is turned away: by then its caller
            has given up, or soon will.
    """

    queue: int
    per_client: int
    max_wait_s: float = 10.0


EDGE_LIMITS = LaneLimits(queue=256, per_client=16)
REST_LIMITS = LaneLimits(queue=64, per_client=64)


@dataclass
class _Lane:
    limits: LaneLimits
    most_running: int
    waiting: "OrderedDict[str, deque[asyncio.Future[None]]]" = field(default_factory=OrderedDict)
    count: int = 0
    running: int = 0
    work_s: float = 0.05
    """Moving average of the duration of a call, in seconds."""

    @property
    def able(self) -> bool:
        return self.count > 0 and self.running < self.most_running


class Admission:
    """The queue before a pool of workers.

    Args:
        workers: Runs the calls.
        count: How many of them it runs at once.
        edge: Bounds for edges.
        rest: Bounds for REST.

    Attributes:
        shed: By lane, calls that were turned away.
        abandoned: By lane, calls that were dropped because their caller had gone.
    """

    def __init__(
        self,
        workers: Executor,
        count: int,
        *,
        edge: LaneLimits = EDGE_LIMITS,
        rest: LaneLimits = REST_LIMITS,
    ) -> None:
        self._workers = workers
        self._free = count
        self._edge = _Lane(edge, count)
        self._rest = _Lane(rest, max(1, count - 1))
        self._edge_turns = 0
        self.shed: dict[LaneName, int] = dict.fromkeys(LANES, 0)
        self.abandoned: dict[LaneName, int] = dict.fromkeys(LANES, 0)

    def waiting(self, lane: LaneName) -> int:
        """Calls of a lane that wait for a worker."""
        return self._lane(lane).count

    def running(self, lane: LaneName) -> int:
        """Calls of a lane that a worker runs."""
        return self._lane(lane).running

    def check(self, lane: LaneName, client: str) -> None:
        """Require room for one more call, before anything is spent on it.

        Raises:
            OverloadedError: If the lane's queue, or the client's part of it, is full.
        """
        state = self._lane(lane)
        own = state.waiting.get(client)
        if own is not None and len(own) >= state.limits.per_client:
            raise self._turned_away(lane, f"{len(own)} calls of this client wait already")
        if state.count >= state.limits.queue:
            raise self._turned_away(lane, f"{state.count} calls wait already")

    async def run(self, lane: LaneName, client: str, call: Callable[[], T]) -> T:
        """Run a call in a worker, in its turn.

        Args:
            lane: Whose turn it takes.
            client: Who calls; clients of a lane take turns.
            call: Runs in a thread. Once it runs it is not interrupted.

        Raises:
            OverloadedError: If there is no room to wait, or the wait took too long.
        """
        self.check(lane, client)
        state = self._lane(lane)
        await self._turn(lane, state, client)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            work: Future[T] = self._workers.submit(call)
        except BaseException:
            self._release(state, None)
            raise
        # Not when this task ends: one that is cancelled leaves its worker busy.
        work.add_done_callback(lambda _: _soon(loop, self._release, state, started_s))
        return await asyncio.wrap_future(work)

    async def _turn(self, lane: LaneName, state: _Lane, client: str) -> None:
        """Wait until a worker is taken for this call."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        state.waiting.setdefault(client, deque()).append(turn)
        state.count += 1
        self._dispatch()
        try:
            async with asyncio.timeout(state.limits.max_wait_s):
                await turn
        except TimeoutError:
            self._withdraw(state, client, turn)
            raise self._turned_away(
                lane, f"no worker was free within {state.limits.max_wait_s:g} s"
            ) from None
        except asyncio.CancelledError:
            self.abandoned[lane] += 1
            self._withdraw(state, client, turn)
            raise

    def _withdraw(self, state: _Lane, client: str, turn: "asyncio.Future[None]") -> None:
        if turn.done() and not turn.cancelled():  # its turn had just come
            self._release(state, None)
            return
        turns = state.waiting.get(client)
        if turns is not None and turn in turns:
            turns.remove(turn)
            state.count -= 1
            if not turns:
                del state.waiting[client]

    def _dispatch(self) -> None:
        while self._free:
            state = self._next_lane()
            if state is None:
                return
            turn = _next_turn(state)
            if turn.done():
                continue  # cancelled between its turn and its removal
            self._free -= 1
            state.running += 1
            turn.set_result(None)

    def _next_lane(self) -> _Lane | None:
        rest_is_due = self._edge_turns >= _EDGE_TURNS
        order = (self._rest, self._edge) if rest_is_due else (self._edge, self._rest)
        chosen = next((state for state in order if state.able), None)
        waits = self._rest.able and chosen is self._edge
        self._edge_turns = self._edge_turns + 1 if waits else 0
        return chosen

    def _release(self, state: _Lane, started_s: float | None) -> None:
        self._free += 1
        state.running -= 1
        if started_s is not None:
            took_s = asyncio.get_running_loop().time() - started_s
            state.work_s += _GAIN * (took_s - state.work_s)
        self._dispatch()

    def _turned_away(self, lane: LaneName, why: str) -> OverloadedError:
        self.shed[lane] += 1
        state = self._lane(lane)
        pause_s = max(1, math.ceil(state.count * state.work_s / state.most_running))
        return OverloadedError(
            f"the cloud is busy ({why}): try again in {pause_s} s", retry_after_s=pause_s
        )

    def _lane(self, name: LaneName) -> _Lane:
        return self._edge if name == "edge" else self._rest


class ByteBudget:
    """A bound on messages that are held in memory.

    Args:
        most: Bytes, of all messages.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Count a message for as long as it is held.

        Raises:
            OverloadedError: If the bound would be exceeded.
        """
        if self._held + size > self._most:
            raise OverloadedError(
                f"the cloud is busy ({self._held >> 20} of at most {self._most >> 20} MiB of "
                "messages are under way): try again in 1 s"
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size


def _next_turn(state: _Lane) -> "asyncio.Future[None]":
    """The oldest call of the client whose turn it is, which then goes to the end of the line."""
    client, turns = state.waiting.popitem(last=False)
    turn = turns.popleft()
    state.count -= 1
    if turns:
        state.waiting[client] = turns
    return turn


def _soon(
    loop: asyncio.AbstractEventLoop,
    release: Callable[[_Lane, float | None], None],
    state: _Lane,
    started_s: float,
) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the server with it
        loop.call_soon_threadsafe(release, state, started_s)
