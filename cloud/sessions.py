"""Sessions of edges: the protocol of an edge's stream, over any transport of its messages.

    EdgeStream: Hello -> Welcome, then  Frame, Report, Probe -> DataPlane -> Result | Rejection
                                        Switch, ProfileReport -> Edges

Several frames of one stream are served at once and answered as they finish. When an edge has as
many under way as it may, its stream is not read: the pressure reaches the edge through the
transport's flow control, and nothing queues without bound. A frame that finds too many before it
is refused with a hint when to come back. A bad frame costs that frame; only a peer that does not
speak the protocol, or holds a slot that others need, loses its stream.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from cloud.data_plane import DataPlane, EdgeSession, frame_id
from cloud.edges import Edge
from cloud.statuses import status_of
from cloud.store.samples import SampleSource
from cloud.streams import (
    HelloTimeoutError,
    ProtocolError,
    ReplacedError,
    StreamError,
    Streams,
    StreamSlot,
    TooManyStreamsError,
)
from common.errors import CloudUnavailableError, OverloadedError, SplitpointError
from common.http.serving import log_event
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import DIGEST_BYTES, MAX_EDGE_ID_CHARACTERS, MAX_MEASUREMENTS

_LOG = logging.getLogger("splitpoint.cloud")
_DRAIN_S = 5.0


class EdgeStream(Protocol):
    """One stream of an edge, as the transport gives it."""

    @property
    def peer(self) -> str:
        """Address of the other end, for limits per peer."""

    @property
    def certified(self) -> str | None:
        """The name in the peer's certificate; None without a certificate."""

    async def read(self) -> pb.EdgeMessage | None:
        """Read the next message; None at the stream's end.

        Raises:
            ConnectionError: If the peer has gone.
            ProtocolError: If the bytes are no message.
        """

    async def write(self, message: pb.CloudMessage) -> None:
        """Write a message.

        Raises:
            ConnectionError: If the peer has gone.
        """

    async def end(self, why: SplitpointError) -> None:
        """End the stream with an error; may wait for the peer to read it, and may raise."""


@dataclass(frozen=True)
class _Open:
    """Parts of one open stream, after its handshake."""

    stream: EdgeStream
    slot: StreamSlot
    session: EdgeSession
    answers: set["asyncio.Task[None]"]
    in_flight: asyncio.Semaphore


