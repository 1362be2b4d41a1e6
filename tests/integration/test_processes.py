"""Real processes on loopback: an edge and a cloud, started, killed, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.processes import ProcessError, Service
from common.bundle.bundle import Bundle
from common.imaging.images import decode_image
from edge.detector import Detector
from tests import tiny

FORBIDDEN_ON_THE_EDGE = {"torch", "onnx", "scipy", "cv2", "pandas", "search", "cloud", "bench"}
FORBIDDEN_IN_THE_CLOUD = {"torch", "onnx", "scipy", "cv2", "search", "edge", "bench"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


def _cloud(bundle: Path, log: Path, grpc_port: int = 0, *, options: Sequence[str] = ()) -> Service:
    ports = ["--grpc-port", str(grpc_port), "--rest-port", "0"]
    return Service(["cloud", "--bundle", str(bundle), *ports, *options], log)


def _edge(bundle: Path, grpc_port: int, log: Path, *options: str) -> Service:
    command = ["edge", "--bundle", str(bundle), "--cloud", f"127.0.0.1:{grpc_port}"]
    return Service([*command, "--listen", "127.0.0.1:0", *options], log)


def _post(port: int, plan: str | None = None) -> httpx.Response:
    query = {} if plan is None else {"plan": plan}
    url = f"http://127.0.0.1:{port}/v1/detect"
    return httpx.post(url, params=query, content=tiny.png(), timeout=60, trust_env=False)


def test_through_two_processes_as_in_one(bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(bundle) as opened:
        local = Detector(opened, None)
        (digest,) = (d for d, plan in opened.plans.items() if plan.name == tiny.EDGE_ONLY)
        expected = local.detect(decode_image(tiny.png()), digest)
        local.close()
    with (
        _cloud(bundle, tmp_path / "cloud.log") as cloud,
        _edge(bundle, cloud.ready["grpc"], tmp_path / "edge.log") as edge,
    ):
        whole = _post(cloud.ready["rest"]).json()
        upload = _post(edge.ready["rest"], tiny.CLOUD_ONLY).json()
        split = _post(edge.ready["rest"], tiny.SPLIT).json()
        here = _post(edge.ready["rest"], tiny.EDGE_ONLY).json()
    assert upload["detections"] == whole["detections"]
    assert len(here["detections"]) == len(expected.detections)
    assert split["detections"]
    assert split["plan"]["kind"] == "split"
    assert 0 < split["uplink_bytes"] < upload["uplink_bytes"]
    assert {"head", "encode", "uplink", "decode", "queue", "tail"} <= set(split["times_ms"])


def test_an_emulated_link_makes_itself_felt(bundle: Path, tmp_path: Path) -> None:
    with (
        _cloud(bundle, tmp_path / "cloud.log") as cloud,
        _edge(bundle, cloud.ready["grpc"], tmp_path / "edge.log", "--link", "50kbit/80ms") as edge,
    ):
        split = _post(edge.ready["rest"], tiny.SPLIT).json()
    # A link can only be slower than asked: at least a round trip, and each bit after the burst.
    least_ms = 80 + (split["uplink_bytes"] - 1500) * 8 / 50
    assert split["times_ms"]["uplink"] + split["times_ms"]["downlink"] >= least_ms - 1


def test_a_cloud_that_is_killed_costs_its_frames_and_no_more(bundle: Path, tmp_path: Path) -> None:
    with _cloud(bundle, tmp_path / "first.log") as cloud:
        port = cloud.ready["grpc"]
        with _edge(bundle, port, tmp_path / "edge.log") as edge:
            rest = edge.ready["rest"]
            assert _post(rest, tiny.SPLIT).status_code == 200
            os.kill(cloud.ready["pid"], signal.SIGKILL)
            lost = _post(rest, tiny.SPLIT)
            assert lost.status_code == 503
            assert "splitpoint cloud" in lost.json()["error"]["message"]
            assert _post(rest, tiny.EDGE_ONLY).status_code == 200
            with _cloud(bundle, tmp_path / "second.log", port):
                # A moment after a failed attempt to connect, callers are told so at once.
                deadline_s = time.monotonic() + 60
                while (again := _post(rest, tiny.SPLIT)).status_code == 503:
                    assert time.monotonic() < deadline_s
                    time.sleep(0.1)
                assert again.status_code == 200


def test_an_edge_with_another_bundle_is_told(bundle: Path, tmp_path: Path) -> None:
    tiny.build(tmp_path / "other", seed=1)
    with (
        _cloud(bundle, tmp_path / "cloud.log") as cloud,
        _edge(tmp_path / "other", cloud.ready["grpc"], tmp_path / "edge.log") as edge,
    ):
        answer = _post(edge.ready["rest"], tiny.SPLIT)
    assert answer.status_code == 502
    assert "same bundle" in answer.json()["error"]["message"]


def test_a_stopped_server_leaves_with_success(bundle: Path, tmp_path: Path) -> None:
    with _cloud(bundle, tmp_path / "cloud.log") as cloud:
        pid = cloud.ready["pid"]
    assert json.loads((tmp_path / "cloud.log").read_text().splitlines()[-1])["event"] == "stopped"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(ProcessError, match="no such bundle"),
        _cloud(tmp_path / "none", tmp_path / "cloud.log"),
    ):
        pytest.fail("it started")


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            "edge.rest, edge.stream.shaping, edge.stream.transport, splitpoint.commands.edge",
            FORBIDDEN_ON_THE_EDGE,
        ),
        ("cloud.server, splitpoint.commands.cloud", FORBIDDEN_IN_THE_CLOUD),
    ],
)
def test_what_a_room_brings_into_memory(modules: str, forbidden: set[str]) -> None:
    code = f"import sys, {modules}; print('\\n'.join({{n.partition('.')[0] for n in sys.modules}}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert not forbidden & set(done.stdout.split())


def _rows(port: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    answer = httpx.get(f"http://127.0.0.1:{port}/v1/tables", timeout=60, trust_env=False).json()
    assert answer["ignored"] == {}
    assert answer["dropped"] == 0
    return {(row["edge"], row["plan"]["name"], row["stage"]): row for row in answer["rows"]}


def test_what_frames_took_is_kept_and_told(bundle: Path, tmp_path: Path) -> None:
    store = ("--store", str(tmp_path / "store.sqlite"))
    with _cloud(bundle, tmp_path / "cloud.log", options=store) as cloud:
        port, rest = cloud.ready["grpc"], cloud.ready["rest"]
        identity = ("--edge-id", "door", "--device", "box 3")
        with _edge(bundle, port, tmp_path / "edge.log", *identity) as edge:
            for plan in (tiny.SPLIT, tiny.SPLIT, tiny.SPLIT, tiny.EDGE_ONLY):
                _post(edge.ready["rest"], plan)
            deadline_s = time.monotonic() + 60
            wanted = {("door", tiny.SPLIT, "uplink"), ("door", tiny.EDGE_ONLY, "head")}
            while not wanted <= (rows := _rows(rest)).keys():
                assert time.monotonic() < deadline_s
                time.sleep(0.1)
    row = rows["door", tiny.SPLIT, "total"]
    assert row["device"] == "box 3"
    assert row["runtime"].startswith("onnxruntime ")
    assert row["n"] >= 2
    low, high = row["interval_ms"]
    assert 0 < low <= row["median_ms"] <= high
    assert rows["door", tiny.SPLIT, "capture"]["median_ms"] > 0
    with _cloud(bundle, tmp_path / "cloud2.log", options=store) as cloud:
        assert wanted <= _rows(cloud.ready["rest"]).keys()
