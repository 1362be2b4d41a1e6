"""Link estimate of the edge: bandwidth and round trip, from the messages that it sends anyway.

    sent (edge's clock), arrived (cloud's clock), bytes  ->  transfer time  ->  log bandwidth

No clocks are synchronised. Arrival minus departure of a small message is the one-way delay plus the
offset between the two clocks; the median of recent ones is the floor, and the delay of a frame
beyond the floor is its transfer time. A frame that queued behind another one begins when that one
had arrived. The burst that may leave at once after a pause (a token bucket's) is estimated from
messages of different sizes that were sent at about the same time; otherwise the predictions for
large frames, extrapolated from small ones, would be much too fast.

The bandwidth is filtered in the log domain by a scalar Kalman filter. Its measurement noise grows
as transfer times shrink towards the jitter of small messages, which is large where the edge itself
is slow to send. Two outliers in a row on the same side are a change of the link and not noise: the
filter restarts from them. A transfer so short that not even the jitter could explain it at the
estimated bandwidth is an outlier, too, or small probes would never detect a faster link.
"""

import math
import statistics
import threading
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from common.link.link import Link

_FLOOR_WINDOW_S = 20.0
SMALL_BYTES = 600
"""Largest message whose transfer time is negligible on any link worth splitting over."""
_LEAST_MEASURED_BYTES = 800.0
_MOST_BURST_BYTES = 16_384.0
_PAIR_S = 3.0
_PAIR_RATIO = 1.6
_LEAST_JITTER_MS = 0.6
_DEVIATION = 1.4826
"""Ratio of a normal distribution's standard deviation to its median absolute deviation."""
_NOISE = 0.08
_DRIFT_PER_S = 0.15
_SURPRISE = 2.5
_LEAST_SURPRISE = 0.2
_SURE = 2.0
"""Jitter standard deviations by which a transfer may at most be longer than measured."""
_MAX_BPS, _MIN_BPS = 1e9, 1e3


class Transit(NamedTuple):
    """Timestamps of one message and its answer, and the message's size.

    Attributes:
        sent_s: When it was handed over, by the edge's monotonic clock.
        arrived_s: When it arrived, by the cloud's.
        left_s: When its answer left, by the cloud's.
        received_s: When the answer was read, by the edge's.
        size_bytes: Of the message.
        gone_s: When it was actually sent, by the edge's clock; None if as soon as it was handed
            over. On a busy edge, messages may wait between threads for longer than a link takes.
    """

    sent_s: float
    arrived_s: float
    left_s: float
    received_s: float
    size_bytes: int
    gone_s: float | None = None


@dataclass(frozen=True)
class Passage:
    """Uplink and downlink time of a message, in ms; their sum is the link's share of the RTT."""

    uplink_ms: float
    downlink_ms: float


@dataclass(frozen=True)
class Estimate:
    """Estimate of the link at one moment.

    Attributes:
        uplink_bps: Bandwidth; None while nothing was measured.
        rtt_ms: Round trip of a small message; None while nothing was measured.
        burst_bytes: Bytes of a message that take no transfer time after a pause.
        spread: Standard deviation of the logarithm of the bandwidth.
        age_s: Time since the bandwidth was last measured.
        changes: Number of sudden changes of the link.
        unsettled: Whether the last message was an outlier that the next one confirms or not.
        jitter_ms: Standard deviation of the one-way delay of small messages: only a longer transfer
            carries information about the bandwidth.
    """

    uplink_bps: float | None
    rtt_ms: float | None
    burst_bytes: float
    spread: float
    age_s: float
    changes: int
    unsettled: bool
    jitter_ms: float = 0.0

    def uplink_ms(self, size_bytes: float, expected: Link) -> float:
        """Transfer time of a message's bytes, beyond the round trip of a small message.

        Args:
            size_bytes: Of the message.
            expected: Link to assume while nothing was measured.
        """
        bps = expected.uplink_bps if self.uplink_bps is None else self.uplink_bps
        return max(0.0, size_bytes - self.burst_bytes) * 8e3 / bps