class EdgeSessions:
    """Serves the streams of edges.

    Args:
        plane: Answers their frames.
        streams: Limits on open streams.
        in_flight: Frames of one edge that may be under way before its stream is no longer read.
    """

    def __init__(
        self, plane: DataPlane, streams: Streams | None = None, *, in_flight: int = 8
    ) -> None:
        self._plane = plane
        self._streams = Streams() if streams is None else streams
        self._in_flight = in_flight
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Read no more frames; streams end once the frames under way are answered."""
        self._draining.set()

    async def serve(self, stream: EdgeStream) -> None:
        """Serve one edge until it hangs up, breaks the protocol, gives way or the cloud drains."""
        try:
            await self._serve(stream)
        except TooManyStreamsError as error:  # it had no slot at all
            self._streams.ended[error.label] += 1
            await stream.end(error)

    async def _serve(self, stream: EdgeStream) -> None:
        answers: set[asyncio.Task[None]] = set()
        with self._streams.opened(stream.peer) as slot:
            reading = asyncio.create_task(self._read(stream, slot, answers))
            draining = asyncio.create_task(self._draining.wait())
            try:
                ends: set[asyncio.Future[Any]] = {reading, draining, slot.ended}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
                elif slot.ended.done():
                    raise slot.ended.result()
                if answers:
                    await asyncio.wait(answers, timeout=None if reading.done() else _DRAIN_S)
            except StreamError as error:
                self._streams.ended[error.label] += 1
                # First: a peer that reads nothing is waited for.
                _cancel(reading, draining, *answers)
                await stream.end(error)
            except ConnectionError:
                _LOG.debug("an edge left while it was read")
            else:
                if not reading.done():
                    await stream.end(CloudUnavailableError("the cloud is shutting down"))
            finally:
                _cancel(reading, draining, *answers)
                await asyncio.wait({reading, draining})
                if not reading.cancelled():
                    reading.exception()  # else asyncio logs one that nobody is left to see

    async def _read(
        self, stream: EdgeStream, slot: StreamSlot, answers: set["asyncio.Task[None]"]
    ) -> None:
        edge = await self._handshake(stream, slot)
        if edge is None:
            return
        with self._plane.session(edge) as session:
            self._log_connected(edge)
            in_flight = asyncio.Semaphore(self._in_flight)
            await self._read_on(_Open(stream, slot, session, answers, in_flight))
            if answers:  # an edge that is being answered is connected
                await asyncio.wait(answers)

    async def _handshake(self, stream: EdgeStream, slot: StreamSlot) -> Edge | None:
        """Take a Hello and answer it; None if the peer hangs up without one."""
        writing = asyncio.Lock()

        async def send(message: pb.CloudMessage) -> None:
            async with writing:
                await stream.write(message)

        timeout_s = self._streams.limits.hello_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                message = await stream.read()
                if message is None:
                    return None
                source = check_hello(message, stream.certified)
                hello = message.hello
                self._plane.edges.replace(source.edge, hello.instance)  # before it counts twice
                self._streams.admit(slot)
                await send(pb.CloudMessage(welcome=self._plane.welcome(source)))
        except TimeoutError:
            raise HelloTimeoutError(f"expected a Hello within {timeout_s:g} s") from None
        return Edge(
            source,
            hello.bundle_digest.hex(),
            hello.software_version[:64],
            send,
            instance=hello.instance,
            replaced=partial(
                self._streams.end, slot, ReplacedError("this edge has connected again")
            ),
        )

    async def _read_on(self, opened: _Open) -> None:
        while True:
            await opened.in_flight.acquire()
            message = await opened.stream.read()
            if message is None or self._draining.is_set():  # what comes then is not begun
                return
            arrived_s = time.perf_counter()
            self._streams.active(opened.slot)
            if self._take_notification(message, opened.session.edge):
                opened.in_flight.release()
                continue
            self._plane.measured(_measurements(message), opened.session)
            task = asyncio.create_task(self._answer(message, arrived_s, opened))
            del message  # or it would be held until the next one comes, perhaps for ever
            opened.answers.add(task)
            task.add_done_callback(opened.answers.discard)

    async def _answer(self, message: pb.EdgeMessage, arrived_s: float, opened: _Open) -> None:
        try:
            try:
                result = await self._plane.answer(message, arrived_s, opened.session)
                answer = pb.CloudMessage(result=result)
            except SplitpointError as error:
                answer = rejection(message, error)
            del message  # a peer that does not read its answers holds no more than those
            await opened.session.edge.send(answer)
        except ConnectionError:
            _LOG.debug("an edge left before its answer was ready")
        except Exception:  # noqa: BLE001 - nobody waits for this task: only here is it said
            _LOG.exception("an answer failed")
        finally:
            opened.in_flight.release()

    def _take_notification(self, message: pb.EdgeMessage, edge: Edge) -> bool:
        """Handle a message that is not answered; False for one that is.

        Raises:
            ProtocolError: If it is neither, or no edge that means well would have sent it.
        """
        kind = message.WhichOneof("kind")
        if kind in {"frame", "report", "probe"}:
            return False
        if kind == "profile":
            edge.reported(message.profile)
        elif kind == "switch":
            self._switch(message.switch, edge)
        else:
            raise ProtocolError(
                f"expected a Frame or Report, got {kind or 'a message without a kind'}"
            )
        return True

    def _switch(self, switch: pb.Switch, edge: Edge) -> None:
        try:
            edge.switched(switch)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        self._plane.metrics.switched()
        fields = {
            "edge_id": edge.name,
            "plan": switch.plan_digest.hex(),
            "reason": " ".join(switch.reason.split()),
        }
        log_event("plan-switched", fields)

    def _log_connected(self, edge: Edge) -> None:
        fields = {
            "edge_id": edge.source.edge,
            "bundle": edge.bundle,
            "same_bundle": edge.bundle == self._plane.tails.bundle_digest.hex(),
            "version": edge.version,
        }
        log_event("edge-connected", fields)
        if self._plane.edges.has_namesake(edge):
            log_event("edge-name-in-use", {"edge_id": edge.source.edge, "shown_as": edge.name})


def rejection(message: pb.EdgeMessage, error: SplitpointError) -> pb.CloudMessage:
    """Build the Rejection of a message that ended in an error."""
    refused = pb.Rejection(
        frame_id=frame_id(message),
        reason=status_of(error).rejection,
        message=" ".join(str(error).split())[:300],
    )
    if isinstance(error, OverloadedError):
        refused.retry_after_ms = error.retry_after_s * 1000
    return pb.CloudMessage(rejection=refused)


def check_hello(message: pb.EdgeMessage, certified: str | None = None) -> SampleSource:
    """Check a Hello and return the identity of its edge.

    Args:
        message: The first of a stream.
        certified: The name in the edge's certificate, which then counts.

    Raises:
        ProtocolError: If the message is no Hello, or one that makes no sense.
    """
    if message.WhichOneof("kind") != "hello":
        raise ProtocolError(f"expected a Hello first, got {message.WhichOneof('kind')}")
    hello = message.hello
    name = hello.edge_id if certified is None else certified
    if certified is not None and hello.edge_id != certified:
        log_event("edge-named-by-certificate", {"edge_id": certified, "said": hello.edge_id})
    _check_name("edge_id", name, least=1)
    _check_name("device", hello.device)
    _check_name("runtime", hello.runtime)
    if len(hello.bundle_digest) != DIGEST_BYTES:
        raise ProtocolError(
            f"bundle_digest: expected {DIGEST_BYTES} bytes, got {len(hello.bundle_digest)}"
        )
    # Another bundle is no reason to refuse: plans are matched one by one, by digest.
    return SampleSource(name, hello.device, hello.runtime, hello.threads)


def _check_name(field: str, name: str, *, least: int = 0) -> None:
    if not least <= len(name) <= MAX_EDGE_ID_CHARACTERS:
        raise ProtocolError(
            f"{field}: expected {least} to {MAX_EDGE_ID_CHARACTERS} characters, got {len(name)}"
        )
    if not name.isprintable():  # it is shown in terminals, and is part of addresses
        raise ProtocolError(f"{field}: expected printable characters, got {name!a}")


def _measurements(message: pb.EdgeMessage) -> list[pb.Measurement]:
    """Measurements of earlier frames that come with a Frame or Report; a Probe has none.

    Raises:
        ProtocolError: If there are too many.
    """
    carrier = message.frame if message.HasField("frame") else message.report
    if len(carrier.measured) > MAX_MEASUREMENTS:
        raise ProtocolError(
            f"expected at most {MAX_MEASUREMENTS} measurements, got {len(carrier.measured)}"
        )
    return list(carrier.measured)


def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
