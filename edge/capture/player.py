"""Plays a camera: takes its frames one after the other through a detector until it is stopped.

    Camera.take -> Detector.detect -> LatestFrame (shown over REST), metrics, one log line a second

A frame that fails is dropped: the camera has a newer one by then. A process that is asked to end
does so within its grace period, even if one of its threads hangs in a decoder.
"""

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from common.errors import SourceError, SplitpointError
from common.http.log_limits import EventLimit
from common.http.serving import Fields, RestServer, announce, log_event, retract, stop_on_signals
from common.tasks.base import ResultSettings
from edge.detector import Detector, Outcome
from edge.metrics import EdgeMetrics

if TYPE_CHECKING:
    from edge.capture.sources import Camera, Captured  # brings the video decoder

_LOG = logging.getLogger("splitpoint.edge")

GRACE_S = 8.0
"""Grace period: the process is ended this long after the request to stop, in any case."""
_STATUS_S = 1.0
_PAUSE_S = 0.5
_END_TIMEOUT_S = 2.0
_USUAL_PERIOD_S = 1 / 25
_SILENT_S, _SILENT_PERIODS = 5.0, 3.0
"""A camera may give no frame for 5 s or 3 frame periods, whichever is longer."""
_START_S = 15.0
_MOST_TRACES = 16


@dataclass(frozen=True)
class LatestFrame:
    """The frame that was served last, with its outcome."""

    captured: "Captured"
    outcome: Outcome

    def age_ms(self) -> int:
        """Age of the frame: milliseconds since it was captured."""
        return max(0, round((time.monotonic() - self.captured.at_s) * 1000))


class Player:
    """Takes a camera's newest frame as soon as the detector is free.

    Args:
        detector: The opened detector.
        camera: Not started yet.
        metrics: Metrics that count the frames.
        settings: What to report of a frame.
        now_s: A monotonic clock, for the log and for detecting a silent camera.
        period_s: Time between two frames of the camera.

    Attributes:
        latest: The last frame that was served; None before the first.
        failed: Frames that were not served because of an error.
    """

    def __init__(
        self,
        detector: Detector,
        camera: "Camera",
        metrics: EdgeMetrics,
        settings: ResultSettings,
        now_s: Callable[[], float] = time.monotonic,
        *,
        period_s: float = _USUAL_PERIOD_S,
    ) -> None:
        self._detector = detector
        self._camera = camera
        self._metrics = metrics
        self._settings = settings
        self._now_s = now_s
        self._stopped = threading.Event()
        self._told_s = now_s()
        self._served: list[Outcome] = []
        self._silent_s = max(_SILENT_S, _SILENT_PERIODS * period_s)
        self._waiting_s: float | None = None
        self._begun = False
        self._log_limit = EventLimit()
        self._traced: set[str] = set()
        self.latest: LatestFrame | None = None
        self.failed = 0
        metrics.watch(self.age_s)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the detector's classes, by class index."""
        return self._detector.task.class_names

    def play(self) -> None:
        """Serve frames in the calling thread until the camera ends or `stop` is called.

        Raises:
            SourceError: If the camera ended by an error.
        """
        self._camera.start()
        while not self._stopped.is_set():
            self._waiting_s = self._now_s()
            captured = self._camera.take()
            if captured is None:
                break
            self._waiting_s, self._begun = None, True
            self._serve(captured)
            if self._now_s() - self._told_s >= _STATUS_S:
                self._tell()
        if self._served or self.failed:
            self._tell()
        if self._camera.error is not None:
            raise self._camera.error

    def stop(self) -> None:
        """Take no more frames."""
        self._stopped.set()
        self._camera.close()

    def age_s(self) -> float | None:
        """Age of the frame served last, in seconds; None before the first."""
        shown = self.latest
        return None if shown is None else shown.age_ms() / 1000

    def check_frames(self) -> None:
        """Require that the camera gives frames, once it has had time to start.

        Raises:
            SourceError: If it has given none for long.
        """
        since_s = self._waiting_s
        if since_s is None:
            return
        silent_s = self._now_s() - since_s
        if silent_s > (self._silent_s if self._begun else max(self._silent_s, _START_S)):
            raise SourceError(
                f"no frame from the camera for {silent_s:.0f} s, expected one within "
                f"{self._silent_s:.0f} s: see that it is on and can be reached"
            )

    def _serve(self, captured: "Captured") -> None:
        try:
            with self._metrics.under_way():
                outcome = self._detector.detect(
                    captured.image,
                    settings=self._settings,
                    capture_ms=captured.capture_ms,
                )
        except Exception as error:  # noqa: BLE001 - whatever a frame does, the next is served
            self._lose(error)
            self._stopped.wait(_PAUSE_S)
            return
        self._metrics.served(outcome, captured.capture_ms)
        self.latest = LatestFrame(captured, outcome)
        self._served.append(outcome)

    def _lose(self, error: Exception) -> None:
        """Count a frame that was not served, and log it at a limited rate per kind of error."""
        self.failed += 1
        kind = _kind(error)
        if self._stopped.is_set() or not (times := self._log_limit.due(kind)):
            return
        fields = {"error": type(error).__name__, "message": _line(error), "times": times}
        log_event("frame-failed", fields)
        ours = not isinstance(error, SplitpointError)
        if ours and kind not in self._traced and len(self._traced) < _MOST_TRACES:
            self._traced.add(kind)
            _LOG.error("a frame failed by a bug", exc_info=error)

    def _tell(self) -> None:
        now_s = self._now_s()
        log_event(
            "playing",
            {
                **status(self._served, now_s - self._told_s),
                "captured": self._camera.captured,
                "dropped": self._camera.dropped,
                "skipped": self._camera.skipped,
                "failed": self.failed,
            },
        )
        self._told_s, self._served = now_s, []


