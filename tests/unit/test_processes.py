"""Our own servers as child processes."""

from pathlib import Path

import pytest

from splitpoint.processes import ProcessError, Service


def test_a_prefix_runs_the_command(tmp_path: Path) -> None:
    script = 'echo "asked to run" "$3"; exit 3'  # in place of: python -m splitpoint.cli ...
    service = Service(["cloud"], tmp_path / "log", prefix=["sh", "-c", script, "sh"])
    with pytest.raises(ProcessError, match=r"asked to run splitpoint\.cli"), service:
        pass
