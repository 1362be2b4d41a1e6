"""Install the extras `edge` and `cloud` alone, and send a frame through them.

    python -m tests.extras

Each extra gets a new environment with nothing else. What belongs to the search must not be there.
Then a cloud and an edge are started from their environments, on loopback, with a small bundle that
is made here.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import tiny
from tests.conftest import REPOSITORY

FORBIDDEN = ("torch", "scipy", "onnx", "matplotlib", "cv2", "pandas")
_LEFT_OUT = (".*", "*.egg-info", "*.so", "__pycache__", "build", "tests", "results")
_PATIENCE_S = 120.0


def main() -> None:
    """Install, start, serve and end; say how long each took."""
    with tempfile.TemporaryDirectory(prefix="splitpoint-extras-") as name:
        folder = Path(name)
        source = folder / "source"
        shutil.copytree(REPOSITORY, source, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        tiny.build(folder / "bundle")
        (folder / "picture.png").write_bytes(tiny.png())
        for extra in ("edge", "cloud"):
            with _timed(f"[{extra}] installed, without {', '.join(FORBIDDEN)}"):
                _install(folder / extra, source, extra)
        with _timed("a cloud and an edge served frames, and ended"):
            _serve(folder)


def _install(environment: Path, source: Path, extra: str) -> None:
    """Make an environment with the package and one extra, and look what is in it."""
    _run([sys.executable, "-m", "venv", "--without-pip", environment])
    pip = [sys.executable, "-m", "pip", "--python", environment / "bin" / "python"]
    pip += ["install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    _run([*pip, "-c", source / "constraints.txt", f".[{extra}]"], source)
    seen = f"from importlib.util import find_spec as f; print([m for m in {FORBIDDEN} if f(m)])"
    found = _run([environment / "bin" / "python", "-c", seen], environment).strip()
    if found != "[]":
        sys.exit(f"error: the extra {extra} brings {found}")


def _serve(folder: Path) -> None:
    """Whole pictures by either end's REST, and one through both."""
    bundle = ["--bundle", folder / "bundle"]
    cloud = ["cloud", *bundle, "--grpc-port", 0, "--rest-port", 0]
    with _server(folder / "cloud", cloud) as ports:
        _detect(folder, ports["rest"])
        edge = ["edge", *bundle, "--cloud", f"127.0.0.1:{ports['grpc']}", "--plan", tiny.SPLIT]
        with _server(folder / "edge", [*edge, "--listen", "127.0.0.1:0"]) as ports:
            _detect(folder, ports["rest"])


@contextlib.contextmanager
def _server(environment: Path, command: Sequence[object]) -> Iterator[dict[str, int]]:
    """Start a server of an environment; yield its ports; end it, which must succeed."""
    ready = environment / "ready.json"
    words = [environment / "bin" / "splitpoint", *command, "--ready-file", ready]
    process = subprocess.Popen([str(word) for word in words], cwd=environment)  # noqa: S603
    try:
        give_up_s = time.monotonic() + _PATIENCE_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > give_up_s:
                sys.exit(f"error: `splitpoint {command[0]}` did not become ready")
            time.sleep(0.05)
        yield json.loads(ready.read_text())
        process.terminate()
        if process.wait(_PATIENCE_S) != 0:
            sys.exit(f"error: `splitpoint {command[0]}` ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _detect(folder: Path, port: int) -> None:
    """Post the picture; anything but an answer with boxes is an error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url, picture = f"http://127.0.0.1:{port}/v1/detect", (folder / "picture.png").read_bytes()
    with opener.open(urllib.request.Request(url, picture), timeout=_PATIENCE_S) as answer:
        if not json.load(answer)["detections"]:
            sys.exit(f"error: {url} found nothing")


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started_s:.0f} s", flush=True)  # noqa: T201


def _run(command: Sequence[object], folder: Path | None = None) -> str:
    """Run a command outside the checkout's environment; its output, if it succeeds."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(  # noqa: S603
        words, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stderr}error: {' '.join(words)} failed")
    return done.stdout


if __name__ == "__main__":
    main()
