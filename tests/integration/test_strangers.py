"""Strangers at the front door of real processes: few descriptors, half-sent bodies, SIGTERM."""

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.processes import Service
from tests import tiny
from tests.served import head, until

FEW_DESCRIPTORS = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


def _command(end: str, bundle: Path) -> list[str]:
    if end == "cloud":
        return ["cloud", "--bundle", str(bundle), "--grpc-port", "0", "--rest-port", "0"]
    return ["edge", "--bundle", str(bundle), "--plan", tiny.EDGE_ONLY, "--listen", "127.0.0.1:0"]


@contextlib.contextmanager
def _connections(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            opened.append(stack.enter_context(connection))
            with contextlib.suppress(ConnectionError):  # it may have been refused by now
                connection.sendall(sent)
        yield opened


HALF_A_BODY = head("POST", "/v1/detect", length=1000) + bytes(10)


@pytest.mark.parametrize("end", ["cloud", "edge"])
@pytest.mark.parametrize("sent", [b"", HALF_A_BODY], ids=["silent", "half a body"])
def test_more_sockets_than_descriptors_lock_nobody_out(
    bundle: Path, tmp_path: Path, end: str, sent: bytes
) -> None:
    log = tmp_path / "log"
    with (
        Service(_command(end, bundle), log, prefix=FEW_DESCRIPTORS) as served,
        _connections(served.ready["rest"], 300, sent),
    ):
        for path in ("livez", "metrics", "v1/plans"):
            url = f"http://127.0.0.1:{served.ready['rest']}/{path}"
            assert httpx.get(url, timeout=60, trust_env=False).status_code == 200
    assert "Traceback" not in log.read_text()
    assert len(log.read_text().splitlines()) < 10


@pytest.mark.parametrize("end", ["cloud", "edge"])
def test_sigterm_ends_a_process_whatever_strangers_left_open(
    bundle: Path, tmp_path: Path, end: str
) -> None:
    ready = tmp_path / "ready.json"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            [
                *(sys.executable, "-m", "splitpoint.cli"),
                *(*_command(end, bundle), "--ready-file", str(ready)),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: ready.exists() or process.poll() is not None, max_wait_s=120)
        port = json.loads(ready.read_bytes())["rest"]
        with (
            _connections(port, 20, HALF_A_BODY),
            _connections(port, 5, b""),
            _connections(port, 5, b"GET /liv"),
        ):
            process.terminate()
            assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
