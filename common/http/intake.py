"""Intake: the bodies of requests, bounded in bytes, in number and in time before any is read.

    request -> Intake.body: a share of the budget -> read, not too slowly -> bytes -> work
                 |                                     |                                |
                 +-- 503 with Retry-After              +-- 408                          +-- 503

A body is read only once its bytes are reserved, so what strangers send, or stop sending, never
takes more memory than the budget; one peer gets a part of it. An answer that comes before the body
was read leaves the rest unread, and `common.http.connections` closes what goes on sending.
`unless_gone` drops work whose caller has hung up. All of it lives in the event loop of the server;
only the work itself runs in threads.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from starlette.requests import ClientDisconnect, Request

from common.errors import ImageError, ImageTooLargeError, OverloadedError, SplitpointError

T = TypeVar("T")
Refusal = Literal["bodies", "bytes", "slow"]

REFUSALS: Final[tuple[Refusal, ...]] = ("bodies", "bytes", "slow")
_STEP_BYTES = 256 << 10
"""Step by which the share of a body without a Content-Length grows."""


class SlowRequestError(SplitpointError):
    """A request whose body did not arrive in the time that it may take."""

    http_status = 408


@dataclass(frozen=True)
class IntakeLimits:
    """Bounds of the bodies that one server holds.

    Attributes:
        total_bytes: Of all bodies that are held: from before the first byte is read until the
            request is answered.
        peer_bytes: Of the bodies of one peer.
        bodies: How many are read at once.
        stall_s: How long a body may pause.
        least_bytes_per_s: How fast it must arrive on average, after its first `stall_s`.
        body_s: How long it may take in all.
    """

    total_bytes: int = 64 << 20
    peer_bytes: int = 32 << 20
    bodies: int = 64
    stall_s: float = 10.0
    least_bytes_per_s: int = 8 << 10
    body_s: float = 120.0


CLOUD_INTAKE: Final = IntakeLimits()
EDGE_INTAKE: Final = IntakeLimits(total_bytes=32 << 20, peer_bytes=24 << 20)


class Intake:
    """Reads the bodies of requests under one budget.

    Args:
        limits: The budget.

    Attributes:
        held_bytes: What is reserved now.
        refused: Bodies that were turned away, by the bound that they met.
    """

    def __init__(self, limits: IntakeLimits = CLOUD_INTAKE) -> None:
        self._limits = limits
        self._peers: Counter[str] = Counter()
        self._reading = 0
        self.held_bytes = 0
        self.refused: Counter[Refusal] = Counter()

    @asynccontextmanager
    async def body(self, request: Request, limit_bytes: int) -> AsyncIterator[bytes]:
        """Read the raw body of a request; its share of the budget is held as long as the block.

        Args:
            request: A request with an image as its body.
            limit_bytes: The largest body to accept.

        Raises:
            ClientDisconnect: If the caller hangs up before the end of the body.
            ImageError: If the body is empty or a form.
            ImageTooLargeError: If it is, or says that it is, over the limit; the rest stays unread.
            OverloadedError: If the budget has no room for it; the rest stays unread.
            SlowRequestError: If it takes too long.
        """
        declared = _declared_bytes(request, limit_bytes)
        share = _Share(self, peer_of(request))
        try:
            share.grow(_STEP_BYTES if declared is None else declared)
            yield await self._read(request, share, limit_bytes)
        finally:
            share.release()

    def reserve(self, peer: str, count: int) -> None:
        """Take bytes of the budget for a peer.

        Raises:
            OverloadedError: If there are not as many left.
        """
        limits = self._limits
        if self.held_bytes + count > limits.total_bytes:
            raise self._turned_away("bytes", f"the {limits.total_bytes} bytes for bodies are taken")
        if self._peers[peer] + count > limits.peer_bytes:
            raise self._turned_away(
                "bytes", f"the {limits.peer_bytes} bytes for bodies of one client are taken"
            )
        self.held_bytes += count
        self._peers[peer] += count

    def release(self, peer: str, count: int) -> None:
        """Give bytes back."""
        self.held_bytes -= count
        self._peers[peer] -= count
        if not self._peers[peer]:
            del self._peers[peer]

    async def _read(self, request: Request, share: "_Share", limit_bytes: int) -> bytes:
        if self._reading >= self._limits.bodies:
            raise self._turned_away("bodies", f"{self._reading} bodies are being read already")
        self._reading += 1
        try:
            body = await self._read_in_time(request, share, limit_bytes)
        except TimeoutError:
            self.refused["slow"] += 1
            raise SlowRequestError(
                f"the body arrived too slowly: send it at {self._limits.least_bytes_per_s} bytes/s "
                f"or more, without pauses of {self._limits.stall_s:g} s, within "
                f"{self._limits.body_s:g} s"
            ) from None
        finally:
            self._reading -= 1
        if not body:
            raise ImageError("expected an image as the body, got nothing: curl --data-binary @FILE")
        return body

    async def _read_in_time(self, request: Request, share: "_Share", limit_bytes: int) -> bytes:
        limits, now_s = self._limits, asyncio.get_running_loop().time
        started_s = now_s()
        body = bytearray()  # no list: a million chunks of one byte would take fifty times as much
        more = True
        while more:
            expected_s = limits.stall_s + len(body) / limits.least_bytes_per_s
            until_s = started_s + min(expected_s, limits.body_s)
            async with asyncio.timeout_at(min(until_s, now_s() + limits.stall_s)):
                message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > limit_bytes:
                raise _too_large(limit_bytes)
            share.cover(len(body) + len(chunk), limit_bytes)
            body += chunk
            more = message.get("more_body", False)
        return bytes(body)

    def _turned_away(self, bound: Refusal, why: str) -> OverloadedError:
        self.refused[bound] += 1
        return OverloadedError(f"the server is busy ({why}): try again in 1 s", retry_after_s=1)


class _Share:
    """The part of a budget that one request holds."""

    def __init__(self, intake: Intake, peer: str) -> None:
        self._intake = intake
        self._peer = peer
        self._count = 0

    def grow(self, count: int) -> None:
        self._intake.reserve(self._peer, count)
        self._count += count

    def cover(self, count: int, limit_bytes: int) -> None:
        """Grow in steps to at least so many bytes."""
        if count > self._count:
            self.grow(min(limit_bytes, count + _STEP_BYTES) - self._count)

    def release(self) -> None:
        self._intake.release(self._peer, self._count)
        self._count = 0


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for work as long as its caller does, then cancel it.

    Args:
        request: The caller's, with its body read.
        work: What the caller waits for.

    Raises:
        ClientDisconnect: If the caller hung up first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        # Work that cannot be interrupted ends first: until then its body is in memory.
        await asyncio.wait({task, gone})
        if not task.cancelled():
            task.exception()  # else asyncio logs one that nobody is left to see


def peer_of(request: Request) -> str:
    """The address at the other end of the socket; what a header says of it is not believed."""
    return "" if request.client is None else request.client.host


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _declared_bytes(request: Request, limit_bytes: int) -> int | None:
    """Return the Content-Length of a request's body; None if it has no valid one.

    Raises:
        ImageError: If it is a form.
        ImageTooLargeError: If it is over the limit.
    """
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise ImageError("expected the image's bytes as the body, got a form: curl --data-binary")
    declared = request.headers.get("content-length", "")
    if not (declared.isascii() and declared.isdecimal()):
        return None
    if len(declared) > 18 or int(declared) > limit_bytes:
        raise _too_large(limit_bytes)
    return int(declared)


def _too_large(limit_bytes: int) -> ImageTooLargeError:
    return ImageTooLargeError(f"the image is over the limit of {limit_bytes} bytes")
