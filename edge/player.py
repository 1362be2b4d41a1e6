"""Frames from a camera through a detector, one after the other, until someone stops it.

    Camera.take -> Detector.detect -> Shown (the latest, for people), metrics, a log line a second

A frame that fails costs that frame: a camera has a newer one by then.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.types import ASGIApp

from common.errors import SplitpointError
from common.serving import Fields, RestServer, announce, log_event, retract, stop_on_signals
from edge.detector import Detector, Outcome
from edge.metrics import EdgeMetrics
from edge.source import Camera, Captured

_STATUS_S = 1.0
_PAUSE_S = 0.5
_PATIENCE_S = 2.0


@dataclass(frozen=True)
class Shown:
    """A frame and what was found in it."""

    captured: Captured
    outcome: Outcome


class Player:
    """Takes a camera's newest frame as soon as the detector is free.

    Args:
        detector: The opened detector.
        camera: Not started yet.
        metrics: Where frames are counted.
        score_threshold: Lowest score of a detection.
        now_s: A monotonic clock, for the log.

    Attributes:
        latest: The last frame that was served; None before the first.
    """

    def __init__(
        self,
        detector: Detector,
        camera: Camera,
        metrics: EdgeMetrics,
        score_threshold: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._detector = detector
        self._camera = camera
        self._metrics = metrics
        self._threshold = score_threshold
        self._now_s = now_s
        self._stopped = threading.Event()
        self._told_s = now_s()
        self._served: list[Outcome] = []
        self._failing = ""
        self.latest: Shown | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """One per class."""
        return self._detector.bundle.manifest.detector.class_names

    def play(self) -> None:
        """Serve frames in the calling thread, until the camera ends or `stop`.

        Raises:
            SourceError: If the camera ended by an error.
        """
        self._camera.start()
        while not self._stopped.is_set():
            captured = self._camera.take()
            if captured is None:
                break
            self._serve(captured)
            if self._now_s() - self._told_s >= _STATUS_S:
                self._tell()
        if self._served:
            self._tell()
        if self._camera.error is not None:
            raise self._camera.error

    def stop(self) -> None:
        """Take no more frames."""
        self._stopped.set()
        self._camera.close()

    def _serve(self, captured: Captured) -> None:
        try:
            with self._metrics.under_way():
                outcome = self._detector.detect(
                    captured.image,
                    score_threshold=self._threshold,
                    capture_ms=captured.capture_ms,
                )
        except SplitpointError as error:
            if str(error) != self._failing and not self._stopped.is_set():
                self._failing = str(error)
                log_event("frame-failed", {"error": type(error).__name__, "message": str(error)})
            self._stopped.wait(_PAUSE_S)
            return
        self._failing = ""
        self._metrics.served(outcome, captured.capture_ms)
        self.latest = Shown(captured, outcome)
        self._served.append(outcome)

    def _tell(self) -> None:
        now_s = self._now_s()
        log_event(
            "playing",
            {
                **status(self._served, now_s - self._told_s),
                "captured": self._camera.captured,
                "dropped": self._camera.dropped,
            },
        )
        self._told_s, self._served = now_s, []


def status(served: Sequence[Outcome], seconds: float) -> dict[str, object]:
    """What a log line says of the frames of the last second."""
    if not served:
        return {"fps": 0.0}
    latencies = sorted(outcome.latency_ms for outcome in served)
    return {
        "fps": round(len(served) / max(seconds, 1e-3), 1),
        "plan": served[-1].plan.name,
        "latency_ms": round(latencies[len(latencies) // 2], 1),
        "uplink_bytes": round(sum(outcome.uplink_bytes for outcome in served) / len(served)),
        "objects": len(served[-1].detections),
    }


def play_until_stopped(
    player: Player,
    detector: Detector,
    app: ASGIApp | None,
    listener: socket.socket | None,
    fields: Fields,
    ready_file: Path | None,
) -> None:
    """Play as the whole process, until SIGINT, SIGTERM or the camera's end; closes the detector.

    Args:
        player: What is played.
        detector: The player's.
        app: Served beside, with the listener.
        listener: A socket of `bind`.
        fields: What to say of this process when it is ready.
        ready_file: Written once frames are taken.

    Raises:
        SourceError: If the camera ended by an error.
    """
    failed: list[SplitpointError] = []

    async def run() -> None:
        stopped, ended = asyncio.Event(), asyncio.Event()
        stop_on_signals(stopped)
        loop = asyncio.get_running_loop()

        def play() -> None:
            try:
                player.play()
            except SplitpointError as error:
                failed.append(error)
            finally:
                loop.call_soon_threadsafe(ended.set)
                loop.call_soon_threadsafe(stopped.set)

        serving: asyncio.Task[None] | None = None
        if app is not None and listener is not None:
            server = RestServer(app)
            serving = asyncio.create_task(server.serve_until(stopped, listener))
            await server.ready.wait()
        threading.Thread(target=play, name="player", daemon=True).start()
        try:
            announce("ready", fields, ready_file)
            await stopped.wait()
        finally:
            stopped.set()
            player.stop()
            if serving is not None:
                await serving
            # A frame that waits for the cloud may finish; closing the detector then ends its wait.
            await _either(ended, _PATIENCE_S)
            await asyncio.to_thread(detector.close)
            await _either(ended, _PATIENCE_S)
            retract(ready_file)

    asyncio.run(run())
    if failed:
        raise failed[0]
    log_event("stopped", {})


async def _either(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, or so long."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
