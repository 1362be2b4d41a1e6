"""Frame sources: a folder of pictures, a video file or a camera.

    folder | file | camera -> [thread: decode, at its frame rate] -> Newest -> Detector

The newest frame wins: a camera does not wait for a detector, so a frame that nobody took when the
next one comes is dropped and counted. Pictures and files are played like a camera, at their own
rate or the one asked for. A picture or packet that is broken is skipped and counted; a camera that
goes away is tried again, later and later. Frames are upright, and no larger than `EDGE_LIMITS`.
"""

import logging
import math
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import SideData
from numpy.typing import NDArray

from common.errors import (
    CalibrationError,
    ImageError,
    ImageTooLargeError,
    SettingsError,
    SourceError,
)
from common.imaging.images import EDGE_LIMITS, list_images, read_image, turn_upright

_LOG = logging.getLogger("splitpoint.edge")

PICTURES_FPS: Final = 2.0
_VIDEO_FPS: Final = 25.0
_MOST_FPS: Final = 1000.0
_OPEN_S, _READ_S = 10.0, 10.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
_MOST_BROKEN: Final = 300
_RGB_BYTES: Final = 3
_DEVICES = "/dev/"
_TCP = {"rtsp_transport": "tcp"}
# EXIF's orientation for the signs of a display matrix (a, b, c, d): x' = ax + cy, y' = bx + dy.
_ORIENTATIONS: Final = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Captured:
    """One frame.

    Attributes:
        image: (H, W, 3) RGB.
        capture_ms: Time to decode it.
        at_s: Time when it was decoded, by the monotonic clock.
    """

    image: Image
    capture_ms: float
    at_s: float


class Feed(Protocol):
    """A source of frames in order: on demand, or at a camera's own frame rate.

    Attributes:
        live: Whether it is a camera: it has its own frame rate, and is opened again after its end.
        skipped: Pictures or packets that could not be decoded, over all `frames` calls.
    """

    live: bool
    skipped: int

    def rate(self) -> float:
        """The source's own frame rate, in frames per second."""

    def frames(self) -> Iterator[Captured]:
        """Play once from the beginning.

        Raises:
            SourceError: If it cannot be opened or read.
        """


class PictureFolder:
    """The pictures of a folder in order of name; listed anew each time, so some may be added.

    Args:
        folder: With at least one picture.
    """

    live = False

    def __init__(self, folder: Path) -> None:
        self.skipped = 0
        self._folder = folder
        self._list()

    def rate(self) -> float:
        """See `Feed`."""
        return PICTURES_FPS

    def frames(self) -> Iterator[Captured]:
        """See `Feed`."""
        shown = 0
        for path in self._list():
            started_s = time.perf_counter()
            try:
                image = read_image(path, EDGE_LIMITS)
            except ImageError as error:
                self.skipped += 1
                _LOG.warning("left out: %s", error)
                continue
            shown += 1
            yield _captured(image, started_s)
        if not shown:
            raise SourceError(f"{self._folder}: none of its pictures can be read")

    def _list(self) -> list[Path]:
        try:
            return list_images(self._folder)
        except CalibrationError as error:
            raise SourceError(str(error)) from error


