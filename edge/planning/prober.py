"""Probes: keep the link estimate fresh while no frames measure the link.

    nothing measured yet   pings, then two sizes one after the other: floor, bandwidth, burst
    bandwidth is stale     one probe, sized to take about 20 ms; if it is an outlier, another one
                           to confirm it
    floor is stale         one ping
    cloud unreachable      a ping a second, each by a new stream; fewer while it reports overload

Nothing is sent while no frames come, nor when no bandwidth could change the choice of a plan, be it
the fastest one or the most accurate within a deadline. When frames come again after a pause, no
probe competes with the first ones: they may measure the link themselves. Nor does a probe compete
with a frame that is being served: it waits until the frame is answered, or takes longer than 0.8 s.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from common.errors import CloudOverloadedError, SplitpointError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import MAX_PROBE_BYTES
from edge.link.estimate import Estimate
from edge.planning.planner import Planner
from edge.stream.client import CloudClient, NoAnswerError

_LOG = logging.getLogger("splitpoint.edge")

PINGS = 3
CALIBRATION_BYTES = (3000, 9000)
"""Probe sizes: within TCP's initial window, and beyond the burst of a usual token bucket."""

_ACTIVE_S = 3.0
_PING_S = 5.0
_STALE_S, _DEFERRAL_S = 0.5, 0.8
"""Age at which a bandwidth is stale, and how long a probe waits for a frame being served."""
_AWAY_S = 1.0
_TIMEOUT_S = 2.0
_SETTLE_S = 0.1
_PROBE_S, _PROBE_JITTERS = 0.02, 3.0
"""Target probe duration: 20 ms, or 3 jitter standard deviations if that is more."""
_MOST_SHARE, _MOST_OWED = 0.05, 2.0
_LEAST_BYTES = 3000
_MOST_BYTES = 24_000
_LARGE_EVERY = 4
"""Every fourth probe is a large one, which uses up the probes' share of the link for longer."""


