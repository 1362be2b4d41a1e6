"""Playing a camera: every frame counted, a failing one survived, the latest shown."""

import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client import generate_latest

from common.bundle import Bundle
from common.errors import SourceError
from common.rpc import splitpoint_pb2 as pb
from edge import rest
from edge.client import CloudClient
from edge.detector import Detector
from edge.metrics import EdgeMetrics
from edge.player import Player
from edge.source import Camera, open_feed
from edge.transport import GrpcTransport
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
    return Player(detector, camera, metrics, 0.25, now_s=lambda: float(next(ticks))), metrics


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
