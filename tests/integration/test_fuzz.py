"""A short run of the fuzz target: it starts, reads its seeds and finds nothing new at once."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris has no wheel for this platform")
def test_decoders_stand_hostile_bytes(tmp_path: Path) -> None:
    run = subprocess.run(  # noqa: S603 - our own module
        [
            sys.executable,
            *("-m", "tests.fuzz.decoders", "-runs=1000", "-seed=1"),
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert "Done 1000 runs" in run.stderr
