"""Samples: what served frames really took, believed only where it can be true.

    edge's Measurement + the cloud's own times of that frame --sample_of--> Sample --> store

No clocks are compared: the link's share is the edge's round trip less the cloud's total. An edge
may be wrong (its clock may step) or lie; a measurement that contradicts itself, or the cloud's own,
is counted and thrown away, and whatever an edge says is kept under its own name only.
"""

from collections import OrderedDict
from dataclasses import dataclass

from common.rpc import splitpoint_pb2 as pb

STAGES = (
    "capture",
    "preprocess",
    "head",
    "encode",
    "link",
    "queue",
    "decode",
    "tail",
    "postprocess",
    "other",
    "total",
)
"""In the order of the path; `other` is hand-overs between threads, `total` leaves capture out."""

MAX_MEASUREMENTS = 16
"""Of one message."""

_REMEMBERED = 64
_LONGEST_US = 600_000_000
_SLACK_US = 2_000
"""Times are rounded, and threads are switched between two readings of a clock."""


@dataclass(frozen=True)
class Source:
    """Who measured: the edge's name, what it is, and what its heads run in."""

    edge: str
    device: str
    runtime: str


@dataclass(frozen=True)
class Sample:
    """One served frame.

    Attributes:
        source: Who measured.
        plan: Digest of the plan, in hex.
        at_s: When it was learnt, in seconds since the epoch by the cloud's clock.
        uplink_bytes: Size of the Frame message; 0 for edge-only.
        stages_ms: Milliseconds by stage, of `STAGES`; those that the plan lacks are left out.
    """

    source: Source
    plan: str
    at_s: float
    uplink_bytes: int
    stages_ms: dict[str, float]


class ImpossibleTimesError(ValueError):
    """Times that cannot be true."""


@dataclass(frozen=True)
class _Served:
    plan: str
    uplink_bytes: int
    times: pb.CloudTimes


class Ledger:
    """The frames of one stream that the edge has yet to tell about.

    Args:
        source: Who sends them.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self._served: OrderedDict[int, _Served] = OrderedDict()

    def answered(self, frame: pb.Frame, result: pb.Result) -> None:
        """Remember a frame that was answered; the oldest is forgotten."""
        size = frame.ByteSize()
        self._served[frame.frame_id] = _Served(frame.plan_digest.hex(), size, result.times)
        while len(self._served) > _REMEMBERED:
            self._served.popitem(last=False)

    def sample(self, measurement: pb.Measurement, now_s: float) -> Sample:
        """What a frame took, from both ends; each frame can be told about once.

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
        stages = {
            "link": link_us / 1e3,
            "queue": cloud.queue_us / 1e3,
            "decode": cloud.decode_us / 1e3,
            "tail": cloud.tail_us / 1e3,
            "postprocess": cloud.postprocess_us / 1e3,
        }
        on_edge = _checked(edge, edge.round_trip_us)
        return _sample(self.source, served.plan, now_s, served.uplink_bytes, edge, on_edge | stages)

    def report(self, report: pb.Report, now_s: float) -> Sample:
        """What an edge-only frame took.

        Raises:
            ImpossibleTimesError: If its times cannot be true.
        """
        on_edge = _checked(report.times, 0)
        on_edge["postprocess"] = report.times.postprocess_us / 1e3
        digest = report.plan_digest.hex()
        return _sample(self.source, digest, now_s, 0, report.times, on_edge)


def _checked(edge: pb.EdgeTimes, round_trip_us: int) -> dict[str, float]:
    parts = {
        "capture": edge.capture_us,
        "preprocess": edge.preprocess_us,
        "head": edge.head_us,
        "encode": edge.encode_us,
    }
    longest = max(*parts.values(), round_trip_us, edge.postprocess_us, edge.total_us)
    if longest > _LONGEST_US:
        raise ImpossibleTimesError(f"{longest / 1e6:.0f} s, more than {_LONGEST_US / 1e6:.0f}")
    if edge.total_us == 0:
        raise ImpossibleTimesError("a frame that took no time")
    within = sum(parts.values()) - edge.capture_us + round_trip_us + edge.postprocess_us
    if within > edge.total_us + _SLACK_US:
        raise ImpossibleTimesError(f"stages of {within} us in a total of {edge.total_us} us")
    return {stage: us / 1e3 for stage, us in parts.items()}


def _sample(
    source: Source,
    plan: str,
    now_s: float,
    uplink_bytes: int,
    edge: pb.EdgeTimes,
    stages_ms: dict[str, float],
) -> Sample:
    total_ms = edge.total_us / 1e3
    known = sum(stages_ms.values()) - stages_ms["capture"]
    stages = stages_ms | {"other": max(0.0, total_ms - known), "total": total_ms}
    ordered = {stage: stages[stage] for stage in STAGES if stage in stages}
    return Sample(source, plan, now_s, uplink_bytes, ordered)
