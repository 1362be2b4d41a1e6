"""The cloud's metrics: frames, rejections and latencies, for GET /metrics.

    DataPlane -> arrived, answered, rejected -> counters, histograms
    Edges, Store -> read when asked          -> connected edges, their plans, what was ignored

Edges become labels only while they are connected, so that their number is bounded.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric

from cloud.admission import LANES, Admission
from cloud.edges import Edge, Edges
from cloud.store.store import Store
from cloud.streams import REASONS, Streams
from common.bundle.manifest import Plan
from common.http.metrics import STAGE_BUCKETS_S, ScrapedMetrics, Value, counted, gauge, stamp, total
from common.rpc import splitpoint_pb2 as pb
from common.stages import SERVED

_REASONS = {
    number: name.removeprefix("REASON_").lower().replace("_", "-")
    for name, number in pb.Rejection.Reason.items()
    if number != pb.Rejection.REASON_UNSPECIFIED
}


class CloudMetrics:
    """Counts what the service does.

    Args:
        plans: Of the bundle, by digest: other digests become no labels.
        edges: Who is connected.
        store: Where observations are kept.
        streams: Who holds a stream.
        admission: Where calls wait for a worker.

    Attributes:
        registry: Served at /metrics.
    """

    def __init__(
        self,
        plans: Mapping[bytes, Plan],
        edges: Edges | None = None,
        store: Store | None = None,
        *,
        streams: Streams | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._plans = plans
        self._edges = edges
        self._store = store
        self._streams = streams
        self._admission = admission
        self.registry = registry = CollectorRegistry()
        self._frames = Counter(
            "splitpoint_cloud_frames", "Frames answered.", ["plan"], registry=registry
        )
        self._reports = Counter(
            "splitpoint_cloud_reports", "Edge-only frames reported.", ["plan"], registry=registry
        )
        self._rejections = Counter(
            "splitpoint_cloud_rejections", "Messages refused.", ["reason"], registry=registry
        )
        self._bytes = Counter(
            "splitpoint_cloud_uplink_bytes", "Size of frames received.", registry=registry
        )
        self._switches = Counter(
            "splitpoint_cloud_switches", "Plans that edges announced.", registry=registry
        )
        self._detections = Counter(
            "splitpoint_cloud_reported_detections",
            "Detections that edges reported of edge-only frames.",
            registry=registry,
        )
        self._stages = Histogram(
            "splitpoint_cloud_stage_seconds",
            "Observed latency of the stages of answered frames.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._depth = Gauge(
            "splitpoint_cloud_queue_depth", "Messages waiting or being served.", registry=registry
        )
        stamp(self._frames, (plan.name for plan in plans.values() if plan.tail is not None))
        stamp(self._reports, (plan.name for plan in plans.values() if plan.tail is None))
        stamp(self._rejections, _REASONS.values())
        registry.register(ScrapedMetrics(self._read))

    def arrived(self) -> None:
        """Count a message that waits from now on; `left` takes it away again."""
        self._depth.inc()

    def left(self) -> None:
        """Count a message that waits no longer, whatever became of it."""
        self._depth.dec()

    def rejected(self, reason: "pb.Rejection.Reason") -> None:
        """Count a message that was refused."""
        self._rejections.labels(_REASONS.get(reason, "internal")).inc()

    def answered(self, message: pb.EdgeMessage, result: pb.Result) -> None:
        """Count a message with its result."""
        if message.HasField("frame"):
            self._frames.labels(self._name(message.frame.plan_digest)).inc()
            self._bytes.inc(message.ByteSize())
            for stage in SERVED:
                microseconds = getattr(result.times, f"{stage}_us")
                self._stages.labels(stage).observe(microseconds / 1e6)
        elif message.HasField("report"):
            self._reports.labels(self._name(message.report.plan_digest)).inc()

    def reported(self, count: int) -> None:
        """Count the findings of a report."""
        self._detections.inc(count)

    def switched(self) -> None:
        """Count an edge's announcement."""
        self._switches.inc()

    def _name(self, digest: bytes) -> str:
        plan = self._plans.get(digest)
        return "another" if plan is None else plan.name

    def _read(self) -> Iterator[Metric]:
        edges = [] if self._edges is None else self._edges.all()
        yield gauge("splitpoint_cloud_connected_edges", "Edges connected now.", [({}, len(edges))])
        yield gauge(
            "splitpoint_cloud_plan_in_use",
            "1 for the plan that an edge announced last.",
            list(self._in_use(edges)),
        )
        announced = [(edge.name, edge.switch) for edge in edges if edge.switch is not None]
        yield gauge(
            "splitpoint_cloud_link_uplink_bits_per_second",
            "Bandwidth that an edge announced.",
            [({"edge": name}, switch.uplink_bps) for name, switch in announced],
        )
        yield gauge(
            "splitpoint_cloud_link_rtt_seconds",
            "Round trip that an edge announced.",
            [({"edge": name}, switch.rtt_us / 1e6) for name, switch in announced],
        )
        if self._streams is not None:
            yield counted(
                "splitpoint_cloud_ended_streams",
                "Streams that were refused or ended, by why.",
                [({"reason": reason}, self._streams.ended[reason]) for reason in REASONS],
            )
        if self._admission is not None:
            yield gauge(
                "splitpoint_cloud_waiting_calls",
                "Calls that wait for a worker, by who made them.",
                [({"lane": lane}, self._admission.waiting(lane)) for lane in LANES],
            )
            yield counted(
                "splitpoint_cloud_shed_calls",
                "Calls that were turned away, by who made them.",
                [({"lane": lane}, n) for lane, n in self._admission.shed.items()],
            )
            yield counted(
                "splitpoint_cloud_abandoned_calls",
                "Calls that were dropped because their caller had gone.",
                [({"lane": lane}, n) for lane, n in self._admission.abandoned.items()],
            )
        if self._store is not None:
            yield total(
                "splitpoint_cloud_ignored_measurements",
                "Measurements that could not be true.",
                sum(self._store.ignored.values()),
            )
            yield total(
                "splitpoint_cloud_dropped_measurements",
                "Measurements that could not be written.",
                self._store.dropped,
            )

    def _in_use(self, edges: list[Edge]) -> Iterator[Value]:
        for edge in edges:
            if edge.switch is not None:
                plan = self._name(edge.switch.plan_digest)
                yield {"edge": edge.name, "plan": plan}, 1.0
