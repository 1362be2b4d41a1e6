"""Frames from folders, files and cameras: which come, which are dropped, what mistakes say."""

import io
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from common.errors import SettingsError, SourceError
from common.imaging.images import EDGE_LIMITS
from edge.capture.sources import Camera, Captured, Newest, open_feed

FRAMES, FPS = 6, 10


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames that become brighter, encoded by PyAV itself."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(FRAMES):
            pixels = np.full((48, 64, 3), 40 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, name in enumerate(("b.png", "a.png")):
        Image.new("RGB", (8, 6), (index, 0, 0)).save(pictures / name)
    (pictures / "notes.txt").write_text("no picture")
    return pictures


def encoded(path: Path, frames: int, broken: Sequence[int] = (), turned: int = 0) -> Path:
    """An MPEG-4 video of 64x48 pixels, red on its left, some of whose packets are rubbish."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32, 0] = 255
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if turned:
            stream.set_display_rotation(turned)
        packets = [
            packet
            for _ in range(frames)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24"))
        ]
        for index, packet in enumerate(packets + list(stream.encode(None))):
            sent = packet
            if index in broken:
                sent = av.Packet(b"\x55" * 40)
                sent.stream, sent.time_base = stream, packet.time_base
                sent.pts, sent.dts = packet.pts, packet.dts
            container.mux(sent)
    return path


def jpegs(path: Path, *sizes: tuple[int, int]) -> Path:
    """A motion JPEG of frames of these sizes."""
    buffer = io.BytesIO()
    for size in sizes:
        Image.new("RGB", size, "navy").save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())
    return path


class Script:
    """A feed whose rounds are given: numbers become frames, an error is raised."""

    skipped = 0

    def __init__(self, *rounds: list[int | SourceError], live: bool = False) -> None:
        self.live = live
        self._rounds = list(rounds)

    def rate(self) -> float:
        return 4.0

    def frames(self) -> Iterator[Captured]:
        for each in self._rounds.pop(0):
            if isinstance(each, SourceError):
                raise each
            yield frame(each)


class Clock:
    """Time that passes by waiting; notes how long, and closes after so many waits."""

    def __init__(self, most_waits: int = 100) -> None:
        self.at_s = 0.0
        self.waits: list[float] = []
        self._most = most_waits

    def now_s(self) -> float:
        return self.at_s

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.at_s += seconds
        return len(self.waits) >= self._most


def frame(number: int) -> Captured:
    return Captured(np.full((2, 2, 3), number, np.uint8), 1.0, 0.0)


def number(captured: Captured | None) -> int | None:
    return None if captured is None else int(captured.image[0, 0, 0])


class TestFeeds:
    def test_a_video_file_gives_its_frames_in_order(self, video: Path) -> None:
        feed = open_feed(str(video))
        frames = list(feed.frames())
        assert not feed.live
        assert feed.rate() == FPS
        assert len(frames) == FRAMES
        assert all(each.image.shape == (48, 64, 3) for each in frames)
        brightness = [each.image.mean() for each in frames]
        assert brightness == sorted(brightness)
        assert all(each.capture_ms > 0 for each in frames)

    def test_a_folder_gives_its_pictures_by_name(self, folder: Path) -> None:
        frames = list(open_feed(str(folder)).frames())
        assert [number(each) for each in frames] == [1, 0]

    def test_a_picture_that_cannot_be_read_is_left_out(self, folder: Path) -> None:
        (folder / "a.png").write_bytes(b"no picture")
        assert [number(each) for each in open_feed(str(folder)).frames()] == [0]

    def test_a_picture_that_is_added_is_shown_in_the_next_round(self, folder: Path) -> None:
        feed = open_feed(str(folder))
        list(feed.frames())
        Image.new("RGB", (8, 6), (9, 0, 0)).save(folder / "c.png")
        assert [number(each) for each in feed.frames()] == [1, 0, 9]

    def test_pictures_that_are_left_out_are_counted(self, folder: Path) -> None:
        (folder / "a.png").write_bytes(b"no picture")
        camera = Camera(open_feed(str(folder)), fps=1000)
        camera.play()
        assert (camera.captured, camera.skipped) == (1, 1)

    def test_broken_packets_are_skipped_and_counted(self, tmp_path: Path) -> None:
        feed = open_feed(str(encoded(tmp_path / "a.mp4", 12, broken=(2, 5, 6))))
        assert len(list(feed.frames())) == 9
        assert feed.skipped == 3

    def test_they_are_skipped_in_every_round(self, tmp_path: Path) -> None:
        feed = open_feed(str(encoded(tmp_path / "a.mp4", 6, broken=(2,))))
        clock = Clock(most_waits=1_000_000)
        camera = Camera(feed, loop=True, now_s=clock.now_s, wait=clock.wait)
        playing = threading.Thread(target=camera.play)
        playing.start()
        while camera.skipped < 4 and playing.is_alive():
            camera.take()
        camera.close()
        playing.join(60)
        assert camera.skipped >= 4
        assert camera.error is None

    def test_a_video_of_broken_packets_alone(self, tmp_path: Path) -> None:
        feed = open_feed(str(encoded(tmp_path / "a.mp4", 12, broken=range(1, 12))))
        assert len(list(feed.frames())) == 1
        feed = open_feed(str(encoded(tmp_path / "b.mp4", 12, broken=range(12))))
        with pytest.raises(SourceError, match=r"b\.mp4: no frame in it: 12 packets cannot be"):
            list(feed.frames())

    def test_broken_packets_without_end_end_the_video(self, tmp_path: Path) -> None:
        feed = open_feed(str(encoded(tmp_path / "a.mp4", 400, broken=range(1, 400))))
        with pytest.raises(SourceError, match="300 packets in a row cannot be decoded: Invalid"):
            list(feed.frames())
        assert feed.skipped == 300

    @pytest.mark.parametrize(
        ("degrees", "shape", "red"),
        [
            (90, (64, 48), np.s_[40:, :]),
            (-90, (64, 48), np.s_[:24, :]),
            (180, (48, 64), np.s_[:, 40:]),
            (30, (48, 64), np.s_[:, :24]),
        ],
    )
    def test_frames_are_turned_as_the_display_matrix_says(
        self, tmp_path: Path, degrees: int, shape: tuple[int, int], red: tuple[slice, slice]
    ) -> None:
        feed = open_feed(str(encoded(tmp_path / "a.mp4", 2, turned=degrees)))
        image = next(iter(feed.frames())).image
        assert image.shape[:2] == shape
        assert image.flags.c_contiguous
        assert image[red][..., 0].min() > 200

    def test_frames_may_change_their_size(self, tmp_path: Path) -> None:
        feed = open_feed(str(jpegs(tmp_path / "a.mjpeg", (64, 48), (32, 16), (64, 48))))
        shapes = [each.image.shape for each in feed.frames()]
        assert shapes == [(48, 64, 3), (16, 32, 3), (48, 64, 3)]


class TestMistakes:
    def test_frames_that_are_too_large(self, tmp_path: Path) -> None:
        path = jpegs(tmp_path / "a.mjpeg", (5000, 4000))
        limit = f"at most {EDGE_LIMITS.max_decoded_bytes} bytes to decode, got 5000x4000 pixels"
        with pytest.raises(SourceError, match=limit):
            open_feed(str(path))

    def test_frames_that_become_too_large(self, tmp_path: Path) -> None:
        feed = open_feed(str(jpegs(tmp_path / "a.mjpeg", (64, 48), (5000, 4000), (32, 16))))
        assert [each.image.shape for each in feed.frames()] == [(48, 64, 3), (16, 32, 3)]
        assert feed.skipped == 1

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no such file"):
            open_feed(str(tmp_path / "none.mp4"))

    def test_a_file_that_is_no_video(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.mp4"
        path.write_bytes(b"\0" * 1000)
        with pytest.raises(SourceError, match=r"broken\.mp4: cannot be opened") as e:
            open_feed(str(path))
        assert "\n" not in str(e.value)

    def test_a_file_without_a_picture(self, tmp_path: Path) -> None:
        path = tmp_path / "sound.wav"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=8000)
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
            sound.sample_rate = 8000
            container.mux(stream.encode(sound))
            container.mux(stream.encode(None))
        with pytest.raises(SourceError, match="no video stream"):
            open_feed(str(path))

    def test_a_video_that_was_cut_off(self, video: Path, tmp_path: Path) -> None:
        path = tmp_path / "short.mp4"
        path.write_bytes(video.read_bytes()[:300])
        with pytest.raises(SourceError, match=r"short\.mp4"):
            list(open_feed(str(path)).frames())

    def test_a_folder_without_a_picture(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="no image in this folder"):
            open_feed(str(tmp_path))

    def test_a_camera_that_is_not_there(self) -> None:
        with pytest.raises(SourceError, match="/dev/video99: cannot be opened"):
            open_feed("/dev/video99")

    @pytest.mark.parametrize("fps", [0, -1, float("nan"), 1e6])
    def test_a_rate_that_makes_no_sense(self, fps: float) -> None:
        with pytest.raises(SettingsError, match="--fps"):
            Camera(Script([]), fps=fps)


class TestNewest:
    def test_the_newest_frame_wins_and_the_others_are_counted(self) -> None:
        newest = Newest()
        for index in range(3):
            newest.put(frame(index))
        assert number(newest.take()) == 2
        assert newest.dropped == 2

    def test_the_last_frame_is_still_taken_after_the_end(self) -> None:
        newest = Newest()
        newest.put(frame(1))
        newest.end()
        assert [number(newest.take()) for _ in range(3)] == [1, None, None]

    def test_a_detector_that_waits_is_woken(self) -> None:
        newest, taken = Newest(), []
        waiting = threading.Thread(target=lambda: taken.append(number(newest.take())))
        waiting.start()
        newest.put(frame(5))
        waiting.join(60)
        assert taken == [5]


class TestCamera:
    def test_a_file_is_played_at_its_own_rate(self) -> None:
        clock = Clock()
        camera = Camera(Script([0, 1, 2]), now_s=clock.now_s, wait=clock.wait)
        camera.play()
        assert clock.waits == pytest.approx([0.25, 0.25])
        assert (camera.captured, camera.dropped) == (3, 2)
        assert number(camera.take()) == 2

    def test_or_at_the_one_asked_for(self) -> None:
        clock = Clock()
        Camera(Script([0, 1, 2]), fps=50, now_s=clock.now_s, wait=clock.wait).play()
        assert clock.waits == pytest.approx([0.02, 0.02])

    def test_a_loop_begins_again(self) -> None:
        clock = Clock()
        end = SourceError("the script is over")
        camera = Camera(
            Script([0, 1], [2, 3], [4, end]), loop=True, now_s=clock.now_s, wait=clock.wait
        )
        camera.play()
        assert camera.captured == 5
        assert camera.error is end

    def test_fewer_frames_are_taken_of_a_camera_than_it_gives(self) -> None:
        clock = Clock(most_waits=1)
        camera = Camera(Script([0, 1, 2], live=True), fps=1, now_s=clock.now_s, wait=clock.wait)
        camera.play()  # all three at once: the later two come too early
        assert camera.captured == 1

    def test_a_camera_that_went_away_is_tried_again_later_and_later(self) -> None:
        gone = SourceError("cam: gone")
        clock = Clock(most_waits=5)
        camera = Camera(
            Script([0, gone], [gone], [gone], [7, gone], [gone], live=True),
            now_s=clock.now_s,
            wait=clock.wait,
        )
        camera.play()
        assert clock.waits == [0.5, 1.0, 2.0, 0.5, 1.0]
        assert (camera.captured, camera.failures, camera.error) == (2, 5, None)

    def test_a_file_that_breaks_ends_it_and_says_why(self) -> None:
        broken = SourceError("file: broken")
        camera = Camera(Script([0, broken]), loop=True, wait=Clock().wait)
        camera.play()
        assert camera.error is broken
        assert [number(camera.take()) for _ in range(2)] == [0, None]

    def test_a_closed_camera_gives_no_more(self) -> None:
        camera = Camera(Script([0, 1, 2]), loop=True)
        camera.close()
        camera.start()
        assert camera.take() is None
