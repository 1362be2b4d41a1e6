"""The edges that are connected now: what each last said of itself, and a way to ask it.

    Hello, Switch -> Edge (by name) -> GET /v1/edges, GET /v1/plans?edge=NAME
    Report -> Edge.results -> GET /v1/edges/NAME/results
    POST /v1/edges/NAME/profile -> ProfileOrder -> ... -> ProfileReport -> rows of the tables

All of it lives in the event loop of the server and is never touched from another thread. What an
edge says of itself here is shown under its own name; what it says of times goes through
`cloud.store.samples` and into the tables, where edges of one kind count alike. Nothing here
outlives the edge's stream.

Two edges that are connected under one name are kept apart: the second is `cam#2` here and in the
metrics, for as long as it stays. Its measurements are kept under the name without the number, as
the number says nothing of the machine.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloud.store.samples import SampleSource
from common.errors import CloudUnavailableError, OverloadedError, SettingsError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import DIGEST_BYTES, MAX_EXPECTATIONS
from common.tasks.base import MAX_REPORTED_BYTES, TaskResult

MOST_REPORTS = 16
"""Reports of one edge whose results are kept."""
_MOST_PROFILES = 4
_MAX_REASON = 300
_MAX_BPS = 1e12

Send = Callable[[pb.CloudMessage], Awaitable[None]]
"""Sends a message to an edge; raises ConnectionError if it has gone."""


class UnknownEdgeError(SettingsError):
    """No edge of that name is connected."""

    http_status = 404


class EdgeFailedError(CloudUnavailableError):
    """An edge that did not do what it was asked."""

    http_status = 504


class EdgeBusyError(SettingsError):
    """An edge that does already what it is asked to do."""

    http_status = 409


@dataclass(frozen=True)
class ReportedResult:
    """Result of an edge-only frame, as its edge reported it.

    Attributes:
        frame_id: Of the report; unique within the edge's stream.
        plan: Digest of the edge-only plan.
        at_s: When the report came, in seconds since the epoch.
        result: Of the bundle's task; boxes are in pixels of the captured image.
    """

    frame_id: int
    plan: bytes
    at_s: float
    result: TaskResult


class Profiling:
    """Limit on profiles under way at once, of all edges."""

    def __init__(self, most: int = _MOST_PROFILES) -> None:
        self._most = most
        self._running = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a slot while a profile is under way.

        Raises:
            OverloadedError: If there is none.
        """
        if self._running >= self._most:
            raise OverloadedError(
                f"{self._running} edges are being profiled, the most at once: try again later",
                retry_after_s=10,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1


@dataclass(eq=False)
class Edge:
    """One connected edge.

    Attributes:
        source: Who it is.
        bundle: Digest of its bundle, in hex.
        version: Of its software.
        instance: Of the edge's process; 0 if it does not say.
        name: What it is called here: its own name, with a number if that is taken.
        since_s: When it connected, in seconds since the epoch.
        switch: Its last announcement; None before the first.
        switches: How many announcements there were.
        results: Of its newest reports, oldest first.
    """

    source: SampleSource
    bundle: str
    version: str
    send: Send = field(repr=False)
    instance: int = 0
    replaced: Callable[[], None] = field(default=lambda: None, repr=False)
    name: str = ""
    since_s: float = field(default_factory=time.time)
    switch: pb.Switch | None = None
    switches: int = 0
    results: deque[ReportedResult] = field(default_factory=deque, repr=False)
    profiling: Profiling = field(default_factory=Profiling, repr=False)
    _profiled: bool = field(default=False, repr=False)
    _orders: dict[int, "asyncio.Future[pb.ProfileReport]"] = field(default_factory=dict, repr=False)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def __post_init__(self) -> None:
        self.name = self.name or self.source.edge

    def found(self, report: ReportedResult) -> None:
        """Keep what it reported; the oldest is forgotten."""
        self.results.append(report)
        kept = sum(each.result.size_bytes for each in self.results)
        while len(self.results) > MOST_REPORTS or kept > MAX_REPORTED_BYTES:
            kept -= self.results.popleft().result.size_bytes

    def switched(self, switch: pb.Switch) -> None:
        """Remember what it announced.

        Raises:
            ValueError: If no edge that means well would have sent it.
        """
        check_switch(switch)
        self.switch = switch
        self.switches += 1

    def reported(self, report: pb.ProfileReport) -> None:
        """Hand a profile to the caller that ordered it; one that nobody ordered is dropped."""
        waiting = self._orders.pop(report.order_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(report)

    def gone(self) -> None:
        """Fail the pending orders of an edge that hung up."""
        for waiting in self._orders.values():
            if not waiting.done():
                waiting.set_exception(EdgeFailedError(f"{self.name} hung up"))
        self._orders.clear()

    async def profile(self, budget_s: float, max_wait_s: float = 30.0) -> pb.ProfileReport:
        """Have the edge time its plans.

        Args:
            budget_s: How long it may take.
            max_wait_s: How much longer is waited, for it to begin and for its answer to arrive.

        Raises:
            EdgeBusyError: If it is being profiled already.
            EdgeFailedError: If it hangs up, cannot, or does not answer in time.
            OverloadedError: If as many edges as may are being profiled.
        """
        if self._profiled:
            raise EdgeBusyError(f"{self.name} is being profiled already: wait for that to end")
        with self.profiling.one():
            self._profiled = True
            try:
                return await self._profile(budget_s, max_wait_s)
            finally:
                self._profiled = False

    async def _profile(self, budget_s: float, max_wait_s: float) -> pb.ProfileReport:
        order = pb.ProfileOrder(order_id=next(self._ids), budget_ms=max(1, round(budget_s * 1e3)))
        waiting: asyncio.Future[pb.ProfileReport] = asyncio.get_running_loop().create_future()
        self._orders[order.order_id] = waiting
        try:
            async with asyncio.timeout(budget_s + max_wait_s):  # an edge may not even read
                await self.send(pb.CloudMessage(order=order))
                report = await waiting
        except TimeoutError:
            late = f"{self.name} did not answer within {budget_s + max_wait_s:g} s"
            raise EdgeFailedError(late) from None
        except ConnectionError as error:
            raise EdgeFailedError(f"{self.name} hung up") from error
        finally:
            self._orders.pop(order.order_id, None)
        if report.error:
            why = " ".join(report.error.split())[:_MAX_REASON]
            raise EdgeFailedError(f"{self.name}: {why}")
        return report


class Edges:
    """The connected edges, by what they are called here."""

    def __init__(self) -> None:
        self._edges: dict[str, Edge] = {}
        self._profiling = Profiling()

    @contextmanager
    def connected(self, edge: Edge) -> Iterator[Edge]:
        """Hold an edge for as long as its stream is open, under a name that no other has."""
        edge.name = self._free(edge.source.edge)
        edge.profiling = self._profiling
        self._edges[edge.name] = edge
        try:
            yield edge
        finally:
            self._remove(edge)

    def replace(self, name: str, instance: int) -> None:
        """End the older stream of an edge that has connected again before that was seen to end.

        Args:
            name: What the edge calls itself.
            instance: Of its process; 0 replaces nothing.
        """
        for older in list(self._edges.values()):
            if instance and (older.source.edge, older.instance) == (name, instance):
                self._remove(older)
                older.replaced()

    def _remove(self, edge: Edge) -> None:
        edge.gone()
        if self._edges.get(edge.name) is edge:
            del self._edges[edge.name]

    def _free(self, name: str) -> str:
        numbers = itertools.count(2)
        free = name
        while free in self._edges:
            free = f"{name}#{next(numbers)}"
        return free

    def all(self) -> list[Edge]:
        """All connected edges, by name."""
        return [edge for _, edge in sorted(self._edges.items())]

    def has_namesake(self, edge: Edge) -> bool:
        """Whether another edge is connected that calls itself the same."""
        own = edge.source.edge
        return any(e is not edge and e.source.edge == own for e in self._edges.values())

    def find(self, name: str) -> Edge:
        """The edge of a name.

        Raises:
            UnknownEdgeError: If none is connected.
        """
        if name not in self._edges:
            known = ", ".join(sorted(self._edges)[:20]) or "none"
            raise UnknownEdgeError(f"no edge {name!r} is connected; connected are {known}")
        return self._edges[name]


def check_switch(switch: pb.Switch) -> None:
    """Require that an announcement makes sense.

    Raises:
        ValueError: If it does not.
    """
    if len(switch.plan_digest) != DIGEST_BYTES:
        raise ValueError(f"plan_digest: expected {DIGEST_BYTES} bytes")
    if len(switch.reason) > _MAX_REASON:
        raise ValueError(f"reason: expected at most {_MAX_REASON} characters")
    if not (math.isfinite(switch.uplink_bps) and 0 <= switch.uplink_bps <= _MAX_BPS):
        raise ValueError(f"uplink_bps: {switch.uplink_bps} is no bandwidth")
    if len(switch.expected) > MAX_EXPECTATIONS:
        raise ValueError(f"expected: at most {MAX_EXPECTATIONS}")
    if any(len(each.plan_digest) != DIGEST_BYTES for each in switch.expected):
        raise ValueError(f"expected: plan digests of {DIGEST_BYTES} bytes")
