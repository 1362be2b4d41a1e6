"""The data plane: what every front end of the cloud calls, whatever protocol it speaks.

    EdgeMessage (cloud.sessions) --+                 +-> Admission -> a worker: tails -> results
    image (cloud.rest, ...)      --+--> DataPlane ---+-> reference frames, metrics
                                                     +-> observations -> store

A front end reads a request, calls the data plane, and writes the result or the error in its own
protocol (`cloud.statuses`). Everything that holds for all of them is here: the bounds on what waits
and on the bytes that it holds, how long a call may wait, who is served next, which tail runs, what
is counted and what is kept. All of it lives in the event loop of the server; only the work
itself runs in threads.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cloud.admission import Admission, ByteBudget
from cloud.edges import Edge, EdgeFailedError, Edges, ReportedResult
from cloud.metrics import CloudMetrics
from cloud.profile import rows_of
from cloud.reference_frames import ReferenceFrames, ReferenceMemory
from cloud.statuses import status_of
from cloud.store.samples import ImpossibleTimesError, PendingMeasurements, Sample, SampleSource
from cloud.store.store import Store
from cloud.store.table_pages import Page, read_page
from cloud.tails import Tails
from cloud.whole_images import ImageResult, run_image
from common.errors import CloudUnavailableError, PayloadError, SplitpointError
from common.http.turns import TurnLimits, Turns
from common.imaging.images import DEFAULT_LIMITS, ImageLimits
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import MAX_PROBE_BYTES, microseconds
from common.tables.rows import LatencyRow
from common.tasks.base import ResultSettings
from common.version import __version__

_LOG = logging.getLogger("splitpoint.cloud")
MOST_BYTES = 256 << 20
"""Messages of edges that wait or are served, of all streams."""
_MOST_READERS = 4
"""Calls that may wait to read the store."""


class FrameFailedError(SplitpointError):
    """A message that the cloud itself failed on; the cause is in the cloud's log."""


@dataclass(frozen=True)
class EdgeSession:
    """One connected edge, from its Hello to the end of its stream.

    Attributes:
        edge: The edge.
        pending: Its answered frames whose times it has yet to send.
        references: The frames that its later frames may look back at.
    """

    edge: Edge
    pending: PendingMeasurements
    references: ReferenceFrames


