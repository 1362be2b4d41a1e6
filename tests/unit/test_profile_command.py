"""`splitpoint profile`: three things to profile, one kind of table, and mistakes in one line."""

import contextlib
import email.message
import io
import json
import socket
import sqlite3
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloud.store.store import Store
from common.bundle.bundle import Bundle
from common.errors import SettingsError
from common.http.serving import bind, port_of
from common.latency import costs
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tables.rows import LatencyRow, to_json
from common.tables.store_file import read_tables
from splitpoint import remote
from splitpoint.cli import main
from splitpoint.edge_detector import EdgeDetector
from tests import tiny

ROW: dict[str, Any] = {
    "device": "box",
    "runtime": "onnxruntime x1",
    "threads": 1,
    "side": "edge",
    "network": tiny.NETWORK,
    "segment": "head to cut",
    "bits": "8",
    "n": 9,
    "source": "profiled",
    "median_ms": 2.0,
    "p90_ms": 2.5,
    "low_ms": 1.0,
    "high_ms": 3.0,
    "last_seen_s": 1e9,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "bundle")
    return tmp_path / "bundle"


def run(*arguments: object) -> int:
    """The exit code, whichever way the command line ends."""
    try:
        return main(["profile", *(str(argument) for argument in arguments)])
    except SystemExit as end:
        return int(end.code or 0)


