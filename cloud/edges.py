"""The edges that are connected now: what each last said of itself, and a way to ask it.

    Hello, Switch -> Edge (by name) -> GET /v1/edges, GET /v1/plans?edge=NAME
    POST /v1/edges/NAME/profile -> ProfileOrder -> ... -> ProfileReport -> rows of the tables

All of it lives in the event loop of the server and is never touched from another thread. What an
edge says of itself here is shown under its own name; what it says of times goes through
`cloud.samples` and into the tables, where edges of one kind count alike.
"""

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from cloud.samples import Source
from common.errors import CloudUnavailableError, SettingsError
from common.messages import DIGEST_BYTES
from common.rpc import splitpoint_pb2 as pb

MAX_EXPECTATIONS = 256
_MAX_REASON = 300
_MAX_BPS = 1e12

Send = Callable[[pb.CloudMessage], Awaitable[None]]


class UnknownEdgeError(SettingsError):
    """No edge of that name is connected."""

    http_status = 404


class EdgeFailedError(CloudUnavailableError):
    """An edge that did not do what it was asked."""

    http_status = 504


@dataclass
class Edge:
    """One connected edge.

    Attributes:
        source: Who it is.
        bundle: Digest of its bundle, in hex.
        version: Of its software.
        since_s: When it connected, in seconds since the epoch.
        switch: Its last announcement; None before the first.
        switches: How many announcements there were.
    """

    source: Source
    bundle: str
    version: str
    send: Send = field(repr=False)
    since_s: float = field(default_factory=time.time)
    switch: pb.Switch | None = None
    switches: int = 0
    _orders: dict[int, "asyncio.Future[pb.ProfileReport]"] = field(default_factory=dict, repr=False)
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False)

    def switched(self, switch: pb.Switch) -> None:
        """Remember what it announced.

        Raises:
            ValueError: If no edge that means well would have sent it.
        """
        check_switch(switch)
        self.switch = switch
        self.switches += 1

    def reported(self, report: pb.ProfileReport) -> None:
        """Hand a profile to whoever ordered it; one that nobody ordered is dropped."""
        waiting = self._orders.pop(report.order_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(report)

    def gone(self) -> None:
        """Tell those who wait for it that it hung up."""
        for waiting in self._orders.values():
            if not waiting.done():
                waiting.set_exception(EdgeFailedError(f"{self.source.edge} hung up"))
        self._orders.clear()

    async def profile(self, budget_s: float, patience_s: float = 30.0) -> pb.ProfileReport:
        """Have the edge time its plans.

        Args:
            budget_s: How long it may take.
            patience_s: How much longer is waited, for it to begin and for its answer to arrive.

        Raises:
            EdgeFailedError: If it hangs up, cannot, or does not answer in time.
        """
        order = pb.ProfileOrder(order_id=next(self._ids), budget_ms=max(1, round(budget_s * 1e3)))
        waiting: asyncio.Future[pb.ProfileReport] = asyncio.get_running_loop().create_future()
        self._orders[order.order_id] = waiting
        try:
            async with asyncio.timeout(budget_s + patience_s):  # an edge may not even read
                await self.send(pb.CloudMessage(order=order))
                report = await waiting
        except TimeoutError:
            late = f"{self.source.edge} did not answer within {budget_s + patience_s:g} s"
            raise EdgeFailedError(late) from None
        except asyncio.InvalidStateError as error:
            raise EdgeFailedError(f"{self.source.edge} hung up") from error
        finally:
            self._orders.pop(order.order_id, None)
        if report.error:
            why = " ".join(report.error.split())[:_MAX_REASON]
            raise EdgeFailedError(f"{self.source.edge}: {why}")
        return report


class Edges:
    """The connected edges, by name; of two with one name, the newer."""

    def __init__(self) -> None:
        self._edges: dict[str, Edge] = {}

    @contextmanager
    def connected(self, edge: Edge) -> Iterator[Edge]:
        """Hold an edge for as long as its stream is open."""
        name = edge.source.edge
        self._edges[name] = edge
        try:
            yield edge
        finally:
            edge.gone()
            if self._edges.get(name) is edge:
                with contextlib.suppress(KeyError):
                    del self._edges[name]

    def all(self) -> list[Edge]:
        """By name."""
        return [edge for _, edge in sorted(self._edges.items())]

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