class LinkEstimator:
    """Estimates the link from the transits of one stream after the other. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ups: deque[tuple[float, float]] = deque()
        self._trips: deque[tuple[float, float]] = deque()
        self._last_arrived_s = -math.inf
        self._log_bps: float | None = None
        self._variance = 0.0
        self._measured_s = -math.inf
        self._surprises: list[float] = []
        self._bursts: deque[float] = deque(maxlen=25)
        self._previous: tuple[float, int, float] | None = None
        self._changes = 0
        self._version = 0

    @property
    def version(self) -> int:
        """Version of the estimate: a counter that grows with every update."""
        return self._version

    def estimate(self, now_s: float) -> Estimate:
        """Return the current estimate."""
        with self._lock:
            bps = None if self._log_bps is None else math.exp(self._log_bps)
            age_s = max(0.0, now_s - self._measured_s)
            grown = self._variance + _DRIFT_PER_S**2 * min(age_s, 60.0) if bps else 0.0
            return Estimate(
                uplink_bps=bps,
                rtt_ms=_median(self._trips),
                burst_bytes=self._burst_bytes,
                spread=math.sqrt(grown),
                age_s=age_s,
                changes=self._changes,
                unsettled=bool(self._surprises),
                jitter_ms=self._jitter_ms,
            )

    def reconnected(self) -> None:
        """Drop the clock offsets of the last stream, but keep the bandwidth estimate."""
        with self._lock:
            self._version += 1
            self._ups.clear()
            self._trips.clear()
            self._last_arrived_s = -math.inf
            self._previous = None

    def passed(self, transit: Transit) -> Passage:
        """Update from a message that was answered; returns its uplink and downlink time."""
        with self._lock:
            self._version += 1
            return self._passed(transit)

    def overdue(self, now_s: float, size_bytes: int, waited_ms: float) -> None:
        """Lower the estimate by a message that is still on its way, which bounds the bandwidth."""
        most = math.log(max(_MIN_BPS, size_bytes * 8e3 / max(waited_ms, 1.0)))
        with self._lock:
            self._version += 1
            if self._log_bps is None or most < self._log_bps:
                self._restart(now_s, most)

    @property
    def _burst_bytes(self) -> float:
        """Median estimate of the burst that may leave at once after a pause."""
        return statistics.median(self._bursts) if self._bursts else 0.0

    @property
    def _jitter_ms(self) -> float:
        """Robust standard deviation of the one-way delay of small messages."""
        floor_ms = _median(self._ups)
        if floor_ms is None:
            return _LEAST_JITTER_MS
        off_ms = statistics.median(abs(up_ms - floor_ms) for _, up_ms in self._ups)
        return max(_LEAST_JITTER_MS, _DEVIATION * off_ms)

    def _passed(self, transit: Transit) -> Passage:
        now_s = transit.received_s
        gone_s = transit.sent_s if transit.gone_s is None else transit.gone_s
        up_ms = (transit.arrived_s - gone_s) * 1e3
        trip_ms = (transit.received_s - transit.sent_s) * 1e3
        trip_ms = max(0.0, trip_ms - (transit.left_s - transit.arrived_s) * 1e3)
        _forget(self._ups, now_s)
        _forget(self._trips, now_s)
        if transit.size_bytes <= SMALL_BYTES:
            self._ups.append((now_s, up_ms))
            self._trips.append((now_s, trip_ms))
        floor_ms, rtt_ms = _median(self._ups), _median(self._trips)
        if floor_ms is None or rtt_ms is None:
            return Passage(trip_ms, 0.0)  # no small message yet: all of it may be the uplink
        before_s, self._last_arrived_s = self._last_arrived_s, transit.arrived_s
        in_order = transit.arrived_s >= before_s
        if transit.size_bytes > SMALL_BYTES and in_order:
            queued_ms = max(0.0, (before_s - gone_s) * 1e3 - floor_ms)
            transfer_ms = max(0.0, up_ms - floor_ms - queued_ms)
            self._transferred(now_s, transit.size_bytes, transfer_ms, queued=queued_ms > 0)
        uplink_ms = min(trip_ms, max(0.0, rtt_ms / 2 + up_ms - floor_ms))
        return Passage(uplink_ms, trip_ms - uplink_ms)

    def _transferred(
        self, now_s: float, size_bytes: int, transfer_ms: float, *, queued: bool
    ) -> None:
        if not queued and self._pair(now_s, size_bytes, transfer_ms) and len(self._bursts) == 1:
            self._log_bps = None  # earlier measurements had counted the burst as transferred
        charged = size_bytes - (0.0 if queued else self._burst_bytes)
        if charged < _LEAST_MEASURED_BYTES:
            return
        jitter_ms = self._jitter_ms
        # A transfer within the jitter is only a lower bound of the bandwidth.
        log_bps = math.log(charged * 8e3 / max(transfer_ms, jitter_ms))
        log_bps = min(max(log_bps, math.log(_MIN_BPS)), math.log(_MAX_BPS))
        noise = _NOISE**2 + (jitter_ms / max(transfer_ms, jitter_ms)) ** 2
        least = math.log(charged * 8e3 / (transfer_ms + _SURE * jitter_ms))
        self._filter(now_s, log_bps, noise, least)

    def _filter(self, now_s: float, log_bps: float, noise: float, least: float) -> None:
        if self._log_bps is None:
            self._log_bps, self._variance, self._measured_s = log_bps, noise, now_s
            return
        self._variance += _DRIFT_PER_S**2 * min(max(0.0, now_s - self._measured_s), 60.0)
        self._measured_s = now_s
        off = log_bps - self._log_bps
        is_faster = least - self._log_bps > _LEAST_SURPRISE  # by how much may be uncertain
        if is_faster or abs(off) > max(
            _LEAST_SURPRISE, _SURPRISE * math.sqrt(self._variance + noise)
        ):
            if self._surprises and self._surprises[-1] * off < 0:
                self._surprises.clear()
            self._surprises.append(off)
            if len(self._surprises) >= 2:
                self._changes += 1
                self._restart(now_s, log_bps, noise)
            return
        self._surprises.clear()
        gain = self._variance / (self._variance + noise)
        self._log_bps += gain * off
        self._variance *= 1 - gain

    def _restart(self, now_s: float, log_bps: float, noise: float = _NOISE**2) -> None:
        self._log_bps, self._variance, self._measured_s = log_bps, noise, now_s
        self._surprises.clear()

    def _pair(self, now_s: float, size_bytes: int, transfer_ms: float) -> bool:
        """Estimate the burst from two messages of different sizes, one soon after the other."""
        previous, self._previous = self._previous, (now_s, size_bytes, transfer_ms)
        if previous is None or now_s - previous[0] > _PAIR_S:
            return False
        (small, small_ms), (large, large_ms) = sorted(
            [(previous[1], previous[2]), (size_bytes, transfer_ms)]
        )
        grown_ms = large_ms - small_ms
        if large < _PAIR_RATIO * small or grown_ms < 2 * self._jitter_ms:
            return False
        burst = small - small_ms * (large - small) / grown_ms
        if not -small <= burst <= _MOST_BURST_BYTES:
            return False  # the link changed between the two
        self._bursts.append(max(0.0, burst))
        return True


def _median(values: deque[tuple[float, float]]) -> float | None:
    return statistics.median(value for _, value in values) if values else None


def _forget(values: deque[tuple[float, float]], now_s: float) -> None:
    """Drop old values, but never the last one."""
    while len(values) > 1 and now_s - values[0][0] > _FLOOR_WINDOW_S:
        values.popleft()
