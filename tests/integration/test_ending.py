"""SIGTERM ends a real cloud with success, whatever its threads are at."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.bundle.bundle import Bundle
from common.imaging.placement import fit_image
from common.rpc import splitpoint_pb2 as pb
from edge.detector import find_plan
from edge.head import open_plans
from edge.stream.transport import GrpcTransport
from tests import tiny
from tests.conftest import REPOSITORY

PROGRAM = """
import sys, threading
from pathlib import Path
from cloud import server, tails
from cloud.store import store
begun = Path(sys.argv[2])
def stuck(*_, **__):
    begun.touch()
    threading.Event().wait()
{patch}
server.serve(
    server.CloudSettings(
        Path(sys.argv[1]), grpc_port=0, rest_port=0, ready_file=Path(sys.argv[3])
    )
)
"""

LIMIT_S = 120
"""How long a test waits for what must happen: a machine may be busy."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


class Process:
    """A cloud of which one function never returns; `begun` exists once it was called."""

    def __init__(self, bundle: Path, folder: Path, patch: str) -> None:
        self.begun, self.ready_file = folder / "begun", folder / "ready.json"
        self._log = folder / "cloud.log"
        code = PROGRAM.format(patch=patch)
        command = [sys.executable, "-c", code, str(bundle), str(self.begun), str(self.ready_file)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, cwd=REPOSITORY)  # noqa: S603

    def wait_for(self, path: Path) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not path.exists():
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline_s, self.log
            time.sleep(0.02)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)

    @property
    def log(self) -> str:
        return self._log.read_text()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize(
    "patch",
    [
        "store.Store.__init__ = stuck",
        "server.Bundle.open = stuck",
        "tails.Tails.__init__ = stuck",
        "tails.Tails.warm_up = stuck",
    ],
)
def test_at_its_start(bundle: Path, tmp_path: Path, patch: str) -> None:
    with Process(bundle, tmp_path, patch) as cloud:
        cloud.wait_for(cloud.begun)
        assert cloud.terminate() == 0
    last = json.loads(cloud.log.splitlines()[-1])
    assert (last["event"], last["cut_off"]) == ("stopped", "the start")
    assert "Traceback" not in cloud.log


@pytest.mark.parametrize(
    ("patch", "cut_off"),
    [
        ("tails.TailRunner.finish = stuck", "1 calls"),
        ("tails.TailRunner.finish = stuck; store.Store.close = stuck", "a thread"),
    ],
)
def test_with_a_frame_that_is_never_finished(
    bundle: Path, tmp_path: Path, patch: str, cut_off: str
) -> None:
    with Process(bundle, tmp_path, patch) as cloud:
        cloud.wait_for(cloud.ready_file)
        port = json.loads(cloud.ready_file.read_text())["grpc"]
        transport = GrpcTransport(f"127.0.0.1:{port}")
        hello = pb.Hello(edge_id="test", bundle_digest=bytes(32))
        transport.send(pb.EdgeMessage(hello=hello))
        transport.receive(LIMIT_S)
        transport.send(_frame(bundle))
        cloud.wait_for(cloud.begun)
        assert cloud.terminate() == 0
        transport.close()
    assert not cloud.ready_file.exists()
    last = json.loads(cloud.log.splitlines()[-1])
    assert (last["event"], last["cut_off"]) == ("stopped", cut_off)
    assert "Traceback" not in cloud.log


def _frame(folder: Path) -> pb.EdgeMessage:
    with Bundle.open(folder) as bundle:
        digest = find_plan(bundle, tiny.SPLIT)
        pixels = fit_image(tiny.image(), (tiny.SIZE, tiny.SIZE))
        payloads = open_plans(bundle, [digest])[digest].cut(pixels).payloads
    frame = pb.Frame(plan_digest=digest, image_width=48, image_height=40, payloads=payloads)
    return pb.EdgeMessage(frame=frame)
