"""Playing a camera: every frame counted, a failing one survived, the latest shown."""

import io
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest

from common.bundle.bundle import Bundle
from common.errors import CloudUnavailableError, SourceError
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import DEFAULTS
from edge import rest
from edge.capture import player as player_module
from edge.capture.player import Player
from edge.capture.sources import Camera, Captured, open_feed
from edge.detector import Detector
from edge.metrics import EdgeMetrics
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport
from tests import tiny
from tests.asgi import request
from tests.unit.test_metrics import values


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for index in range(3):
        Image.fromarray(tiny.image(index)).save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.fixture
def detector(bundle: Bundle) -> Iterable[Detector]:
    """Edge-only: it needs no cloud."""
    digest = next(d for d, plan in bundle.plans.items() if plan.name == tiny.EDGE_ONLY)
    detector = Detector(bundle, None, plans=[digest])
    yield detector
    detector.close()


def _player(detector: Detector, pictures: Path) -> tuple[Player, EdgeMetrics]:
    camera = Camera(open_feed(str(pictures)), fps=1000)
    metrics = EdgeMetrics(detector, camera)
    ticks = itertools.count()
    return Player(detector, camera, metrics, DEFAULTS, now_s=lambda: float(next(ticks))), metrics


def test_frames_are_served_and_counted(detector: Detector, pictures: Path) -> None:
    player, metrics = _player(detector, pictures)
    player.play()
    told = values(generate_latest(metrics.registry).decode())
    served = told["splitpoint_edge_frames_total", (("plan", tiny.EDGE_ONLY),)]
    dropped = told["splitpoint_edge_dropped_frames_total", ()]
    assert served >= 1
    assert served + dropped == told["splitpoint_edge_captured_frames_total", ()] == 3
    assert told["splitpoint_edge_plan_in_use", (("plan", tiny.EDGE_ONLY),)] == 1
    assert told["splitpoint_edge_stage_seconds_count", (("stage", "capture"),)] == served
    assert told["splitpoint_edge_queue_depth", ()] == 0


def test_the_latest_frame_is_shown_with_its_boxes(detector: Detector, pictures: Path) -> None:
    player, metrics = _player(detector, pictures)
    app = rest.create_app(detector, metrics=metrics, player=player)
    early = request(app, "GET", "/v1/latest.jpg")
    player.play()
    answer = request(app, "GET", "/v1/latest.jpg")
    assert early.status_code == 503
    assert "no frame" in early.json()["error"]["message"]
    assert answer.headers["content-type"] == "image/jpeg"
    shown = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert shown.shape[1] == tiny.image().shape[1]


def test_a_cloud_that_is_away_costs_frames_and_no_more(bundle: Bundle, pictures: Path) -> None:
    digest = next(d for d, plan in bundle.plans.items() if plan.name == tiny.SPLIT)
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(lambda: GrpcTransport("127.0.0.1:1"), hello, connect_timeout_s=5)
    detector = Detector(bundle, client, plans=[digest])
    player, metrics = _player(detector, pictures)
    player.play()
    detector.close()
    told = values(generate_latest(metrics.registry).decode())
    assert told["splitpoint_edge_failures_total", (("error", "CloudUnavailableError"),)] >= 1
    assert player.latest is None


def test_a_source_that_breaks_ends_the_playing(detector: Detector, pictures: Path) -> None:
    player, _ = _player(detector, pictures)
    for picture in pictures.iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(SourceError, match="none of its pictures"):
        player.play()


def test_a_stopped_player_ends(detector: Detector, pictures: Path) -> None:
    player, _ = _player(detector, pictures)
    player.stop()
    player.play()
    assert player.latest is None


class Still:
    """A feed of the same frame, so many times."""

    live = False
    skipped = 0

    def __init__(self, times: int) -> None:
        self._times = times

    def rate(self) -> float:
        return 100.0

    def frames(self) -> Iterator[Captured]:
        for _ in range(self._times):
            yield Captured(tiny.image(), 1.0, 50.0)


class InTurn(Camera):
    """A camera that drops nothing: frames come as they are taken."""

    def start(self) -> None:
        self._left = self._feed.frames()

    def take(self) -> Captured | None:
        return next(self._left, None)


