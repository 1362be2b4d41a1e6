"""Every command and every program of the documents does what it says, on a small network.

Servers listen on free ports of this machine, and searches are short. What would take an hour, a
container engine or another machine's kernel is checked without running it; WAYS says how and why.
"""

import argparse
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import yaml
from PIL import Image

import splitpoint
from bench.processes import Service
from splitpoint.cli import main
from tests.conftest import REPOSITORY
from tests.documents import Snippet, every_snippet, snippets
from tests.zoo import as_onnx, pictures, small_zoo, video

pytestmark = pytest.mark.timeout(3600)  # the first test searches, on a machine that may be busy
SNIPPETS = every_snippet()
DEVICE = "raspberry"

SEARCHED = "splitpoint search --model yolov3-tiny --link 3mbit/20ms --calibration PICTURES --out b/"
DETECTED = "splitpoint edge --bundle bundle/ --cloud HOST:50051 picture.jpg"
REWRITTEN = [
    # What is left out between two commands of a page.
    (r"^splitpoint search \.\.\.", SEARCHED),
    (r"^splitpoint cloud \.\.\.", "splitpoint cloud --bundle bundle/"),
    (r"^splitpoint edge  \.\.\.", DETECTED),
    (r"^17 3 \* \* \*  cd /srv && ", ""),  # when cron runs it, and where
    # Hours become seconds.
    (r"^splitpoint (search|propose)", r"splitpoint \1 --format-trials 1 --adapt-steps 2"),
    (r"^splitpoint profile (?=.*--(?:bundle|remote))", "splitpoint profile --budget 0.5 "),
    # Free ports on this machine.
    (r"^splitpoint cloud", "splitpoint cloud --grpc-port 0 --rest-port 0"),
    (r"0\.0\.0\.0|192\.0\.2\.7", "127.0.0.1"),
    (r"--listen 127\.0\.0\.1:8081", "--listen 127.0.0.1:0"),
    (r"(?:HOST|127\.0\.0\.1):50051", "127.0.0.1:{grpc}"),
    (r"(?:cloud|127\.0\.0\.1):8080", "127.0.0.1:{cloud}"),
    (r"127\.0\.0\.1:8081", "127.0.0.1:{edge}"),
    # Configurations of the tests' own network.
    (r"--widths v2/ONE\.yaml", "--widths widths/conv_0.yaml"),
    (r"--widths v2/", "--widths widths/"),
    # The rest.
    (r"\bNAME\b", DEVICE),
    (r"^curl", "curl --fail --silent --show-error"),
    (r"\bdocker/make_certs\.sh", str(REPOSITORY / "docker" / "make_certs.sh")),
]


@dataclass(frozen=True)
class Scene:
    """What the documents speak of: a folder with pictures and bundles, and servers that run.

    Attributes:
        folder: The current folder of a command.
        ports: Of the servers, by their names in REWRITTEN.
    """

    folder: Path
    ports: dict[str, int]

    def rewritten(self, text: str) -> str:
        """A command or program as it is run here."""
        for pattern, replacement in REWRITTEN:
            for name, port in self.ports.items():
                replacement = replacement.replace(f"{{{name}}}", str(port))
            text = re.sub(pattern, replacement, text)
        return text


