"""The committed stubs are what `make protos` writes: nobody edited them or forgot it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STUBS = "common/rpc"


def test_the_stubs_belong_to_the_protos(tmp_path: Path) -> None:
    written = subprocess.run(  # noqa: S603 - our own interpreter and paths
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{STUBS}=protos/splitpoint/v1",
            f"--python_out={tmp_path}",
            f"--pyi_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            "protos/splitpoint/v1/splitpoint.proto",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == 0, written.stderr

    fresh = {path.name: path.read_bytes() for path in (tmp_path / STUBS).iterdir()}
    committed = {path.name: path.read_bytes() for path in (ROOT / STUBS).glob("*_pb2*.py*")}

    assert fresh.keys() == committed.keys()
    stale = sorted(name for name in fresh if fresh[name] != committed[name])
    assert not stale, f"run `make protos`: {stale} do not belong to protos/"