class DataPlane:
    """The cloud's half of every plan, behind one queue.

    Args:
        tails: The opened tails.
        admission: The queue before the workers.
        store: Where observations are kept; nowhere, if None.
        edges: Registry of the edges that are connected.
        metrics: Counters of what is served.
        image_limits: The largest image to accept.
        most_bytes: Bound on messages of edges that wait or are served.

    Attributes:
        tails: The same.
        edges: The same.
        metrics: The same.
        store: The same.
        image_limits: The same.
    """

    def __init__(
        self,
        tails: Tails,
        admission: Admission,
        *,
        store: Store | None = None,
        edges: Edges | None = None,
        metrics: CloudMetrics | None = None,
        image_limits: ImageLimits = DEFAULT_LIMITS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.tails = tails
        self.store = store
        self.edges = Edges() if edges is None else edges
        plans = tails.bundle.plans
        self.metrics = CloudMetrics(plans, self.edges, store) if metrics is None else metrics
        self.image_limits = image_limits
        self._admission = admission
        self._bytes = ByteBudget(most_bytes)
        self._memory = ReferenceMemory()
        # A full store is much to read: one call does, few wait, and none of them holds a thread.
        self._readers = Turns(TurnLimits(at_once=1, waiting=_MOST_READERS))

    def check_image(self, client: str) -> None:
        """Require that an image of a client can be taken on, before its bytes are read.

        Raises:
            OverloadedError: If the queue, or the client's part of it, is full.
            UnknownPlanError: If the bundle has no cloud-only plan.
        """
        self.tails.image_runner()
        self._admission.check("rest", client)

    async def infer(
        self, image: bytes, client: str, settings: ResultSettings | None = None
    ) -> ImageResult:
        """Run the whole network on one encoded image.

        Args:
            image: The encoded image.
            client: Who sends it, such as its address; clients take turns.
            settings: What to report; by the bundle's defaults, if None.

        Raises:
            ImageError: If it is no image, or too large.
            OverloadedError: If there is no room to wait, or the wait took too long.
            UnknownPlanError: If the bundle has no cloud-only plan.
        """
        arrived_s = time.perf_counter()
        work = partial(run_image, self.tails, image, settings, self.image_limits, arrived_s)
        return await self._admission.run("rest", client, work)

    def check_ready(self) -> None:
        """Require that every tail has run once.

        Raises:
            CloudUnavailableError: If one has not.
        """
        if not self.tails.ready:
            raise CloudUnavailableError("the tails are being warmed up")

    def welcome(self, source: SampleSource) -> pb.Welcome:
        """Build the Welcome of an edge: the plans, with what others of its kind observed."""
        welcome = pb.Welcome(software_version=__version__, plan_digests=self.tails.digests)
        if self.store is not None and source.device:
            medians = self.store.plan_medians(source.device, source.runtime, source.threads)
            welcome.learned.extend(
                pb.Learned(
                    plan_digest=bytes.fromhex(each.plan),
                    n=each.n,
                    edge_us=microseconds(each.edge_ms),
                    cloud_us=microseconds(each.cloud_ms),
                    uplink_bytes=round(each.uplink_bytes),
                )
                for each in medians
            )
        return welcome

    @contextmanager
    def session(self, edge: Edge) -> Iterator[EdgeSession]:
        """Hold an edge among the connected ones for as long as the block."""
        references = ReferenceFrames(self._memory)
        try:
            with self.edges.connected(edge):
                yield EdgeSession(edge, PendingMeasurements(edge.source), references)
        finally:
            references.close()

    async def answer(
        self, message: pb.EdgeMessage, arrived_s: float, session: EdgeSession
    ) -> pb.Result:
        """Answer one Frame, Report or Probe, once a worker has time for it.

        Args:
            message: One of these.
            arrived_s: When it arrived, in seconds of `time.perf_counter`.
            session: The edge that sent it.

        Raises:
            FrameFailedError: If the cloud itself failed on it.
            OverloadedError: If there is no room to wait, or the wait took too long.
            PayloadError: If it cannot be decoded.
            StaleReferenceError: If it looks back at a frame that is not remembered.
            UnknownPlanError: If its plan has no tail here.
        """
        work = partial(self.run, message, arrived_s, session.references)
        self.metrics.arrived()
        try:
            with self._bytes.held(message.ByteSize()):
                result = await self._admission.run("edge", session.edge.name, work)
            elapsed_ms = (time.perf_counter() - arrived_s) * 1000
            result.times.total_us = microseconds(elapsed_ms)
            self._observe(message, result, session)
            self._keep_result(message, session.edge)
            self.metrics.answered(message, result)
        except SplitpointError as error:
            self.metrics.rejected(status_of(error).rejection)
            raise
        finally:
            self.metrics.left()
        return result

    def measured(self, measurements: Iterable[pb.Measurement], session: EdgeSession) -> None:
        """Keep the times that an edge sends of earlier frames, where they can be true."""
        for each in measurements:
            self._keep(partial(session.pending.sample, each, time.time()), session.edge.source)

    async def profile(self, edge: str, budget_s: float) -> list[LatencyRow]:
        """Have a connected edge time its plans, and keep the rows that it measured.

        Args:
            edge: Name of the edge.
            budget_s: How long it may take.

        Raises:
            EdgeBusyError: If it is being profiled already.
            EdgeFailedError: If it hangs up, cannot, or sends what cannot be true.
            OverloadedError: If as many edges as may are being profiled.
            StoreError: If the rows cannot be written.
            UnknownEdgeError: If no edge of this name is connected.
        """
        found = self.edges.find(edge)
        report = await found.profile(budget_s)
        try:
            rows = rows_of(report, found.source, self.tails.bundle.plans, time.time())
        except ImpossibleTimesError as error:
            if self.store is not None:
                self.store.ignore(edge)
            raise EdgeFailedError(f"what {edge} answered cannot be true: {error}") from error
        if self.store is not None:
            await asyncio.to_thread(self.store.upsert_profiles, rows)
        return rows

    async def read_tables(self, cursor: str | None, limit: int) -> Page:
        """Read a page of the latency tables; see `cloud.store.table_pages.read_page`.

        Raises:
            OverloadedError: If too many callers wait to read.
            SettingsError: If the cursor is none.
            StoreError: If the store cannot be read.
        """
        if self.store is None:
            return Page((), (), None)
        return await self._readers.run(partial(read_page, self.store, cursor, limit))

    def run(
        self, message: pb.EdgeMessage, arrived_s: float, references: ReferenceFrames
    ) -> pb.Result:
        """Work out the answer to one Frame, Report or Probe, in the calling thread.

        Args:
            message: One of these.
            arrived_s: When it arrived, in seconds of `time.perf_counter`.
            references: Frames of its stream that it may look back at.

        Raises:
            SplitpointError: As `answer`.
        """
        queue_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        try:
            result = self._dispatch(message, references)
        except SplitpointError as error:
            if status_of(error).rejection == pb.Rejection.REASON_INTERNAL:
                _LOG.error("a frame failed: %s", error)
            raise
        except Exception as error:
            _LOG.exception("a frame failed")
            raise FrameFailedError("see the cloud's log") from error
        result.frame_id = frame_id(message)
        result.times.queue_us = queue_us
        result.times.arrived_us = round(arrived_s * 1e6)
        result.times.total_us = microseconds((time.perf_counter() - arrived_s) * 1000)
        return result

    def _dispatch(self, message: pb.EdgeMessage, references: ReferenceFrames) -> pb.Result:
        kind = message.WhichOneof("kind")
        if kind == "frame":
            return self._finish(message.frame, references)
        if kind == "report":
            return self._check_report(message.report)
        return _echo(message.probe)

    def _finish(self, frame: pb.Frame, references: ReferenceFrames) -> pb.Result:
        runner = self.tails.runner(frame.plan_digest)
        finished = runner.finish(frame, references.find(frame))
        if runner.plan.looks_back:
            references.keep(frame, finished.symbols)
        times = pb.CloudTimes(
            decode_us=microseconds(finished.decode_ms),
            tail_us=microseconds(finished.tail_ms),
            postprocess_us=microseconds(finished.postprocess_ms),
        )
        result = pb.Result(times=times)
        finished.result.write(result)
        return result

    def _check_report(self, report: pb.Report) -> pb.Result:
        self.tails.check_report(report.plan_digest)
        if report.WhichOneof("outcome") is not None:
            self.tails.task.read(report)
        return pb.Result()

    def _observe(self, message: pb.EdgeMessage, result: pb.Result, session: EdgeSession) -> None:
        """Keep a frame's times until the edge sends its own; store those of a report at once."""
        if message.HasField("frame"):
            session.pending.answered(message.frame, result)
        elif message.HasField("report") and message.report.HasField("times"):
            sample = partial(session.pending.report, message.report, time.time())
            self._keep(sample, session.edge.source)

    def _keep_result(self, message: pb.EdgeMessage, edge: Edge) -> None:
        """Keep the result of an answered Report."""
        report = message.report
        if message.HasField("report") and report.WhichOneof("outcome") is not None:
            found = self.tails.task.read(report)
            edge.found(ReportedResult(report.frame_id, report.plan_digest, time.time(), found))
            self.metrics.reported(len(found))

    def _keep(self, make: Callable[[], Sample], source: SampleSource) -> None:
        if self.store is None or not source.device:
            return
        try:
            self.store.add(make())
        except ImpossibleTimesError as error:
            self.store.ignore(source.edge)
            _LOG.debug("a measurement of %s is ignored: %s", source.edge, error)


def frame_id(message: pb.EdgeMessage) -> int:
    """Return the frame_id of a Frame, Report or Probe."""
    found: int = getattr(message, message.WhichOneof("kind") or "frame").frame_id
    return found


def _echo(probe: pb.Probe) -> pb.Result:
    if len(probe.padding) > MAX_PROBE_BYTES:
        raise PayloadError(f"padding: at most {MAX_PROBE_BYTES} bytes, got {len(probe.padding)}")
    return pb.Result()