class TestBundles:
    def test_the_edges_side_is_timed_without_torch(
        self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "tables.json"
        options = ("--device", "box 3", "--threads", "2", "--budget", "0.1")
        assert run("--bundle", bundle, "--tables", path, *options) == 0
        rows, opened = read_tables(path), Bundle.open(bundle)
        assert {row.segment for row in rows} == {
            *("letterbox", "head to cut", "head to map", "boxes"),
            *(tiny.segment(opened, plan, "encode") for plan in (tiny.SPLIT, tiny.CLOUD_ONLY)),
        }
        assert {(row.device, row.threads, row.side, row.source) for row in rows} == {
            ("box 3", 2, "edge", "profiled")
        }
        assert all(row.runtime.endswith(" x2") for row in rows)
        told = capsys.readouterr().out
        assert "head to cut" in told
        assert f"wrote {path}" in told

    def test_the_clouds_side_goes_into_the_same_store(self, bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "store.sqlite"
        options = ("--bundle", bundle, "--tables", path, "--device", "box", "--budget", "0.1")
        assert run(*options) == 0
        assert {row.side for row in read_tables(path)} == {"edge"}
        assert run(*options, "--cloud-side") == 0
        rows = {(row.side, row.segment) for row in read_tables(path)}
        assert ("cloud", "tail from cut") in rows
        assert ("cloud", "boxes") in rows
        assert ("edge", "boxes") in rows

    def test_rows_of_runtimes_lie_side_by_side_and_an_edge_takes_its_own(
        self, bundle: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "tables.json"
        options = ("--bundle", bundle, "--tables", path, "--device", "box", "--budget", "0.1")
        assert run(*options, "--cloud-side", "--runtime", "openvino") == 0
        assert {row.runtime for row in read_tables(path)} == {runtime_name(1, "openvino")}
        with (
            pytest.raises(SettingsError, match="nothing about device 'box' with onnxruntime"),
            EdgeDetector(bundle, "127.0.0.1:1", device="box", tables=path),
        ):
            pass
        assert run(*options, "--runtime", DEFAULT_RUNTIME) == 0
        heads = {
            row.runtime: row.median_ms
            for row in read_tables(path)
            if row.segment == "head to cut" and row.side == "edge"
        }
        assert heads.keys() == {runtime_name(1), runtime_name(1, "openvino")}
        plans = Bundle.open(bundle).plans
        for runtime in (DEFAULT_RUNTIME, "openvino"):
            known = costs(plans, read_tables(path), "box", runtime)
            split = next(each for each in known if each.plan.name == tiny.SPLIT)
            (ms,) = [stage.ms for stage in split.stages if stage.stage == "head"]
            assert ms == heads[runtime_name(1, runtime)]

    def test_rows_of_other_devices_stay(self, bundle: Path, tmp_path: Path) -> None:
        path = tmp_path / "tables.json"
        other = LatencyRow(**ROW | {"device": "oven"})
        path.write_text(to_json([other]))
        assert run("--bundle", bundle, "--tables", path, "--device", "b", "--budget", "0.1") == 0
        assert other in read_tables(path)
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


class Cloud:
    """A cloud's REST API, without a socket."""

    def __init__(self, answer: Callable[[], bytes]) -> None:
        self.asked: list[str] = []
        self._answer = answer

    def open(self, request: urllib.request.Request, timeout: float) -> io.BytesIO:
        assert timeout > 0
        self.asked.append(f"{request.get_method()} {request.full_url}")
        return io.BytesIO(self._answer())


def raising(error: Exception) -> Callable[[], bytes]:
    def answer() -> bytes:
        raise error

    return answer


def told(status: int, body: bytes) -> urllib.error.HTTPError:
    headers = email.message.Message()
    return urllib.error.HTTPError("http://cloud", status, "", headers, io.BytesIO(body))


def refused(status: int, kind: str, message: str) -> urllib.error.HTTPError:
    return told(status, json.dumps({"error": {"type": kind, "message": message}}).encode())


class TestRemotes:
    def test_a_distant_edge_profiles_itself(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        cloud = Cloud(lambda: json.dumps({"rows": [ROW]}).encode())
        monkeypatch.setattr(remote, "_OPENER", cloud)
        path = tmp_path / "tables.json"
        asked = ("--remote", "front door/2", "--cloud", "http://cloud:8080/", "--budget", "7")
        assert run(*asked, "--tables", path) == 0
        assert cloud.asked == [
            "POST http://cloud:8080/v1/edges/front%20door%2F2/profile?budget_s=7"
        ]
        assert read_tables(path) == [LatencyRow(**ROW)]
        assert "head to cut" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("answer", "code", "message"),
        [
            (raising(urllib.error.URLError("refused")), 69, "is `splitpoint cloud` running there"),
            (raising(ConnectionResetError()), 69, "cannot be reached"),
            (raising(TimeoutError()), 69, "no answer within 120 s"),
            (raising(refused(404, "UnknownEdgeError", "no edge\n'x'")), 64, "no edge 'x'"),
            (raising(refused(504, "EdgeFailedError", "hung up")), 69, "hung up"),
            (raising(refused(503, "OverloadedError", "try again in 2 s")), 69, "again in 2 s"),
            (raising(refused(403, "CrossSiteError", "may not")), 64, "may not"),
            (raising(refused(409, "UnknownPlanError", "no plan")), 65, "error: no plan"),
            (raising(refused(500, "Exception", "odd")), 69, "odd"),
            (raising(told(404, b"<html>")), 69, "expected the REST API of"),
            (lambda: b"<html>", 69, "expected the REST API of"),
            (lambda: b"[]", 69, "expected the REST API of"),
            (lambda: b'{"rows": [{"device": 3}]}', 69, "expected the REST API of"),
        ],
    )
    def test_what_goes_wrong_is_one_line(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        answer: Callable[[], bytes],
        code: int,
        message: str,
    ) -> None:
        monkeypatch.setattr(remote, "_OPENER", Cloud(answer))
        assert run("--remote", "door", "--cloud", "http://cloud:8080") == code
        line = capsys.readouterr().err.strip()
        assert message in line
        assert "\n" not in line

    def test_an_answer_that_trickles_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each byte begins the socket's own time-out anew; the whole answer has one too."""
        monkeypatch.setattr(remote, "_PATIENCE_S", 1.0)
        with bind("127.0.0.1", 0) as listener:
            listener.setblocking(True)
            thread = threading.Thread(target=_trickle, args=(listener,))
            thread.start()
            cloud = f"http://127.0.0.1:{port_of(listener)}"
            assert run("--remote", "door", "--cloud", cloud, "--budget", "0.1") == 69
            thread.join()
        assert "no answer within 1.1 s" in capsys.readouterr().err

    def test_an_answer_of_any_size_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(remote, "_MOST_BYTES", 1000)
        monkeypatch.setattr(remote, "_OPENER", Cloud(lambda: b'{"rows": []}' + b" " * 1000))
        assert run("--remote", "door", "--cloud", "http://cloud:8080") == 69
        assert "expected the REST API of" in capsys.readouterr().err


def _trickle(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection, contextlib.suppress(ConnectionError):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while True:
            connection.sendall(b" ")
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 64, "give one of --model NAME, --bundle DIR"),
        (("--stats",), 64, "give one of"),
        (("--bundle", "b", "--model", "m"), 64, "got --model and --bundle"),
        (("--bundle", "b", "--stats"), 64, "--stats belongs to --model, not to --bundle"),
        (("--bundle", "b", "--cloud", "http://c"), 64, "--cloud belongs to --remote"),
        (("--remote", "e", "--cloud-side"), 64, "--cloud-side belongs to --bundle"),
        (("--remote", "e", "--device", "d"), 64, "--device belongs to --model or --bundle"),
        (("--model", "m", "--budget", "9"), 64, "--budget belongs to --bundle or --remote"),
        (("--model", "m"), 64, "--calibration is missing"),
        (("--model", "m", "--calibration", "c"), 64, "--out is missing"),
        (("--model", "m", "--calibration", "c", "--out", "o", "--device", "d"), 64, "--tables"),
        (
            ("--model", "m", "--calibration", "c", "--out", "o", "--stats", "--tables", "t.json"),
            64,
            "--stats leaves them out",
        ),
        (("--remote", "e"), 64, "--cloud is missing"),
        (("--remote", "e", "--cloud", "cloud:8080"), 64, "expected http://HOST:PORT"),
        (("--remote", "e", "--cloud", "http://cloud:http"), 64, "expected http://HOST:PORT"),
        (("--remote", "e", "--cloud", "http://cloud/v1/tables"), 64, "expected http://HOST:PORT"),
        (("--remote", "e", "--picture", "9x9"), 64, "--picture belongs to --bundle"),
        (("--bundle", "b", "--picture", "large"), 64, "--picture large: expected WIDTHxHEIGHT"),
        (("--bundle", "b", "--picture", "0x480"), 64, "--picture 0x480: expected WIDTHxHEIGHT"),
        (("--bundle", "b", "--picture", "8193x9"), 64, "--picture 8193x9: expected WIDTHxHEIGHT"),
        (("--bundle", "none"), 65, "no such bundle"),
        (("--bundle", "b", "--device", ""), 64, "--device: expected 1 to 128 characters"),
        (("--bundle", "b", "--tables", "no/folder/t.json"), 65, "no folder no/folder"),
        (("--bundle", "b", "--tables", "notes.txt"), 65, "exists, and is no store"),
        (("--bundle", "b", "--tables", "notes.json"), 65, "no latency table"),
        (("--bundle", "b", "--tables", "."), 65, "exists, and is no store"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("notes.txt", "notes.json"):
        Path(name).write_text("my own words")
    assert run(*arguments) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert Path("notes.txt").read_text() == "my own words"


def test_a_cloud_of_a_newer_version_keeps_its_store(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "store.sqlite"
    Store(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    assert run("--bundle", bundle, "--tables", path, "--budget", "0.1") == 65
    told = capsys.readouterr().err
    assert "newer version" in told
    assert "timing" not in told
