"""An edge process at its end: by a bug, and by SIGTERM while a thread of it hangs."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from PIL import Image

from bench.processes import Service
from tests import tiny

BROKEN_PLAYER = """
import sys
import edge.capture.player
from splitpoint.cli import main
def play(self):
    raise KeyError("boom")
edge.capture.player.Player.play = play
sys.exit(main(sys.argv[1:]))
"""
HANGING_DECODER = """
import sys, time
from pathlib import Path
import edge.capture.player, edge.rest
from splitpoint.cli import main
def hang(*_):
    Path(hung).touch()
    time.sleep(1000)
hung = sys.argv.pop(1)
edge.rest.decode_image = hang
edge.capture.player.GRACE_S = 1.0
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


def _until(path: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline_s, f"{path} never came"
        time.sleep(0.05)


def test_a_player_with_a_bug_ends_the_process_with_an_error(bundle: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.fromarray(tiny.image()).save(pictures / "1.png")
    command = ["edge", "--bundle", str(bundle), "--plan", tiny.EDGE_ONLY, "--source", str(pictures)]
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", BROKEN_PLAYER, *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 70
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: playing failed by a bug (KeyError: 'boom')")
    assert '"stopped"' not in done.stderr


def test_sigterm_ends_an_edge_whose_decoder_hangs(bundle: Path, tmp_path: Path) -> None:
    hung, ready, log = tmp_path / "hung", tmp_path / "ready.json", tmp_path / "edge.log"
    command = ["edge", "--bundle", str(bundle), "--plan", tiny.EDGE_ONLY]
    command += ["--listen", "127.0.0.1:0", "--ready-file", str(ready)]
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-c", HANGING_DECODER, str(hung), *command],
            stdout=output,
            stderr=output,
        )
    try:
        _until(ready)
        port = json.loads(ready.read_text())["rest"]

        def post() -> None:
            url = f"http://127.0.0.1:{port}/v1/detect"
            with pytest.raises(httpx.HTTPError):
                httpx.post(url, content=tiny.png(), timeout=120, trust_env=False).raise_for_status()

        caller = threading.Thread(target=post)
        caller.start()
        _until(hung)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        caller.join(120)
    finally:
        process.kill()
        process.wait()
    (line,) = [line for line in log.read_text().splitlines() if "abandoned" in line]
    assert json.loads(line)["event"] == "abandoned"


def test_an_edge_that_serves_rest_alone_needs_no_video_decoder() -> None:
    code = "import sys, edge.capture.player, edge.rest; sys.exit('av' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)  # noqa: S603


@contextmanager
def _silent() -> Iterator[int]:
    """The port of something that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_cloud_that_accepts_and_says_nothing_costs_no_request(
    bundle: Path, tmp_path: Path
) -> None:
    with _silent() as port:
        command = ["edge", "--bundle", str(bundle), "--cloud", f"127.0.0.1:{port}"]
        with Service([*command, "--listen", "127.0.0.1:0"], tmp_path / "edge.log") as edge:
            url = f"http://127.0.0.1:{edge.ready['rest']}/v1/detect"
            for query in ({"deadline_ms": "300"}, {}):
                answer = httpx.post(
                    url, params=query, content=tiny.png(), timeout=60, trust_env=False
                )
                assert answer.status_code == 200
                assert answer.json()["plan"]["name"] == tiny.EDGE_ONLY
            asked = httpx.post(
                url,
                params={"plan": tiny.SPLIT},
                content=tiny.png(),
                timeout=60,
                trust_env=False,
            )
            assert asked.status_code == 503