def _documented(start: str, page: str = "") -> str:
    """The first command of a page, or of all of them, that starts so."""
    commands = (s.text for s in SNIPPETS if s.place.startswith(page) and s.text.startswith(start))
    return next(commands)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty folder, the small network in the zoo, and this checkout for child processes."""
    folder = tmp_path_factory.mktemp("documents")
    with pytest.MonkeyPatch.context() as patched, small_zoo(folder):
        patched.setenv("SPLITPOINT_CACHE", str(folder / "cache"))
        patched.setenv("PYTHONPATH", str(REPOSITORY))
        yield folder


@pytest.fixture(scope="module")
def prepared(environment: Path) -> Path:
    """A folder as a reader has it who followed the documents."""
    folder = environment / "prepared"
    pictures(folder / "PICTURES", 32)
    shutil.copytree(folder / "PICTURES", folder / "images")
    shutil.copy(folder / "PICTURES" / "000.jpg", folder / "picture.jpg")
    video(folder / "street.mp4", 25)
    scene = Scene(folder, {})
    with chdir(folder):
        _in_process(_documented("splitpoint models fetch"), scene)
        as_onnx(folder)
        for start in ("splitpoint search", "splitpoint allocate"):
            _in_process(_documented(start), scene)
        _serve_some(folder)
        _in_process(_documented("splitpoint search", "feedback"), scene)
        _in_shell(_documented("EDGES="), scene)
    for name in ("current", "current.previous"):
        shutil.copytree(folder / "bundle", folder / name)
    return folder


def _serve_some(folder: Path) -> None:
    """Fill the store with what frames took on the device."""
    image = np.asarray(Image.open(folder / "picture.jpg"))
    with (
        splitpoint.CloudServer(folder / "bundle", store=folder / "store.sqlite") as cloud,
        splitpoint.EdgeDetector(folder / "bundle", cloud.grpc_address, device=DEVICE) as edge,
        splitpoint.open_bundle(folder / "bundle") as bundle,
    ):
        for digest in bundle.plans:
            for _ in range(3):
                edge.detect(image, plan=digest.hex())


@pytest.fixture(scope="module")
def ports(prepared: Path) -> Iterator[dict[str, int]]:
    """Of a cloud and an edge that serve the bundle."""
    bundle = str(prepared / "bundle")
    command = ["cloud", "--bundle", bundle, "--grpc-port", "0", "--rest-port", "0"]
    with Service(command, prepared / "cloud.log") as cloud:
        grpc = cloud.ready["grpc"]
        command = ["edge", "--bundle", bundle, "--cloud", f"127.0.0.1:{grpc}"]
        command += ["--listen", "127.0.0.1:0", "--edge-id", "door-camera"]
        with Service(command, prepared / "edge.log") as edge:
            yield {"grpc": grpc, "cloud": cloud.ready["rest"], "edge": edge.ready["rest"]}


@pytest.fixture
def scene(prepared: Path, ports: dict[str, int], tmp_path: Path) -> Iterator[Scene]:
    """A copy of the folder, so that no command depends on another."""
    folder = tmp_path / "scene"
    shutil.copytree(prepared, folder)
    with chdir(folder):
        yield Scene(folder, ports)


def _in_process(command: str, scene: Scene) -> None:
    """Run a command of `splitpoint` here, where torch is loaded and the zoo is small."""
    with pytest.raises(SystemExit) as end:
        sys.exit(main(shlex.split(scene.rewritten(command))[1:]))
    assert end.value.code == 0


def _in_shell(command: str, scene: Scene) -> None:
    text = scene.rewritten(command)
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)  # noqa: S603, S607
    assert done.returncode == 0, done.stderr


def _until_ready(command: str, scene: Scene) -> None:
    """Start a server, wait until it is ready, and end it."""
    log = scene.folder / "log"
    with Service(shlex.split(scene.rewritten(command))[1:], log):
        pass
    assert '"stopped"' in log.read_text().splitlines()[-1]


def _with_its_cloud(command: str, scene: Scene) -> None:
    """Run an edge that speaks TLS, beside the cloud of the same page."""
    cloud = scene.rewritten(_documented("splitpoint cloud ..."))
    with Service(shlex.split(cloud)[1:], scene.folder / "log") as served:
        _in_process(command, Scene(scene.folder, {"grpc": served.ready["grpc"]}))


def _as_parsed(command: str, scene: Scene) -> None:
    """Let a bench parse its arguments, and no more."""

    class Parsed(Exception):  # noqa: N818 - no error
        pass

    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, words: list[str] | None = None) -> NoReturn:
        parse(parser, words)
        raise Parsed

    words = shlex.split(scene.rewritten(command))
    if words[0] == "python":
        module = importlib.import_module(words[2])
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{words[2]}.__main__")
        run = getattr(module, "BENCH", module).main
    else:
        run = partial(main, words[1:])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patched.setattr(sys, "argv", words[2:])
        with pytest.raises(Parsed):
            run()


def _as_there(command: str, _: Scene) -> None:
    """Look a script or a module of the checkout up."""
    *python, name = command.split()
    path = f"{name.replace('.', '/')}.py" if python else name
    assert (REPOSITORY / path).is_file()


def _as_planned(command: str, _: Scene) -> None:
    """Have `make` say what it would do."""
    make = ["make", "--dry-run", *shlex.split(command)[1:]]
    done = subprocess.run(make, cwd=REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr


def _as_composed(command: str, _: Scene) -> None:
    """Look files, profiles and services of `docker compose` up."""
    for each in command.split("&&"):
        words = shlex.split(each)[2:]
        parser = argparse.ArgumentParser()
        parser.add_argument("-f", action="append")
        parser.add_argument("--profile")
        parser.add_argument("verb", choices=["up", "down", "logs", "run", "restart"])
        parser.add_argument("rest", nargs=argparse.REMAINDER)
        given = parser.parse_args(words)
        services: dict[str, dict[str, Any]] = {}
        for file in given.f or ["docker-compose.yml"]:
            services |= yaml.safe_load((REPOSITORY / file).read_text())["services"]
        named = {word for word in given.rest if not word.startswith("-")}
        assert named <= set(services)
        profiles = {name for service in services.values() for name in service.get("profiles", [])}
        assert {given.profile} - {None} <= profiles


def _as_a_setting(command: str, _: Scene) -> None:
    """Look a setting of the kernel up."""
    name = command.split()[-1].partition("=")[0]
    assert Path("/proc/sys", *name.split(".")).exists()


def _as_in_the_makefile(command: str, _: Scene) -> None:
    """Look up that `make` makes the environment."""
    assert f"VENV := {Path(command.split()[1]).parts[0]}" in (REPOSITORY / "Makefile").read_text()


def _as_a_target(command: str, _: Scene) -> None:
    """Look up a stage of the Dockerfile."""
    words = shlex.split(command)
    stages = (REPOSITORY / words[words.index("-f") + 1]).read_text()
    assert f" AS {words[words.index('--target') + 1]}\n" in stages


WAYS: list[tuple[str, Callable[[str, Scene], None]]] = [
    (r"splitpoint bench ", _as_parsed),  # an hour
    (r"python -m bench\.", _as_parsed),  # minutes to hours, some need a kernel's shaped links
    (r"splitpoint cloud ", _until_ready),
    (r"splitpoint edge .*--source ", _until_ready),
    (r"splitpoint edge .*--tls-", _with_its_cloud),
    (r"splitpoint ", _in_process),
    (r"17 3 \* \* \*  ", _in_process),
    (r"curl ", _in_shell),
    (r"mv current ", _in_shell),
    (r'EDGES="', _in_shell),
    (r"\.ci/|\.venv/bin/python -m tests\.", _as_there),  # environments of their own, minutes
    (r"make ", _as_planned),  # these tests are one of its commands, the demo takes minutes
    (r"docker compose ", _as_composed),  # an engine, and minutes: docker/check.sh
    (r"docker buildx ", _as_a_target),  # an engine, and minutes
    (r"sysctl -w ", _as_a_setting),  # it would change this machine
    (r"\. \.venv/bin/activate$", _as_in_the_makefile),  # it changes a shell and nothing else
]


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.place)
def test_it_runs(snippet: Snippet, scene: Scene) -> None:
    if snippet.is_program:
        exec(compile(scene.rewritten(snippet.text), snippet.place, "exec"), {})  # noqa: S102
        return
    way = next((way for start, way in WAYS if re.match(start, snippet.text)), None)
    assert way is not None, f"{snippet.text}: say in WAYS how this is run"
    way(snippet.text, scene)


def test_every_way_is_needed() -> None:
    commands = [snippet.text for snippet in SNIPPETS if not snippet.is_program]
    for start, _ in WAYS:
        assert any(re.match(start, command) for command in commands), start
    for pattern, _ in REWRITTEN:
        assert any(re.search(pattern, snippet.text) for snippet in SNIPPETS), pattern


PAGE = """
Text.

    one command        # and why
    $ two \\
        lines

```python
x = 1
```

```text
    no command
```

```sh
three
```

| step | command |
|---|---|
| four | `splitpoint four` |
| not `splitpoint five`, but more | `splitpoint five` and `six` |
"""


def test_commands_and_programs_are_found() -> None:
    assert snippets("page.md", PAGE) == [
        Snippet("page.md:4", "one command", is_program=False),
        Snippet("page.md:5", "two lines", is_program=False),
        Snippet("page.md:9", "x = 1\n", is_program=True),
        Snippet("page.md:17", "three", is_program=False),
        Snippet("page.md:22", "splitpoint four", is_program=False),
    ]
