"""Turns: a bounded queue before threads, first come, first served.

    call -> Turns.run: a turn -> a thread -> result
               +-- OverloadedError, with when to try again

It lives in the event loop of the server; only the call itself runs in a thread.
"""

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from common.errors import OverloadedError

T = TypeVar("T")
_GAIN = 0.1


@dataclass(frozen=True)
class TurnLimits:
    """Bounds of a queue.

    Attributes:
        at_once: Calls that run at once.
        waiting: Calls that may wait.
        max_wait_s: How long a call waits before it is turned away.
    """

    at_once: int = 4
    waiting: int = 64
    max_wait_s: float = 10.0


class Turns:
    """A bounded queue before threads, first come, first served.

    Args:
        limits: Its bounds.

    Attributes:
        waiting: Calls that wait now.
        shed: Calls that were turned away.
    """

    def __init__(self, limits: TurnLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.at_once)
        # Of its own: the one that all threads of the process share would be a second queue.
        self._threads = anyio.CapacityLimiter(limits.at_once)
        self._work_s = 0.05
        self.waiting = 0
        self.shed = 0

    def check(self) -> None:
        """Require room for one more call, before anything is spent on it.

        Raises:
            OverloadedError: If the queue is full.
        """
        if self.waiting >= self._limits.waiting:
            raise self._turned_away(f"{self.waiting} requests wait already")

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call in a thread, in its turn.

        Args:
            call: Once it runs it is not interrupted.

        Raises:
            OverloadedError: If there is no room to wait, or the wait took too long.
        """
        self.check()
        await self._turn()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            return await anyio.to_thread.run_sync(call, limiter=self._threads)
        finally:
            self._work_s += _GAIN * (loop.time() - started_s - self._work_s)
            self._slots.release()

    async def _turn(self) -> None:
        self.waiting += 1
        try:
            async with asyncio.timeout(self._limits.max_wait_s):
                await self._slots.acquire()
        except TimeoutError:
            why = f"no turn came within {self._limits.max_wait_s:g} s"
            raise self._turned_away(why) from None
        finally:
            self.waiting -= 1

    def _turned_away(self, why: str) -> OverloadedError:
        self.shed += 1
        pause_s = max(1, math.ceil(self.waiting * self._work_s / self._limits.at_once))
        return OverloadedError(
            f"the server is busy ({why}): try again in {pause_s} s", retry_after_s=pause_s
        )
