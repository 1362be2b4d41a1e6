"""A camera played by a real edge process, with a cloud behind it and REST beside it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bench.processes import Service
from tests import tiny
from tests.unit.test_metrics import values


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.fromarray(tiny.image(index)).save(folder / f"{index}.png")
    return folder


def _get(port: int, path: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60, trust_env=False)


def test_frames_flow_and_are_told(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    ports = ("--grpc-port", "0", "--rest-port", "0")
    edge_log = tmp_path / "edge.log"
    with Service(["cloud", "--bundle", str(bundle), *ports], tmp_path / "cloud.log") as cloud:
        command = ["edge", "--bundle", str(bundle), "--cloud", f"127.0.0.1:{cloud.ready['grpc']}"]
        command += ["--source", str(pictures), "--loop", "--fps", "50", "--plan", tiny.SPLIT]
        with Service([*command, "--listen", "127.0.0.1:0"], edge_log) as edge:
            served = "splitpoint_edge_frames_total", (("plan", tiny.SPLIT),)
            deadline_s = time.monotonic() + 60
            while (told := values(_get(edge.ready["rest"], "/metrics").text))[served] < 3:
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
            picture = _get(edge.ready["rest"], "/v1/latest.jpg")
            known = values(_get(cloud.ready["rest"], "/metrics").text)
            assert _get(edge.ready["rest"], "/readyz").status_code == 200
    assert told["splitpoint_edge_uplink_bytes_total", ()] > 0
    assert picture.headers["content-type"] == "image/jpeg"
    assert known["splitpoint_cloud_frames_total", (("plan", tiny.SPLIT),)] >= 3
    assert known["splitpoint_cloud_connected_edges", ()] == 1
    events = [json.loads(line)["event"] for line in edge_log.read_text().splitlines()]
    assert events[0] == "ready"
    assert events[-1] == "stopped"  # by SIGTERM, in good time


def test_a_source_that_ends_ends_the_process(bundle: Path, pictures: Path) -> None:
    command = ["edge", "--bundle", str(bundle), "--plan", tiny.EDGE_ONLY]
    arguments = [sys.executable, "-m", "splitpoint.cli", *command, "--source", str(pictures)]
    done = subprocess.run(  # noqa: S603 - our own command
        [*arguments, "--fps", "20"], capture_output=True, text=True, timeout=120, check=False
    )
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 0
    assert [event["event"] for event in events if event["event"] != "playing"] == [
        "ready",
        "stopped",
    ]
    assert sum(event["captured"] for event in events if event["event"] == "playing") >= 3


def test_a_source_that_breaks_says_why(bundle: Path, pictures: Path) -> None:
    for picture in pictures.iterdir():
        picture.write_bytes(b"no picture")
    command = ["edge", "--bundle", str(bundle), "--plan", tiny.EDGE_ONLY]
    arguments = [sys.executable, "-m", "splitpoint.cli", *command, "--source", str(pictures)]
    done = subprocess.run(  # noqa: S603 - our own command
        arguments, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 66
    assert "none of its pictures can be read" in done.stderr.splitlines()[-1]
