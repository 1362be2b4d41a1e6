"""Our own servers as child processes."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.processes import ProcessError, Service, ended_by_sigterm


def test_a_prefix_runs_the_command(tmp_path: Path) -> None:
    script = 'echo "asked to run" "$3"; exit 3'  # in place of: python -m splitpoint.cli ...
    service = Service(["cloud"], tmp_path / "log", prefix=["sh", "-c", script, "sh"])
    with pytest.raises(ProcessError, match=r"asked to run splitpoint\.cli"), service:
        pass


def test_sigterm_leaves_a_block_by_its_end() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ended: list[str] = []
    started = ExitStack()
    started.callback(ended.append, "what the block started")
    with pytest.raises(SystemExit, match="143"), ended_by_sigterm(), started:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended
    assert signal.getsignal(signal.SIGTERM) == before
