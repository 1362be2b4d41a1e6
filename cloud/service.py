"""The cloud's end of the stream: greets an edge, then answers each of its frames as it finishes.

    Stream: Hello -> Welcome, then  Frame -> [worker pool: TailRunner] -> Result | Rejection
                                    Switch, ProfileReport -> Edges

Several frames of one stream are served at once and answered as they finish. When an edge has as
many under way as it may, its stream is not read: the pressure reaches the edge through HTTP/2 flow
control and nothing queues without bound. A bad frame costs that frame; only a peer that does not
speak the protocol loses its stream.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import grpc
from google.protobuf.message import DecodeError

from cloud.edges import Edge, Edges
from cloud.history import History
from cloud.metrics import CloudMetrics
from cloud.samples import MAX_MEASUREMENTS, ImpossibleTimesError, Ledger, Sample, Source
from cloud.store import Store
from cloud.tails import Tails
from common.errors import PayloadError, SplitpointError, StaleReferenceError, UnknownPlanError
from common.messages import (
    DIGEST_BYTES,
    MAX_EDGE_ID_CHARACTERS,
    MAX_PROBE_BYTES,
    detections_from_message,
    detections_to_message,
    microseconds,
)
from common.rpc import splitpoint_pb2 as pb
from common.rpc.splitpoint_pb2_grpc import SplitServiceServicer
from common.serving import log_event

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[pb.EdgeMessage, pb.CloudMessage]

_LOG = logging.getLogger("splitpoint.cloud")
_DRAIN_S = 5.0


class ProtocolError(Exception):
    """A peer that does not speak the protocol; the message tells it why."""


class SplitService(SplitServiceServicer):
    """The gRPC service over a bundle's tails.

    Args:
        tails: The opened tails.
        workers: Where tails run; its size is the number of frames served at once, of all edges.
        in_flight: Frames of one edge that may be under way before its stream is no longer read.
        version: The software's version, for the Welcome.
        store: Where what frames took is kept; nowhere, if None.
        edges: Where edges are known while they are connected.
        metrics: Where what it does is counted.
    """

    def __init__(
        self,
        tails: Tails,
        workers: Executor,
        *,
        in_flight: int = 8,
        version: str = "",
        store: Store | None = None,
        edges: Edges | None = None,
        metrics: CloudMetrics | None = None,
    ) -> None:
        self._edges = Edges() if edges is None else edges
        self._metrics = CloudMetrics(tails.bundle.plans) if metrics is None else metrics
        self._tails = tails
        self._workers = workers
        self._in_flight = in_flight
        self._version = version
        self._store = store
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Read no more frames; streams end once the frames under way are answered."""
        self._draining.set()

    async def Stream(  # noqa: N802
        self,
        request_iterator: AsyncIterable[pb.EdgeMessage],  # noqa: ARG002 - read by context.read
        context: "Context",
    ) -> None:
        """Serve one edge until it hangs up, breaks the protocol or the server drains."""
        answers: set[asyncio.Task[None]] = set()
        reading = asyncio.create_task(self._read(context, answers))
        draining = asyncio.create_task(self._draining.wait())
        try:
            await asyncio.wait({reading, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                if answers:
                    await asyncio.wait(answers, timeout=_DRAIN_S)
                await _abort(context, grpc.StatusCode.UNAVAILABLE, "the cloud is shutting down")
            try:
                reading.result()
            except ProtocolError as error:
                await _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
            if answers:
                await asyncio.wait(answers)
        finally:
            for task in (reading, draining, *answers):
                task.cancel()

    async def _read(self, context: "Context", answers: set[asyncio.Task[None]]) -> None:
        hello = await _next(context)
        if hello is None:
            return
        source = self._check_hello(hello)
        writing = asyncio.Lock()

        async def send(message: pb.CloudMessage) -> None:
            async with writing:
                await context.write(message)

        await send(pb.CloudMessage(welcome=await self._welcome(source)))
        bundle, version = hello.hello.bundle_digest.hex(), hello.hello.software_version[:64]
        with self._edges.connected(Edge(source, bundle, version, send)) as edge:
            await self._read_on(context, edge, answers)

    async def _read_on(
        self, context: "Context", edge: Edge, answers: set[asyncio.Task[None]]
    ) -> None:
        ledger, history = Ledger(edge.source), History()
        slots = asyncio.Semaphore(self._in_flight)
        while True:
            await slots.acquire()
            message = await _next(context)
            if message is None:
                return
            arrived_s = time.perf_counter()
            if _tells(message, edge):
                if message.HasField("switch"):
                    self._metrics.switched()
                slots.release()
                continue
            self._learn(message, ledger)
            task = asyncio.create_task(
                self._answer(message, arrived_s, history, ledger, edge, slots)
            )
            answers.add(task)
            task.add_done_callback(answers.discard)

    async def _welcome(self, source: Source) -> pb.Welcome:
        welcome = pb.Welcome(software_version=self._version, plan_digests=self._tails.digests)
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

    async def _answer(
        self,
        message: pb.EdgeMessage,
        arrived_s: float,
        history: History,
        ledger: Ledger,
        edge: Edge,
        slots: asyncio.Semaphore,
    ) -> None:
        self._metrics.arrived()
        try:
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(
                self._workers, self.serve, message, arrived_s, history
            )
            if answer.HasField("result"):
                elapsed_ms = (time.perf_counter() - arrived_s) * 1000
                answer.result.times.total_us = microseconds(elapsed_ms)
                self._note(message, answer.result, ledger)
            self._metrics.answered(message, answer)
            await edge.send(answer)
        except asyncio.InvalidStateError:
            _LOG.debug("an edge left before its answer was ready")
        finally:
            self._metrics.left()
            slots.release()

    def _note(self, message: pb.EdgeMessage, result: pb.Result, ledger: Ledger) -> None:
        """Keep what is known of an answered message: a frame's edge tells its part later."""
        if message.HasField("frame"):
            ledger.answered(message.frame, result)
        elif message.HasField("report") and message.report.HasField("times"):
            self._keep(lambda: ledger.report(message.report, time.time()), ledger)

    def _learn(self, message: pb.EdgeMessage, ledger: Ledger) -> None:
        """Keep what an edge tells of earlier frames."""
        measured = message.frame.measured if message.HasField("frame") else message.report.measured
        if len(measured) > MAX_MEASUREMENTS:
            raise ProtocolError(
                f"expected at most {MAX_MEASUREMENTS} measurements, got {len(measured)}"
            )
        for each in measured:
            self._keep(partial(ledger.sample, each, time.time()), ledger)

    def _keep(self, make: Callable[[], Sample], ledger: Ledger) -> None:
        if self._store is None or not ledger.source.device:
            return
        try:
            self._store.add(make())
        except ImpossibleTimesError as error:
            self._store.ignore(ledger.source.edge)
            _LOG.debug("a measurement of %s is ignored: %s", ledger.source.edge, error)

    def serve(self, message: pb.EdgeMessage, arrived_s: float, history: History) -> pb.CloudMessage:
        """Answer one Frame, Report or Probe, in the calling thread; never raises.

        Args:
            message: One of these.
            arrived_s: When it arrived, in seconds of `time.perf_counter`.
            history: Of the stream that it came by.
        """
        kind = message.WhichOneof("kind")
        frame_id = getattr(message, kind or "frame").frame_id
        queue_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        try:
            if kind == "frame":
                result = self._finish(message.frame, history)
            elif kind == "report":
                result = self._record(message.report)
            else:
                result = _echo(message.probe)
        except SplitpointError as error:
            return _rejection(frame_id, _reason(error), str(error))
        except Exception:  # noqa: BLE001 - whatever a frame does, its stream goes on
            _LOG.exception("a frame failed")
            return _rejection(frame_id, pb.Rejection.REASON_INTERNAL, "see the cloud's log")
        result.frame_id = frame_id
        result.times.queue_us = queue_us
        result.times.arrived_us = round(arrived_s * 1e6)
        result.times.total_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        return pb.CloudMessage(result=result)

    def _finish(self, frame: pb.Frame, history: History) -> pb.Result:
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
        detections_from_message(report.detections, classes)
        return pb.Result()

    def _check_hello(self, message: pb.EdgeMessage) -> Source:
        if message.WhichOneof("kind") != "hello":
            raise ProtocolError(f"expected a Hello first, got {message.WhichOneof('kind')}")
        hello = message.hello
        if not 1 <= len(hello.edge_id) <= MAX_EDGE_ID_CHARACTERS:
            raise ProtocolError(
                f"edge_id: expected 1 to {MAX_EDGE_ID_CHARACTERS} characters, "
                f"got {len(hello.edge_id)}"
            )
        for name in ("device", "runtime"):
            if len(getattr(hello, name)) > MAX_EDGE_ID_CHARACTERS:
                raise ProtocolError(f"{name}: expected at most {MAX_EDGE_ID_CHARACTERS} characters")
        if len(hello.bundle_digest) != DIGEST_BYTES:
            raise ProtocolError(
                f"bundle_digest: expected {DIGEST_BYTES} bytes, got {len(hello.bundle_digest)}"
            )
        # Another bundle is no reason to refuse: plans are matched one by one, by digest.
        log_event(
            "edge-connected",
            {
                "edge_id": hello.edge_id,
                "bundle": hello.bundle_digest.hex(),
                "same_bundle": hello.bundle_digest == self._tails.bundle_digest,
                "version": hello.software_version[:64],
            },
        )
        return Source(hello.edge_id, hello.device, hello.runtime, hello.threads)


async def _next(context: "Context") -> pb.EdgeMessage | None:
    """The next message of a stream; None at its end, which gRPC's types leave out.

    Raises:
        ProtocolError: If the bytes are no message at all.
    """
    try:
        message: object = await context.read()
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
                "edge_id": edge.source.edge,
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