class Prober:
    """Sends pings and probes from a thread of its own.

    Args:
        client: Client of the cloud.
        planner: Planner that decides whether probes are useful and gets their results.
        clock: Seconds of a monotonic clock.
    """

    def __init__(
        self,
        client: CloudClient,
        planner: Planner,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._client = client
        self._planner = planner
        self._clock = clock
        self._wake = threading.Condition()
        self._active_s = self._began_s = self._pinged_s = self._probed_s = -float("inf")
        self._failed_s = self._serving_s = -float("inf")
        self._stream: object = None
        self._held = False
        self._turn = 0
        self._settling = False
        self._spent_bytes = 0
        self._closed = False
        self._thread: threading.Thread | None = None
        self._calibrating = threading.Lock()

    def frame(self) -> None:
        """Signal that a frame is being served: probes are useful, but wait for its answer."""
        with self._wake:
            now_s = self._clock()
            idle = now_s - self._active_s > _ACTIVE_S
            self._began_s = now_s if idle else self._began_s
            self._active_s = self._serving_s = now_s
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._work, name="prober", daemon=True)
                self._thread.start()
            elif idle:
                self._held = True  # the thread sleeps: `rest` wakes it, once the edge is idle

    def rest(self) -> None:
        """Signal that the frame was answered or has failed."""
        self._serving_s = -float("inf")
        if self._held:
            with self._wake:
                self._wake.notify_all()

    def doubt(self) -> None:
        """Ping the cloud at once: a frame timed out before its answer came."""
        with self._wake:
            self._probed_s = -float("inf")
            self._wake.notify_all()

    def calibrate(self) -> None:
        """Measure the link of a new stream now; does nothing for a stream already measured.

        Raises:
            CloudUnavailableError: If the cloud does not answer.
        """
        self._client.connect()  # first, and outside the lock: all callers share one attempt
        with self._calibrating:
            stream = self._client.stream
            if stream is not None and stream is self._stream:
                return
            for _ in range(PINGS):
                self._ping()
            for size in CALIBRATION_BYTES:
                self._probe(size)
            self._stream = self._client.stream

    def close(self) -> None:
        """Send nothing more."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def due(self, now_s: float) -> tuple[float, Callable[[], None] | None]:
        """Return the seconds to wait, and the ping or probe to send then.

        An infinite wait lasts until the next frame.
        """
        if now_s - self._active_s > _ACTIVE_S:
            return float("inf"), None
        if self._planner.cloud_away:
            at_s = max(self._probed_s + _AWAY_S, self._client.quiet_until_s)
            return max(0.0, at_s - now_s), self._look_for_cloud
        if self._client.stream is None or self._client.stream is not self._stream:
            return max(0.0, self._failed_s + _AWAY_S - now_s), self.calibrate
        waits: list[tuple[float, Callable[[], None]]] = [
            (self._pinged_s + _PING_S - now_s, self._ping)
        ]
        if self._planner.wants_probe(now_s):
            link = self._client.link.estimate(now_s)
            # Only one probe confirms an outlier; a link of many outliers would be filled otherwise.
            soon = link.unsettled and not self._settling
            size = self._size(link, soon=soon)
            # Bytes spent while the link was faster count only in part on a slow one.
            owed_bytes = min(self._spent_bytes, _MOST_OWED * size)
            pause_s = owed_bytes * 8 / (_MOST_SHARE * (link.uplink_bps or 1e6))
            known_s = max(now_s - link.age_s, self._began_s)
            stale_s = max(known_s + _STALE_S, self._probed_s + pause_s) - now_s
            if soon:
                stale_s = self._probed_s + _SETTLE_S - now_s
            waits.append((stale_s, lambda: self._look(size, soon=soon)))
        wait_s, act = min(waits, key=lambda each: each[0])
        free_s = self._serving_s + _DEFERRAL_S - now_s
        self._held = max(0.0, wait_s) < free_s
        return max(0.0, wait_s, free_s), act

    def act(self, what: Callable[[], None]) -> None:
        """Send the ping or probe of `due`; if that fails, mark the cloud as unreachable."""
        try:
            what()
        except SplitpointError as error:
            _LOG.debug("a probe failed: %s", error)
            self._planner.lost()
            self._failed_s = self._pinged_s = self._probed_s = self._clock()

    def _work(self) -> None:
        while True:
            with self._wake:
                wait_s, act = self.due(self._clock())
                if wait_s > 0 and not self._closed:
                    # Conditions may change meanwhile: check again after 0.8 s at the latest.
                    self._wake.wait(None if act is None else min(wait_s, _DEFERRAL_S))
                    continue
                if self._closed:
                    return
            if act is not None:
                self.act(act)

    def _look_for_cloud(self) -> None:
        self._probed_s = self._clock()
        try:
            self._ping()
        except CloudOverloadedError:
            raise
        except SplitpointError:
            self._client.reset()  # a silent stream may stay silent for long: open another
            raise

    def _ping(self) -> None:
        self._ask(b"")
        self._pinged_s = self._clock()

    def _look(self, size_bytes: int, *, soon: bool) -> None:
        self._settling = soon
        self._spent_bytes = size_bytes + (self._spent_bytes if soon else 0)
        self._probe(size_bytes)

    def _probe(self, size_bytes: int) -> None:
        self._turn += 1
        self._probed_s = self._clock()
        try:
            self._ask(os.urandom(size_bytes))
        except NoAnswerError:
            if self._client.stream is None:
                raise
            # It may still be on its way: lower the bandwidth, and send a ping to check the cloud.
            now_s = self._clock()
            self._client.link.overdue(now_s, size_bytes, (now_s - self._probed_s) * 1e3)
            self._pinged_s = -float("inf")

    def _ask(self, padding: bytes) -> None:
        answer = self._client.request(pb.Probe(padding=padding), _TIMEOUT_S)
        self._planner.probed(answer.result.times.queue_us / 1e3)

    def _size(self, link: Estimate, *, soon: bool) -> int:
        """Size of the next probe: small or large, to separate burst from bandwidth.

        A probe that confirms an outlier is a large one.
        """
        lasts_s = max(_PROBE_S, _PROBE_JITTERS * link.jitter_ms / 1e3)
        moment = (link.uplink_bps or 1e6) * lasts_s / 8
        large = soon or self._turn % _LARGE_EVERY == 0
        size = min(max(moment, _LEAST_BYTES), _MOST_BYTES) * (2.5 if large else 1.0)
        return min(int(size + link.burst_bytes), MAX_PROBE_BYTES)