def status(served: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """Fields of the log line about the frames served within the last `seconds`."""
    if not served:
        return {"fps": 0.0}
    latencies = sorted(outcome.latency_ms for outcome in served)
    return {
        "fps": round(len(served) / max(seconds, 1e-3), 1),
        "plan": served[-1].plan.name,
        "latency_ms": round(latencies[len(latencies) // 2], 1),
        "uplink_bytes": round(sum(outcome.uplink_bytes for outcome in served) / len(served)),
        "objects": len(served[-1].result),
    }


def _kind(error: Exception) -> str:
    """Key to group failures by: the error's class and, for a bug, the line that raised it."""
    name = type(error).__name__
    trace = error.__traceback__
    if isinstance(error, SplitpointError) or trace is None:
        return name
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{name} in {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def play_until_stopped(
    player: Player | None,
    detector: Detector,
    app: ASGIApp | None,
    listener: socket.socket | None,
    fields: Fields,
    ready_file: Path | None,
    *,
    grace_s: float | None = None,
) -> None:
    """Play or serve as the whole process, until SIGINT, SIGTERM or the camera's end.

    Closes the detector.

    Args:
        player: The player to run; None if REST alone is served.
        detector: The player's detector.
        app: REST app to serve in the same process; needs `listener`.
        listener: A socket of `bind`.
        fields: Fields of the log event and the ready file that announce this process.
        ready_file: Written once frames are taken.
        grace_s: Seconds after the request to stop when the process is ended, whatever still runs
            in it; never, if None.

    Raises:
        SourceError: If the camera ended by an error.
        SplitpointError: If playing failed in another way.
    """
    failed: list[SplitpointError] = []

    async def run() -> None:
        stopped, ended = asyncio.Event(), asyncio.Event()
        stop_on_signals(stopped)
        loop = asyncio.get_running_loop()

        def play(player: Player) -> None:
            try:
                player.play()
            except SplitpointError as error:
                failed.append(error)
            except BaseException as error:  # noqa: BLE001 - the process says so, and ends by it
                _LOG.error("playing failed", exc_info=error)
                why = f"playing failed by a bug ({type(error).__name__}: {_line(error)})"
                failed.append(SplitpointError(f"{why}: the log has its trace"))
            finally:
                loop.call_soon_threadsafe(ended.set)
                loop.call_soon_threadsafe(stopped.set)

        serving: asyncio.Task[None] | None = None
        if app is not None and listener is not None:
            server = RestServer(app)
            serving = asyncio.create_task(server.serve_until(stopped, listener))
            await server.ready.wait()
        if player is None:
            ended.set()
        else:
            threading.Thread(target=play, args=(player,), name="player", daemon=True).start()
        try:
            announce("ready", fields, ready_file)
            await stopped.wait()
        finally:
            stopped.set()
            if grace_s is not None:
                _leave_after(grace_s, failed)
            if player is not None:
                player.stop()
            if serving is not None:
                await serving
            # A frame that waits for the cloud may finish; closing the detector then ends its wait.
            await _either(ended, _END_TIMEOUT_S)
            await asyncio.to_thread(detector.close)
            await _either(ended, _END_TIMEOUT_S)
            retract(ready_file)

    asyncio.run(run())
    if failed:
        raise failed[0]
    log_event("stopped", {})


def _leave_after(grace_s: float, failed: Sequence[SplitpointError]) -> None:
    """End the process after `grace_s` if it still runs then: threads cannot be killed."""

    def leave() -> None:
        busy = [t.name for t in threading.enumerate() if not t.daemon and t.name != "MainThread"]
        log_event("abandoned", {"grace_s": grace_s, "threads": busy})
        logging.shutdown()
        os._exit(failed[0].exit_code if failed else 0)

    timer = threading.Timer(grace_s, leave)
    timer.daemon = True
    timer.start()


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, for `seconds` at the most."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
