"""The cloud's end of the stream: greets an edge, then answers each of its frames as it finishes.

    Stream: Hello -> Welcome, then  Frame -> [Admission -> TailRunner] -> Result | Rejection
                                    Switch, ProfileReport, Report -> Edges

Several frames of one stream are served at once and answered as they finish. When an edge has as
many under way as it may, its stream is not read: the pressure reaches the edge through HTTP/2 flow
control and nothing queues without bound. A frame that finds too many before it is refused with a
hint when to come back. A bad frame costs that frame; only a peer that does not speak the protocol,
or holds a place that others need, loses its stream.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from cloud.admission import Admission
from cloud.edges import Edge, Edges, ReportedDetections
from cloud.metrics import CloudMetrics
from cloud.reference_frames import ReferenceFrames, ReferenceMemory
from cloud.store.samples import ImpossibleTimesError, PendingMeasurements, Sample, SampleSource
from cloud.store.store import Store
from cloud.streams import (
    GreetingTimeoutError,
    ProtocolError,
    ReplacedError,
    StreamError,
    StreamPlace,
    Streams,
    TooManyStreamsError,
    peer_of,
)
from cloud.tails import Tails
from common.errors import (
    OverloadedError,
    PayloadError,
    SplitpointError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.http.serving import log_event
from common.rpc import splitpoint_pb2 as pb
from common.rpc.envelope import TooManyFieldsError, parse_edge_message
from common.rpc.messages import (
    DIGEST_BYTES,
    MAX_EDGE_ID_CHARACTERS,
    MAX_MEASUREMENTS,
    MAX_PROBE_BYTES,
    detections_from_message,
    detections_to_message,
    microseconds,
)
from common.rpc.splitpoint_pb2_grpc import SplitServiceServicer
from common.rpc.tls import certificate_name
from common.version import __version__

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[pb.EdgeMessage, pb.CloudMessage]

_LOG = logging.getLogger("splitpoint.cloud")
_DRAIN_S = 5.0
MOST_BYTES = 256 << 20
"""Messages that wait or are served, of all streams."""


@dataclass(frozen=True)
class _Session:
    """State of one greeted stream."""

    edge: Edge
    place: StreamPlace
    ledger: PendingMeasurements
    history: ReferenceFrames
    slots: asyncio.Semaphore


class SplitService(SplitServiceServicer):
    """The gRPC service over a bundle's tails.

    Args:
        tails: The opened tails.
        admission: Where frames wait for a worker, those of all edges and of REST callers.
        in_flight: Frames of one edge that may be under way before its stream is no longer read.
        most_bytes: Bound on messages that wait or are served, of all streams.
        store: Where observations are kept; nowhere, if None.
        edges: Registry of the edges that are connected.
        streams: Who may hold a stream.
        metrics: Where what it does is counted.
    """

    def __init__(
        self,
        tails: Tails,
        admission: Admission,
        *,
        in_flight: int = 8,
        most_bytes: int = MOST_BYTES,
        store: Store | None = None,
        edges: Edges | None = None,
        streams: Streams | None = None,
        metrics: CloudMetrics | None = None,
    ) -> None:
        self._edges = Edges() if edges is None else edges
        self._streams = Streams() if streams is None else streams
        self._metrics = CloudMetrics(tails.bundle.plans) if metrics is None else metrics
        self._tails = tails
        self._admission = admission
        self._in_flight = in_flight
        self._bytes = _ByteBudget(most_bytes)
        self._history = ReferenceMemory()
        self._store = store
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Read no more frames; streams end once the frames under way are answered."""
        self._draining.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """Handler for `grpc.aio.Server.add_generic_rpc_handlers` that checks messages, then parses.

        The generated `add_SplitServiceServicer_to_server` would parse whatever comes.
        """
        plans = self._tails.bundle.plans.values()
        most_payloads = max((len(plan.wire) for plan in plans), default=0)
        stream = grpc.stream_stream_rpc_method_handler(
            self.Stream,
            request_deserializer=partial(parse_edge_message, most_payloads=most_payloads),
            response_serializer=pb.CloudMessage.SerializeToString,
        )
        name = pb.DESCRIPTOR.services_by_name["SplitService"].full_name
        return grpc.method_handlers_generic_handler(name, {"Stream": stream})

    async def Stream(  # noqa: N802
        self,
        request_iterator: AsyncIterable[pb.EdgeMessage],  # noqa: ARG002 - read by context.read
        context: "Context",
    ) -> None:
        """Serve one edge until it hangs up, breaks the protocol, gives way or the server drains."""
        try:
            await self._stream(context)
        except TooManyStreamsError as error:  # it had no place at all
            self._streams.ended[error.label] += 1
            await _abort(context, error.code, str(error))

    async def _stream(self, context: "Context") -> None:
        answers: set[asyncio.Task[None]] = set()
        with self._streams.arrived(peer_of(context.peer())) as place:
            reading = asyncio.create_task(self._read(context, place, answers))
            draining = asyncio.create_task(self._draining.wait())
            try:
                ends: set[asyncio.Future[Any]] = {reading, draining, place.ended}
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    reading.result()
                elif place.ended.done():
                    raise place.ended.result()
                if answers:
                    await asyncio.wait(answers, timeout=None if reading.done() else _DRAIN_S)
            except StreamError as error:
                self._streams.ended[error.label] += 1
                _cancel(
                    reading, draining, *answers
                )  # first: a peer that reads nothing is waited for
                await _abort(context, error.code, str(error))
            except (asyncio.InvalidStateError, grpc.aio.BaseError):
                _LOG.debug("an edge left while it was read")
            else:
                if not reading.done():
                    why = "the cloud is shutting down"
                    await _abort(context, grpc.StatusCode.UNAVAILABLE, why)
            finally:
                _cancel(reading, draining, *answers)
                await asyncio.wait({reading, draining})
                if not reading.cancelled():
                    reading.exception()  # else asyncio logs one that nobody is left to see

    async def _read(
        self, context: "Context", place: StreamPlace, answers: set[asyncio.Task[None]]
    ) -> None:
        writing = asyncio.Lock()

        async def send(message: pb.CloudMessage) -> None:
            async with writing:
                await context.write(message)

        patience_s = self._streams.limits.greeting_s
        try:
            async with asyncio.timeout(patience_s):
                hello = await _next(context)
                if hello is None:
                    return
                source = self._check_hello(hello, certificate_name(_certificate(context)))
                self._edges.replace(source.edge, hello.hello.instance)  # before it counts twice
                self._streams.greeted(place)
                await send(pb.CloudMessage(welcome=self._welcome(source)))
        except TimeoutError:
            raise GreetingTimeoutError(f"expected a Hello within {patience_s:g} s") from None
        bundle, version = hello.hello.bundle_digest.hex(), hello.hello.software_version[:64]
        again = ReplacedError("this edge has connected again")
        edge = Edge(
            source,
            bundle,
            version,
            send,
            instance=hello.hello.instance,
            replaced=partial(self._streams.end, place, again),
        )
        history = ReferenceFrames(self._history)
        try:
            with self._edges.connected(edge):
                self._log_connected(hello.hello, edge)
                slots = asyncio.Semaphore(self._in_flight)
                session = _Session(edge, place, PendingMeasurements(source), history, slots)
                await self._read_on(context, session, answers)
                if answers:  # an edge that is being answered is connected
                    await asyncio.wait(answers)
        finally:
            history.close()

    async def _read_on(
        self, context: "Context", session: _Session, answers: set[asyncio.Task[None]]
    ) -> None:
        while True:
            await session.slots.acquire()
            message = await _next(context)
            if message is None or self._draining.is_set():  # what comes then is not begun
                return
            arrived_s = time.perf_counter()
            self._streams.active(session.place)
            if _tells(message, session.edge):
                if message.HasField("switch"):
                    self._metrics.switched()
                session.slots.release()
                continue
            self._learn(message, session.ledger)
            task = asyncio.create_task(self._answer(message, arrived_s, session))
            del message  # or it would be held until the next one comes, perhaps for ever
            answers.add(task)
            task.add_done_callback(answers.discard)

    def _welcome(self, source: SampleSource) -> pb.Welcome:
        welcome = pb.Welcome(software_version=__version__, plan_digests=self._tails.digests)
        if self._store is not None and source.device:
            known = self._store.learned(source.device, source.runtime, source.threads)
            welcome.learned.extend(
                pb.Learned(
                    plan_digest=bytes.fromhex(each.plan),
                    n=each.n,
                    edge_us=microseconds(each.edge_ms),
                    cloud_us=microseconds(each.cloud_ms),
                    uplink_bytes=round(each.uplink_bytes),
                )
                for each in known
            )
        return welcome

    async def _answer(self, message: pb.EdgeMessage, arrived_s: float, session: _Session) -> None:
        self._metrics.arrived()
        try:
            answer = await self._admitted(message, arrived_s, session)
            if answer.HasField("result"):
                elapsed_ms = (time.perf_counter() - arrived_s) * 1000
                answer.result.times.total_us = microseconds(elapsed_ms)
                self._note(message, answer.result, session.ledger)
                self._keep_detections(message, session.edge)
            self._metrics.answered(message, answer)
            del message  # a peer that does not read its answers holds no more than those
            await session.edge.send(answer)
        except (asyncio.InvalidStateError, grpc.aio.BaseError):
            _LOG.debug("an edge left before its answer was ready")
        except Exception:  # noqa: BLE001 - nobody waits for this task: only here is it said
            _LOG.exception("an answer failed")
        finally:
            self._metrics.left()
            session.slots.release()

    async def _admitted(
        self, message: pb.EdgeMessage, arrived_s: float, session: _Session
    ) -> pb.CloudMessage:
        """The answer to a message, once a worker has had time for it."""
        work = partial(self.serve, message, arrived_s, session.history)
        try:
            with self._bytes.held(message.ByteSize()):
                return await self._admission.run("edge", session.edge.name, work)
        except OverloadedError as error:
            answer = _rejection(_frame_id(message), pb.Rejection.REASON_OVERLOADED, str(error))
            answer.rejection.retry_after_ms = error.retry_after_s * 1000
            return answer

    def _note(
        self, message: pb.EdgeMessage, result: pb.Result, ledger: PendingMeasurements
    ) -> None:
        """Keep a frame's times until the edge sends its own; store those of a report at once."""
        if message.HasField("frame"):
            ledger.answered(message.frame, result)
        elif message.HasField("report") and message.report.HasField("times"):
            self._keep(lambda: ledger.report(message.report, time.time()), ledger)

    def _keep_detections(self, message: pb.EdgeMessage, edge: Edge) -> None:
        """Keep what an answered Report says was found."""
        report = message.report
        if message.HasField("report") and report.HasField("detections"):
            classes = self._tails.check_report(report.plan_digest)
            found = detections_from_message(report.detections, classes)
            edge.found(ReportedDetections(report.frame_id, report.plan_digest, time.time(), found))
            self._metrics.reported(len(found))

    def _learn(self, message: pb.EdgeMessage, ledger: PendingMeasurements) -> None:
        """Keep the measurements of earlier frames that an edge sends."""
        measured = message.frame.measured if message.HasField("frame") else message.report.measured
        if len(measured) > MAX_MEASUREMENTS:
            raise ProtocolError(
                f"expected at most {MAX_MEASUREMENTS} measurements, got {len(measured)}"
            )
        for each in measured:
            self._keep(partial(ledger.sample, each, time.time()), ledger)

    def _keep(self, make: Callable[[], Sample], ledger: PendingMeasurements) -> None:
        if self._store is None or not ledger.source.device:
            return
        try:
            self._store.add(make())
        except ImpossibleTimesError as error:
            self._store.ignore(ledger.source.edge)
            _LOG.debug("a measurement of %s is ignored: %s", ledger.source.edge, error)

    def serve(
        self, message: pb.EdgeMessage, arrived_s: float, history: ReferenceFrames
    ) -> pb.CloudMessage:
        """Answer one Frame, Report or Probe, in the calling thread; never raises.

        Args:
            message: One of these.
            arrived_s: When it arrived, in seconds of `time.perf_counter`.
            history: Of the stream that it came by.
        """
        kind, frame_id = message.WhichOneof("kind"), _frame_id(message)
        queue_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        try:
            if kind == "frame":
                result = self._finish(message.frame, history)
            elif kind == "report":
                result = self._record(message.report)
            else:
                result = _echo(message.probe)
        except SplitpointError as error:
            reason = _reason(error)
            if reason == pb.Rejection.REASON_INTERNAL:
                _LOG.error("a frame failed: %s", error)
            return _rejection(frame_id, reason, str(error))
        except Exception:  # noqa: BLE001 - whatever a frame does, its stream goes on
            _LOG.exception("a frame failed")
            return _rejection(frame_id, pb.Rejection.REASON_INTERNAL, "see the cloud's log")
        result.frame_id = frame_id
        result.times.queue_us = queue_us
        result.times.arrived_us = round(arrived_s * 1e6)
        result.times.total_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        return pb.CloudMessage(result=result)

    def _finish(self, frame: pb.Frame, history: ReferenceFrames) -> pb.Result:
        runner = self._tails.runner(frame.plan_digest)
        finished = runner.finish(frame, history.find(frame))
        if runner.plan.looks_back:
            history.keep(frame, finished.symbols)
        times = pb.CloudTimes(
            decode_us=microseconds(finished.decode_ms),
            tail_us=microseconds(finished.tail_ms),
            postprocess_us=microseconds(finished.postprocess_ms),
        )
        return pb.Result(detections=detections_to_message(finished.detections), times=times)

    def _record(self, report: pb.Report) -> pb.Result:
        classes = self._tails.check_report(report.plan_digest)
        if report.HasField("detections"):
            detections_from_message(report.detections, classes)
        return pb.Result()

    def _check_hello(self, message: pb.EdgeMessage, certified: str | None = None) -> SampleSource:
        """Check a Hello and return the identity of its edge.

        Args:
            message: Its first.
            certified: The name in its certificate, which then counts.

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

    def _log_connected(self, hello: pb.Hello, edge: Edge) -> None:
        fields = {
            "edge_id": edge.source.edge,
            "bundle": edge.bundle,
            "same_bundle": hello.bundle_digest == self._tails.bundle_digest,
            "version": edge.version,
        }
        log_event("edge-connected", fields)
        if self._edges.has_namesake(edge):
            log_event("edge-name-in-use", {"edge_id": edge.source.edge, "shown_as": edge.name})


class _ByteBudget:
    """A bound on messages that are held in memory."""

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


def _check_name(field: str, name: str, *, least: int = 0) -> None:
    if not least <= len(name) <= MAX_EDGE_ID_CHARACTERS:
        raise ProtocolError(
            f"{field}: expected {least} to {MAX_EDGE_ID_CHARACTERS} characters, got {len(name)}"
        )
    if not name.isprintable():  # it is shown in terminals, and is part of addresses
        raise ProtocolError(f"{field}: expected printable characters, got {name!a}")


def _certificate(context: "Context") -> Mapping[str, object]:
    """TLS properties of the peer; empty without TLS, which gRPC's types leave out."""
    found: Mapping[str, object] | None = context.auth_context()
    return found or {}