class Failing:
    """A detector that raises what it is given, then serves."""

    def __init__(self, detector: Detector, errors: list[Exception]) -> None:
        self._detector = detector
        self._errors = list(errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._detector, name)

    def detect(self, *args: Any, **kwargs: Any) -> Any:
        if self._errors:
            raise self._errors.pop(0)
        return self._detector.detect(*args, **kwargs)


def _in_turn(
    detector: Detector, frames: int, errors: list[Exception]
) -> tuple[Player, EdgeMetrics]:
    camera = InTurn(Still(frames))
    metrics = EdgeMetrics(detector, camera)
    failing: Any = Failing(detector, errors)
    return Player(failing, camera, metrics, DEFAULTS), metrics


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(player_module, "_PAUSE_S", 0.0)


def test_a_frame_that_raises_anything_costs_that_frame(
    detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [KeyError("boom"), CloudUnavailableError("away"), MemoryError(), KeyError("boom")]
    with caplog.at_level(logging.INFO):
        player, metrics = _in_turn(detector, 6, [*errors, *[CloudUnavailableError("away")] * 1])
        player.play()
    told = values(generate_latest(metrics.registry).decode())
    assert told["splitpoint_edge_frames_total", (("plan", tiny.EDGE_ONLY),)] == 1
    failures = {
        dict(labels)["error"]: count
        for (name, labels), count in told.items()
        if name == "splitpoint_edge_failures_total"
    }
    assert failures == {"KeyError": 2, "CloudUnavailableError": 2, "MemoryError": 1}
    assert player.failed == 5
    assert '"failed": 5' in caplog.messages[-1]
    lines = [line for line in caplog.messages if "frame-failed" in line]
    assert len(lines) == 3, "one of a kind"


def test_only_a_bug_leaves_a_trace_and_once(
    detector: Detector, caplog: pytest.LogCaptureFixture
) -> None:
    errors: list[Exception] = [KeyError("boom") for _ in range(5)]
    errors += [CloudUnavailableError("away") for _ in range(5)]
    player, _ = _in_turn(detector, 10, errors)
    player.play()
    traced = [record.exc_info for record in caplog.records if record.exc_info]
    assert [kind for kind, *_ in traced] == [KeyError]


def test_a_camera_that_gives_no_frame_is_not_ready(detector: Detector) -> None:
    now_s = 0.0
    camera = InTurn(Still(1))
    player = Player(
        detector, camera, EdgeMetrics(detector, camera), DEFAULTS, lambda: now_s, period_s=0.04
    )
    app = rest.create_app(detector, player=player)

    def ready() -> int:
        return request(app, "GET", "/readyz").status_code

    assert ready() == 200, "not begun yet"
    player._waiting_s = now_s  # as while it waits for a frame
    now_s = 12.0
    assert ready() == 200, "it may take a while to start"
    now_s = 20.0
    assert ready() == 503
    player._begun, player._waiting_s = True, 20.0
    now_s = 24.9
    assert ready() == 200
    now_s = 25.1
    answer = request(app, "GET", "/readyz")
    assert answer.status_code == 503
    assert "no frame from the camera" in answer.json()["error"]["message"]
    player._waiting_s = None  # a frame is being served
    assert ready() == 200


def test_a_slow_camera_has_three_periods(detector: Detector) -> None:
    now_s = 0.0
    camera = InTurn(Still(1))
    player = Player(
        detector, camera, EdgeMetrics(detector, camera), DEFAULTS, lambda: now_s, period_s=10.0
    )
    player._begun, player._waiting_s = True, 0.0
    now_s = 29.0
    player.check_frames()
    now_s = 31.0
    with pytest.raises(SourceError, match="31 s"):
        player.check_frames()


def test_a_picture_says_how_old_it_is(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    player, metrics = _in_turn(detector, 1, [])
    app = rest.create_app(detector, metrics=metrics, player=player)
    monkeypatch.setattr("edge.capture.player.time.monotonic", lambda: 50.0)
    player.play()
    monkeypatch.setattr("edge.capture.player.time.monotonic", lambda: 52.25)
    answer = request(app, "GET", "/v1/latest.jpg")
    told = values(generate_latest(metrics.registry).decode())
    monkeypatch.undo()
    assert answer.headers["age"] == "2"
    assert answer.headers["x-splitpoint-age-ms"] == "2250"
    assert told["splitpoint_edge_frame_age_seconds", ()] == 2.25
