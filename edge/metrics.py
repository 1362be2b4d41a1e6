"""The edge's metrics for GET /metrics: times of frames, plan in use and link estimate.

Outcome -> served            -> counters, histograms
PlanController, Reporter -> when asked -> plan in use, link estimate, expected latencies
Camera -> when asked          -> frames captured and dropped

Plans are labels by name; their number is the bundle's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric

from common.http.metrics import STAGE_BUCKETS_S, ScrapedMetrics, gauge, stamp, total
from edge.detector import Detector, Outcome
from edge.planning.planner import State


class Counts(Protocol):
    """Frame counters of a camera; see `edge.capture.sources.Camera`."""

    @property
    def captured(self) -> int: ...

    @property
    def dropped(self) -> int: ...

    @property
    def skipped(self) -> int: ...

    @property
    def failures(self) -> int: ...


class EdgeMetrics:
    """Metrics of a detector and its camera.

    Args:
        detector: The opened detector.
        camera: Source of the frames; None if callers send them.

    Attributes:
        registry: Registry that /metrics exposes.
    """

    def __init__(self, detector: Detector, camera: Counts | None = None) -> None:
        self._detector = detector
        self._camera = camera
        self._current = detector.default
        self._age_s: Callable[[], float | None] = lambda: None
        self.registry = registry = CollectorRegistry()
        self._frames = Counter(
            "splitpoint_edge_frames", "Frames with a result.", ["plan"], registry=registry
        )
        self._failures = Counter(
            "splitpoint_edge_failures", "Frames that failed.", ["error"], registry=registry
        )
        self._bytes = Counter("splitpoint_edge_uplink_bytes", "Bytes sent.", registry=registry)
        self._switches = Counter(
            "splitpoint_edge_switches", "Changes of the plan in use.", registry=registry
        )
        self._stages = Histogram(
            "splitpoint_edge_stage_seconds",
            "Time of each stage of a frame.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._latency = Histogram(
            "splitpoint_edge_latency_seconds",
            "Latency from a picture to its result.",
            buckets=STAGE_BUCKETS_S,
            registry=registry,
        )
        self._depth = Gauge("splitpoint_edge_queue_depth", "Frames under way.", registry=registry)
        stamp(self._frames, (plan.name for plan in detector.bundle.plans.values()))
        registry.register(ScrapedMetrics(self._read))

    def watch(self, age_s: Callable[[], float | None]) -> None:
        """Export the age of the frame served last, as `age_s` returns it."""
        self._age_s = age_s

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Count a frame as under way, and as failed if it ends in an error."""
        self._depth.inc()
        try:
            yield
        except Exception as error:
            self._failures.labels(type(error).__name__).inc()
            raise
        finally:
            self._depth.dec()

    def served(self, outcome: Outcome, capture_ms: float) -> None:
        """Count a frame that was served."""
        self._frames.labels(outcome.plan.name).inc()
        self._bytes.inc(outcome.uplink_bytes)
        self._latency.observe(outcome.latency_ms / 1e3)
        for stage, ms in {"capture": capture_ms, **outcome.times_ms}.items():
            self._stages.labels(stage).observe(ms / 1e3)
        current = self._detector.default
        if current != self._current:
            self._current = current
            self._switches.inc()

    def _read(self) -> Iterator[Metric]:
        detector = self._detector
        in_use = detector.bundle.plans[detector.default].name
        yield gauge(
            "splitpoint_edge_plan_in_use", "1 for the plan in use.", [({"plan": in_use}, 1.0)]
        )
        if detector.controller is not None:
            yield from _believed(detector.controller.state())
        if detector.reporter is not None:
            yield total(
                "splitpoint_edge_lost_reports",
                "Reports of edge-only frames that the cloud did not get.",
                detector.reporter.lost,
            )
        if self._camera is not None:
            age_s = self._age_s()
            yield gauge(
                "splitpoint_edge_frame_age_seconds",
                "Age of the frame that was served last.",
                [] if age_s is None else [({}, age_s)],
            )
            yield total(
                "splitpoint_edge_captured_frames", "Frames captured.", self._camera.captured
            )
            yield total(
                "splitpoint_edge_dropped_frames",
                "Frames captured that a newer one replaced.",
                self._camera.dropped,
            )
            yield total(
                "splitpoint_edge_skipped_frames",
                "Pictures and packets that could not be decoded.",
                self._camera.skipped,
            )
            yield total(
                "splitpoint_edge_source_failures",
                "Times that the camera was lost, or could not be opened.",
                self._camera.failures,
            )


def _believed(state: State) -> Iterator[Metric]:
    """Metrics of a planner's state: link estimate and expected latencies."""
    link = state.link
    yield gauge(
        "splitpoint_edge_cloud_away",
        "1 if the cloud was last found unreachable.",
        [({}, float(state.cloud_away))],
    )
    yield gauge(
        "splitpoint_edge_link_uplink_bits_per_second",
        "Estimated bandwidth.",
        [] if link.uplink_bps is None else [({}, link.uplink_bps)],
    )
    yield gauge(
        "splitpoint_edge_link_rtt_seconds",
        "Estimated round trip.",
        [] if link.rtt_ms is None else [({}, link.rtt_ms / 1e3)],
    )
    yield gauge(
        "splitpoint_edge_expected_seconds",
        "Expected latency of every plan.",
        [({"plan": e.cost.plan.name}, e.latency_ms / 1e3) for e in state.expected],
    )