def _cancel(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()


def _frame_id(message: pb.EdgeMessage) -> int:
    frame_id: int = getattr(message, message.WhichOneof("kind") or "frame").frame_id
    return frame_id


async def _next(context: "Context") -> pb.EdgeMessage | None:
    """The next message of a stream; None at its end, which gRPC's types leave out.

    Raises:
        ProtocolError: If the bytes are no message at all.
    """
    try:
        message: object = await context.read()
    except TooManyFieldsError as error:
        raise ProtocolError(str(error)) from error
    except DecodeError as error:
        raise ProtocolError("expected an EdgeMessage, got bytes that are none") from error
    return message if isinstance(message, pb.EdgeMessage) else None


def _tells(message: pb.EdgeMessage, edge: Edge) -> bool:
    """Take a message that is not answered; False for one that is.

    Raises:
        ProtocolError: If it is neither, or no edge that means well would have sent it.
    """
    kind = message.WhichOneof("kind")
    if kind in {"frame", "report", "probe"}:
        return False
    if kind == "profile":
        edge.reported(message.profile)
    elif kind == "switch":
        try:
            edge.switched(message.switch)
        except ValueError as error:
            raise ProtocolError(str(error)) from error
        log_event(
            "plan-switched",
            {
                "edge_id": edge.name,
                "plan": message.switch.plan_digest.hex(),
                "reason": " ".join(message.switch.reason.split()),
            },
        )
    else:
        raise ProtocolError(f"expected a Frame or Report, got {kind or 'a message without a kind'}")
    return True


def _echo(probe: pb.Probe) -> pb.Result:
    if len(probe.padding) > MAX_PROBE_BYTES:
        raise PayloadError(f"padding: at most {MAX_PROBE_BYTES} bytes, got {len(probe.padding)}")
    return pb.Result()


def _rejection(frame_id: int, reason: "pb.Rejection.Reason", why: str) -> pb.CloudMessage:
    line = " ".join(why.split())[:300]
    return pb.CloudMessage(rejection=pb.Rejection(frame_id=frame_id, reason=reason, message=line))


def _reason(error: SplitpointError) -> "pb.Rejection.Reason":
    if isinstance(error, UnknownPlanError):
        return pb.Rejection.REASON_UNKNOWN_PLAN
    if isinstance(error, StaleReferenceError):
        return pb.Rejection.REASON_STALE_REFERENCE
    if isinstance(error, PayloadError):
        return pb.Rejection.REASON_BAD_PAYLOAD
    return pb.Rejection.REASON_INTERNAL


async def _abort(context: "Context", code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why)
