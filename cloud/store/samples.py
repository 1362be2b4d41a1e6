"""Samples: observed latencies of served frames, accepted only where they can be true.

    edge's Measurement + the cloud's own times of that frame --sample_of--> Sample --> store

No clocks are compared: the link's share is the edge's round trip less the cloud's total, and the
edge says how much of it was the way up. An edge may be wrong (its clock may step) or lie; a
measurement that contradicts itself, or the cloud's own, is counted and thrown away, and whatever an
edge says is kept under its own name only.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass

from common.rpc import splitpoint_pb2 as pb
from common.stages import OBSERVED

LONGEST_US = 600_000_000
"""Longest duration of a stage that is accepted."""

_REMEMBERED = 64
_SLACK_US = 2_000
"""Times are rounded, and threads are switched between two readings of a clock."""
_FASTEST_BPS = 1e12


@dataclass(frozen=True)
class SampleSource:
    """Edge, device and runtime that measured a sample.

    Attributes:
        edge: The edge's name.
        device: What it is.
        runtime: What its heads run in.
        threads: Threads within one run of a head; 0 if it does not say.
    """

    edge: str
    device: str
    runtime: str
    threads: int = 0


@dataclass(frozen=True)
class Sample:
    """One served frame.

    Attributes:
        source: Who measured.
        plan: Digest of the plan, in hex.
        at_s: When it was received, in seconds since the epoch by the cloud's clock.
        uplink_bytes: Size of the Frame message; 0 for edge-only.
        stages_ms: Milliseconds by stage, of `OBSERVED`; those that the plan lacks are left out.
        uplink_bps: The uplink as the edge estimated it before this frame; None without one.
        rtt_ms: The round trip of a small message, likewise.
    """

    source: SampleSource
    plan: str
    at_s: float
    uplink_bytes: int
    stages_ms: dict[str, float]
    uplink_bps: float | None = None
    rtt_ms: float | None = None


class ImpossibleTimesError(ValueError):
    """Times that cannot be true."""


@dataclass(frozen=True)
class _Served:
    plan: str
    uplink_bytes: int
    times: pb.CloudTimes


class PendingMeasurements:
    """Answered frames of one stream whose measurements the edge has yet to send.

    Args:
        source: Who sends them.
    """

    def __init__(self, source: SampleSource) -> None:
        self.source = source
        self._served: OrderedDict[int, _Served] = OrderedDict()

    def answered(self, frame: pb.Frame, result: pb.Result) -> None:
        """Remember a frame that was answered; the oldest is forgotten."""
        size = frame.ByteSize()
        self._served[frame.frame_id] = _Served(frame.plan_digest.hex(), size, result.times)
        while len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)

    def sample(self, measurement: pb.Measurement, now_s: float) -> Sample:
        """Build the Sample of a frame from both ends' times; each frame is measured once.

        Raises:
            ImpossibleTimesError: If no such frame was answered here, or the times cannot be true.
        """
        served = self._served.pop(measurement.frame_id, None)
        if served is None:
            raise ImpossibleTimesError(f"frame {measurement.frame_id} is not waited for")
        edge, cloud = measurement.times, served.times
        if edge.round_trip_us + _SLACK_US < cloud.total_us:
            raise ImpossibleTimesError("a round trip shorter than the cloud's part of it")
        link_us = max(0, edge.round_trip_us - cloud.total_us)
        uplink_us = _uplink_us(edge, link_us)
        stages = {
            "uplink": uplink_us / 1e3,
            "queue": cloud.queue_us / 1e3,
            "decode": cloud.decode_us / 1e3,
            "tail": cloud.tail_us / 1e3,
            "postprocess": cloud.postprocess_us / 1e3,
            "downlink": (link_us - uplink_us) / 1e3,
        }
        on_edge = _checked(edge, edge.round_trip_us)
        return _sample(self.source, served.plan, now_s, served.uplink_bytes, edge, on_edge | stages)

    def report(self, report: pb.Report, now_s: float) -> Sample:
        """Build the Sample of an edge-only frame.

        Raises:
            ImpossibleTimesError: If its times cannot be true.
        """
        on_edge = _checked(report.times, 0)
        _uplink_us(report.times, 0)
        on_edge["postprocess"] = report.times.postprocess_us / 1e3
        digest = report.plan_digest.hex()
        return _sample(self.source, digest, now_s, 0, report.times, on_edge)


def _uplink_us(edge: pb.EdgeTimes, link_us: int) -> int:
    """Time of the uplink; of the whole link where the edge does not separate it."""
    if edge.uplink_us > link_us + _SLACK_US:
        raise ImpossibleTimesError(f"{edge.uplink_us} us up a link that took {link_us} us")
    return min(edge.uplink_us, link_us) or link_us


def _checked(edge: pb.EdgeTimes, round_trip_us: int) -> dict[str, float]:
    parts = {
        "capture": edge.capture_us,
        "preprocess": edge.preprocess_us,
        "head": edge.head_us,
        "encode": edge.encode_us,
    }
    longest = max(*parts.values(), round_trip_us, edge.postprocess_us, edge.total_us, edge.rtt_us)
    if longest > LONGEST_US:
        raise ImpossibleTimesError(f"{longest / 1e6:.0f} s, more than {LONGEST_US / 1e6:.0f}")
    if edge.total_us == 0:
        raise ImpossibleTimesError("a frame that took no time")
    if not (math.isfinite(edge.uplink_bps) and 0 <= edge.uplink_bps <= _FASTEST_BPS):
        raise ImpossibleTimesError(f"an uplink of {edge.uplink_bps} bit/s")
    within = sum(parts.values()) - edge.capture_us + round_trip_us + edge.postprocess_us
    if within > edge.total_us + _SLACK_US:
        raise ImpossibleTimesError(f"stages of {within} us in a total of {edge.total_us} us")
    return {stage: us / 1e3 for stage, us in parts.items()}


def _sample(
    source: SampleSource,
    plan: str,
    now_s: float,
    uplink_bytes: int,
    edge: pb.EdgeTimes,
    stages_ms: dict[str, float],
) -> Sample:
    total_ms = edge.total_us / 1e3
    known = sum(stages_ms.values()) - stages_ms["capture"]
    stages = stages_ms | {"other": max(0.0, total_ms - known), "total": total_ms}
    ordered = {stage: stages[stage] for stage in OBSERVED if stage in stages}
    return Sample(
        source=source,
        plan=plan,
        at_s=now_s,
        uplink_bytes=uplink_bytes,
        stages_ms=ordered,
        uplink_bps=edge.uplink_bps or None,
        rtt_ms=edge.rtt_us / 1e3 or None,
    )