class Video:
    """A video file, a network camera's URL or a camera device, decoded by FFmpeg.

    Frames are turned as the stream's display matrix says. A packet that cannot be decoded is
    skipped; after 300 of them in a row the stream is given up.

    Args:
        name: File, URL or device, as FFmpeg takes it.
        live: Whether it is a camera.
    """

    def __init__(self, name: str, *, live: bool) -> None:
        self.live = live
        self.skipped = 0
        self._name = name
        with self._open() as container:
            self._rate = float(container.streams.video[0].average_rate or _VIDEO_FPS)

    def rate(self) -> float:
        """See `Feed`."""
        return self._rate

    def frames(self) -> Iterator[Captured]:
        """See `Feed`."""
        shown = broken = 0
        with self._open() as container:
            try:
                # Waiting for a packet is the camera's time, decoding it is ours.
                for packet in container.demux(container.streams.video[0]):
                    started_s = time.perf_counter()
                    try:
                        decoded = packet.decode()
                    except av.FFmpegError as error:
                        broken += 1
                        self._skip(broken, error)
                        continue
                    for frame in decoded:
                        image = self._image(frame)
                        shown += 1
                        broken = 0
                        yield _captured(image, started_s)
                        started_s = time.perf_counter()
            except (av.FFmpegError, ValueError) as error:
                raise SourceError(f"{self._name}: cannot be decoded: {_words(error)}") from error
        if not shown:
            reason = f": {broken} packets cannot be decoded" if broken else ""
            raise SourceError(f"{self._name}: no frame in it{reason}")

    def _skip(self, broken: int, error: Exception) -> None:
        self.skipped += 1
        if broken >= _MOST_BROKEN:
            raise SourceError(
                f"{self._name}: {broken} packets in a row cannot be decoded: {_words(error)}"
            ) from error
        # A bad link must not fill the log.
        if self.skipped & (self.skipped - 1) == 0:
            _LOG.warning("%s: %d packets skipped: %s", self._name, self.skipped, _words(error))

    def _image(self, frame: av.VideoFrame) -> Image:
        pixel_bytes = frame.format.padded_bits_per_pixel / 8
        self._check_size(frame.width, frame.height, pixel_bytes + _RGB_BYTES)
        image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        return turn_upright(image, _orientation(frame))

    def _check_size(self, width: int, height: int, pixel_bytes: float = _RGB_BYTES) -> None:
        try:
            EDGE_LIMITS.check_size(width, height, pixel_bytes)
        except ImageTooLargeError as error:
            raise SourceError(f"{self._name}: its frames are too large: {error}") from error

    def _open(self) -> InputContainer:
        device = self._name.startswith(_DEVICES)
        try:
            container = av.open(
                self._name,
                format="v4l2" if device else None,
                options=_TCP if self._name.startswith("rtsp") else {},
                timeout=(_OPEN_S, _READ_S) if self.live and not device else None,
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            raise SourceError(f"{self._name}: cannot be opened: {_words(error)}") from error
        if not container.streams.video:
            container.close()
            raise SourceError(f"{self._name}: no video stream in it")
        codec = container.streams.video[0].codec_context
        # FFmpeg allocates frames before we see them, of whatever size a packet claims.
        codec.options = {"max_pixels": str(EDGE_LIMITS.max_pixels)}
        try:
            self._check_size(codec.width, codec.height)
        except SourceError:
            container.close()
            raise
        return container


class Newest:
    """A one-frame buffer between a camera and a detector; a newer frame replaces an older one.

    Attributes:
        dropped: Frames that a newer one replaced before they were taken.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Captured | None = None
        self._ended = False
        self.dropped = 0

    def put(self, frame: Captured) -> None:
        """Offer a frame; never waits."""
        with self._changed:
            self.dropped += self._frame is not None
            self._frame = frame
            self._changed.notify()

    def take(self) -> Captured | None:
        """Wait for a frame that was not taken yet; None after the end."""
        with self._changed:
            while self._frame is None and not self._ended:
                self._changed.wait()
            frame, self._frame = self._frame, None
            return frame

    def end(self) -> None:
        """Mark the end: a waiting `take` returns None, or the last frame if there is one."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class Camera:
    """Plays a feed in a thread of its own, at its frame rate.

    Args:
        feed: What to play.
        loop: Whether to begin again at the end; a live feed is always opened again.
        fps: Frames per second at the most; the feed's own rate, if None.
        now_s: A monotonic clock.
        wait: Sleeps for a number of seconds, less if `close` is called; returns whether it was.

    Attributes:
        captured: Frames that were offered.
        failures: Number of times that the feed could not be opened or read.
        error: The error that ended it; None if it ended by itself or by `close`.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        loop: bool = False,
        fps: float | None = None,
        now_s: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        if fps is not None and not 0 < fps <= _MOST_FPS:
            raise SettingsError(f"--fps {fps:g}: expected a number over 0, at most {_MOST_FPS:g}")
        self._feed = feed
        self._loop = loop or feed.live
        self._asked_fps = fps
        self._now_s = now_s
        self._closed = threading.Event()
        self._wait = self._closed.wait if wait is None else wait
        self._newest = Newest()
        self._due_s = -math.inf
        self._thread: threading.Thread | None = None
        self.captured = 0
        self.failures = 0
        self.error: SourceError | None = None

    @property
    def dropped(self) -> int:
        """Frames that a newer one replaced before they were taken."""
        return self._newest.dropped

    @property
    def skipped(self) -> int:
        """Pictures or packets that could not be decoded."""
        return self._feed.skipped

    def start(self) -> None:
        """Start the playing thread."""
        self._thread = threading.Thread(target=self.play, name="camera", daemon=True)
        self._thread.start()

    def take(self) -> Captured | None:
        """Wait for the newest frame that was not taken yet; None after the end."""
        return self._newest.take()

    def close(self) -> None:
        """End playing; a `take` that waits gets None."""
        self._closed.set()
        self._newest.end()

    def play(self) -> None:
        """Play in the calling thread until the end or `close`."""
        pause_s = _FIRST_RETRY_S
        try:
            while not self._closed.is_set():
                before = self.captured
                try:
                    self._play_once()
                except Exception as error:  # noqa: BLE001 - whatever it is, it is no end of a video
                    self.failures += 1
                    if not self._feed.live:
                        self.error = _told(error)
                        return
                    _LOG.warning("%s; trying again in %.1f s", _told(error), pause_s)
                if not self._loop:
                    return
                if self._feed.live:
                    pause_s = _FIRST_RETRY_S if self.captured > before else pause_s
                    if self._wait(pause_s):
                        return
                    pause_s = min(2 * pause_s, _LAST_RETRY_S)
        finally:
            self._newest.end()

    def _play_once(self) -> None:
        # A camera has its own frame rate, unless fewer frames are asked for.
        fps = self._asked_fps or (None if self._feed.live else self._feed.rate())
        for frame in self._feed.frames():
            if self._closed.is_set():
                return
            if fps is not None and not self._on_time(1 / fps):
                continue
            self.captured += 1
            self._newest.put(frame)

    def _on_time(self, period_s: float) -> bool:
        """Wait until a frame is due; False if it is to be dropped: too early, or closed."""
        now_s = self._now_s()
        if self._feed.live:
            if now_s < self._due_s:
                return False
        elif now_s < self._due_s:
            if self._wait(self._due_s - now_s):
                return False
            now_s = self._due_s
        # A little lateness does not add up; after a stall nothing is caught up on.
        late = now_s - self._due_s >= period_s
        self._due_s = (now_s if late else self._due_s) + period_s
        return True


def open_feed(source: str) -> Feed:
    """Open a source: a folder, a file, a URL with "://" or a device under /dev.

    Raises:
        SourceError: If it cannot be opened, or has no picture or video in it.
    """
    if "://" in source or source.startswith(_DEVICES):
        return Video(source, live=True)
    path = Path(source)
    if path.is_dir():
        return PictureFolder(path)
    if not path.is_file():
        raise SourceError(f"{source}: no such file, folder or device")
    return Video(source, live=False)


def _told(error: Exception) -> SourceError:
    """Convert a feed's error to a SourceError; an unexpected one is logged with its trace."""
    if isinstance(error, SourceError):
        return error
    _LOG.error("the source failed by a bug", exc_info=error)
    return SourceError(f"the source failed by a bug ({type(error).__name__}: {_words(error)})")


def _captured(image: Image, started_s: float) -> Captured:
    now_s = time.monotonic()
    return Captured(image, (time.perf_counter() - started_s) * 1000, now_s)


def _orientation(frame: av.VideoFrame) -> int:
    """EXIF orientation of a frame, from its display matrix; 1 (upright) without one."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return 1
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    signs = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    return _ORIENTATIONS.get(signs, 1)


def _words(error: Exception) -> str:
    if isinstance(error, av.FFmpegError) and error.strerror:
        return error.strerror
    if isinstance(error, OSError) and error.errno:
        return error.strerror or os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or type(error).__name__
