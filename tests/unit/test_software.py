"""What makes a result: another one is made once any of it changes, and by no other process's."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.runtime.registry import DEFAULT_RUNTIME
from search.cache import Cache
from search.measure.latency import MeasuredLatency
from search.network.cuts import prefix_cuts
from search.prepare import prepare
from search.quantization.calibration import observe
from search.quantization.recipe import rounded
from search.software import code_digest, function_digest, library_versions, software_digest
from search.source import NetworkSource
from tests.affinity import one_core
from tests.conftest import REPOSITORY
from tests.networks import branched_graph, pictures

STAGE = """
import sys
from pathlib import Path
from search.cache import Cache
from search.probe import value
print(Cache(Path(sys.argv[1])).json("probe", ["the same"], value))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our packages, where they may be edited, with a stage that calls another module."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("common", "search"):
        shutil.copytree(
            REPOSITORY / name, root / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    (root / "search/probe.py").write_text(
        "import search.probe_part as part\n\n\ndef value():\n    return part.VALUE\n"
    )
    return root


def run(copy: Path, cache: Path, seed: str = "0") -> str:
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONHASHSEED": seed}
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    done = subprocess.run(  # noqa: S603 - our own code
        [sys.executable, "-c", STAGE, str(cache)],
        cwd=cache,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_an_edit_anywhere_makes_a_result_again(copy: Path, tmp_path: Path) -> None:
    part = copy / "search/probe_part.py"
    part.write_text("VALUE = 1\n")
    assert run(copy, tmp_path) == "1"
    assert run(copy, tmp_path, seed="1") == "1"
    assert len(list(tmp_path.iterdir())) == 1  # found again by another process
    part.write_text("VALUE = 2\n")
    assert run(copy, tmp_path) == "2"
    part.write_text("VALUE = 1\n")
    assert run(copy, tmp_path) == "1"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name",
    ["common/codec/_context.c", "search/zoo/cfg/yolov3-tiny.cfg", "search/wire/tail_adaptation.py"],
)
def test_every_source_counts(copy: Path, name: str) -> None:
    path = copy / name
    before, text = code_digest(copy), path.read_bytes()
    path.write_bytes(text + b"\n")
    assert code_digest(copy) != before
    path.write_bytes(text)
    assert code_digest(copy) == before


def test_where_the_packages_lie_does_not(copy: Path, tmp_path: Path) -> None:
    shutil.copytree(copy / "search", tmp_path / "search")
    shutil.copytree(copy / "common", tmp_path / "common")
    (tmp_path / "search/__pycache__").mkdir(exist_ok=True)
    (tmp_path / "search/__pycache__/x.pyc").write_bytes(b"made by the way")
    assert code_digest(tmp_path) == code_digest(copy)


def test_libraries_that_compute_are_named_with_their_versions() -> None:
    named = dict(line.split(" ", 1) for line in library_versions())
    assert {"numpy", "onnxruntime", "torch", "python"} <= named.keys()
    assert "none" not in (named["numpy"], named["onnxruntime"])
    assert software_digest() == software_digest()


def made_of(text: str) -> Callable[[], Any]:
    """A function of a module of ours, as if its source was this."""
    names: dict[str, Any] = {"__name__": "search.probe"}
    exec(compile(text, "/anywhere/probe.py", "exec"), names)  # noqa: S102 - our own text
    made: Callable[[], Any] = names["made"]
    return made


def test_a_function_is_its_code_and_not_its_place() -> None:
    usual = function_digest(made_of("made = lambda: 1 in {1, 2}"))
    assert function_digest(made_of("\n\n\nmade = lambda: 1 in {1, 2}")) == usual
    others = [
        "made = lambda: 1 in {1, 3}",
        "made = lambda: 2 in {1, 2}",
        "made = lambda: [1 in {1, 2}]",
        "def made(): return 1 in {1, 2}",
        "made = lambda: (lambda: 1 in {1, 2})()",
        "made = lambda: (lambda: 1 in {1, 3})()",
    ]
    digests = [usual, *(function_digest(made_of(text)) for text in others)]
    assert len(set(digests)) == len(digests)


def test_methods_and_partial_functions_are_what_they_call() -> None:
    assert function_digest(functools.partial(prepare, NetworkSource("model"))) == function_digest(
        prepare
    )
    assert function_digest(Cache().arrays) == function_digest(Cache.arrays)
    assert function_digest(Cache().json) != function_digest(Cache().arrays)


def test_times_of_another_machine_or_runtime_are_measured_again(tmp_path: Path) -> None:
    graph = branched_graph()
    network = rounded(graph, observe(graph, pictures(4)))

    def timed(runtime: str = DEFAULT_RUNTIME) -> int:
        cache = Cache(tmp_path / "cache")
        source = MeasuredLatency(
            network, tmp_path, cache=cache, origin="graph", rounds=1, runtime=runtime
        )
        source.times(prefix_cuts(graph)[1:3], lambda _done, _total: None)
        return len(list((tmp_path / "cache").iterdir()))

    assert timed() == 1
    assert timed() == 1
    with one_core():
        assert timed() == 2
    assert timed() == 2
    assert timed("openvino") == 3
    assert timed("openvino") == 3
