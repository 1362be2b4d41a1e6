"""Strangers at a real cloud's ports: silent, garbled, too many; an honest edge is served beside."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from common.errors import CloudUnavailableError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.tls import ClientTls, channel_credentials
from edge.stream.transport import GrpcTransport
from tests import tiny
from tests.conftest import REPOSITORY
from tests.integration.test_tls import make_certs

LIMIT_S = 120
"""How long a test waits for what must happen: a machine may be busy."""
METHOD = "/splitpoint.v1.SplitService/Stream"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


class Cloud:
    """A `splitpoint cloud` process."""

    def __init__(self, pid: int, ready: dict[str, Any], log: Path) -> None:
        self.pid, self._log = pid, log
        self.grpc: int = ready["grpc"]
        self.rest: int = ready["rest"]

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def peak_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10

    def get(self, path: str) -> Any:
        url = f"http://127.0.0.1:{self.rest}{path}"
        return httpx.get(url, timeout=LIMIT_S, trust_env=False).json()


@contextmanager
def running(
    bundle: Path, folder: Path, *options: str, descriptors: int | None = None
) -> Iterator[Cloud]:
    log, ready_file = folder / "cloud.log", folder / "ready.json"
    ports = ["--grpc-port", "0", "--rest-port", "0", "--ready-file", str(ready_file)]
    command = [sys.executable, "-m", "splitpoint.cli", "cloud", "--bundle", str(bundle), *ports]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    with log.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [*command, *options], stdout=file, stderr=file, cwd=REPOSITORY
        )
    try:
        until(lambda: ready_file.exists() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Cloud(process.pid, json.loads(ready_file.read_text()), log)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@contextmanager
def edge(
    cloud: Cloud, name: str, credentials: grpc.ChannelCredentials | None = None
) -> Iterator[GrpcTransport]:
    """A greeted edge."""
    transport = GrpcTransport(cloud.address, credentials)
    try:
        transport.send(pb.EdgeMessage(hello=_hello(name)))
        assert transport.receive(LIMIT_S).HasField("welcome")
        yield transport
    finally:
        transport.close()


def _hello(name: str) -> pb.Hello:
    return pb.Hello(edge_id=name, bundle_digest=bytes(32))


@contextmanager
def raw_stream(cloud: Cloud, *messages: bytes) -> Iterator[Any]:
    """A stream that sends bytes, and then nothing more until the block ends."""
    over = threading.Event()

    def outgoing() -> Iterator[bytes]:
        yield from messages
        over.wait()

    with grpc.insecure_channel(cloud.address) as channel:
        call = _raw(channel)(outgoing())
        try:
            yield call
        finally:
            over.set()
            call.cancel()


def _raw(channel: grpc.Channel) -> Any:
    """The method as bytes, which gRPC's types do not know."""
    untyped: Any = channel
    return untyped.stream_stream(METHOD)


def end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """How the cloud ends a stream."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in call:
            pass
    error: Any = caught.value
    return error.code(), error.details()


def test_silent_streams_keep_no_edge_out_and_are_ended(bundle: Path, tmp_path: Path) -> None:
    over = threading.Event()

    def silence() -> Iterator[bytes]:
        over.wait()
        yield from ()

    with running(bundle, tmp_path) as cloud:
        channels = [
            grpc.insecure_channel(cloud.address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(2)
        ]
        calls = [_raw(channel)(silence()) for channel in channels * 150]
        with edge(cloud, "honest"):
            codes = {end_of(call)[0] for call in calls}
        over.set()
        for channel in channels:
            channel.close()
    assert codes <= {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_two_hundred_edges_that_connect_at_once_are_all_greeted(
    bundle: Path, tmp_path: Path
) -> None:
    barrier = threading.Barrier(200)

    def connect(number: int) -> None:
        barrier.wait(LIMIT_S)
        with edge(cloud, f"edge-{number}"):
            barrier.wait(LIMIT_S)  # all are there at once

    with running(bundle, tmp_path) as cloud, ThreadPoolExecutor(200) as pool:
        for done in [pool.submit(connect, number) for number in range(200)]:
            done.result(LIMIT_S)


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x2a\x00" * (8 << 20), id="16 MiB of empty fields"),
        # 240 KiB: a Frame within the limit on size, that would be 6 MB as objects.
        pytest.param(b"\x12\x80\x80\x0f" + b"\x2a\x00" * (120 << 10), id="empty payloads"),
        pytest.param(b"\x12\x00\x1a\x00" * (60 << 10), id="frames and reports in turn"),
    ],
)
def test_messages_that_no_edge_sends_cost_little(
    bundle: Path, tmp_path: Path, message: bytes
) -> None:
    hello = pb.EdgeMessage(hello=_hello("stranger")).SerializeToString()

    def send(_: int) -> grpc.StatusCode:
        with raw_stream(cloud, hello, message) as call:
            return end_of(call)[0]

    with running(bundle, tmp_path) as cloud, ThreadPoolExecutor(4) as pool:
        before = cloud.peak_bytes()
        codes = set(pool.map(send, range(4)))
        grown = cloud.peak_bytes() - before
        with edge(cloud, "honest"):
            pass
    assert codes <= {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT}
    assert grown < 24 << 20


def test_peers_that_read_no_answers_cost_little(bundle: Path, tmp_path: Path) -> None:
    probe = pb.EdgeMessage(probe=pb.Probe(frame_id=1, padding=bytes(60_000))).SerializeToString()
    with running(bundle, tmp_path) as cloud, ExitStack() as stack:
        before = cloud.peak_bytes()
        for number in range(20):
            hello = pb.EdgeMessage(hello=_hello(f"deaf-{number}")).SerializeToString()
            stack.enter_context(raw_stream(cloud, hello, *[probe] * 1000))
        honest = stack.enter_context(edge(cloud, "honest"))
        for _ in range(200):
            honest.send(pb.EdgeMessage(probe=pb.Probe(frame_id=1)))
            assert honest.receive(LIMIT_S).HasField("result")
        assert cloud.peak_bytes() - before < 64 << 20


def test_sockets_that_say_nothing_do_not_use_up_the_descriptors(
    bundle: Path, tmp_path: Path
) -> None:
    with (
        running(bundle, tmp_path, "--max-edges", "32", descriptors=256) as cloud,
        ExitStack() as stack,
    ):
        for _ in range(300):
            stack.enter_context(socket.create_connection(("127.0.0.1", cloud.grpc)))
        assert cloud.get("/livez") == {"status": "ok"}

        until(lambda: _greeted(cloud))  # once the silent ones have been given up, at the latest
    assert len(cloud.log) < 10_000


def _greeted(cloud: Cloud) -> bool:
    transport = GrpcTransport(cloud.address)
    try:
        transport.send(pb.EdgeMessage(hello=_hello("honest")))
        return transport.receive(5).HasField("welcome")
    except CloudUnavailableError:
        return False
    finally:
        transport.close()


def _mutual_tls(certs: Path) -> list[str]:
    files = {"cert": "cloud.pem", "key": "cloud.key", "client-ca": "ca.pem"}
    return [part for kind, name in files.items() for part in (f"--tls-{kind}", str(certs / name))]


@pytest.mark.parametrize("with_tls", [False, True])
def test_strangers_leave_few_lines_and_no_stack_trace(
    bundle: Path, tmp_path: Path, with_tls: bool
) -> None:
    options = _mutual_tls(make_certs(tmp_path / "certs")) if with_tls else []
    with running(bundle, tmp_path, *options) as cloud:
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 4,
            b"\x16\x03\x01" + bytes(200),
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 200,
        ):
            for _ in range(100):
                with socket.create_connection(("127.0.0.1", cloud.grpc)) as stranger:
                    stranger.sendall(data)
        if not with_tls:
            for number in range(200):  # hang up at every moment of a stream
                transport = GrpcTransport(cloud.address)
                transport.send(pb.EdgeMessage(hello=_hello(f"edge-{number}")))
                transport.send(pb.EdgeMessage(probe=pb.Probe(frame_id=1)))
                if number % 2:
                    transport.receive(LIMIT_S)
                transport.close()
    assert "Traceback" not in cloud.log
    assert len(cloud.log) < 40_000


def test_a_certificates_name_is_the_edges(bundle: Path, tmp_path: Path) -> None:
    certs = make_certs(tmp_path / "certs")
    own = channel_credentials(ClientTls(certs / "ca.pem", certs / "edge.pem", certs / "edge.key"))
    with (
        running(bundle, tmp_path, *_mutual_tls(certs)) as cloud,
        edge(cloud, "somebody else", own),
        edge(cloud, "edge", own),
    ):
        until(lambda: len(cloud.get("/v1/edges")["edges"]) == 2)
        listed = cloud.get("/v1/edges")["edges"]
    assert [each["edge"] for each in listed] == ["edge", "edge#2"]
    assert cloud.log.count("edge-named-by-certificate") == 1


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--rest-host", "0.0.0.0"], True),  # noqa: S104 - what is warned of
        (["--rest-host", "127.0.0.1", "--host", "0.0.0.0"], False),  # noqa: S104
    ],
)
def test_rest_in_the_clear_beside_certificates_is_warned_of(
    bundle: Path, tmp_path: Path, options: list[str], warned: bool
) -> None:
    tls = _mutual_tls(make_certs(tmp_path / "certs"))
    with running(bundle, tmp_path, *options, *tls) as cloud:
        table = Path(f"/proc/{cloud.pid}/net/tcp").read_text()
        listens = [line.split()[1] for line in table.splitlines() if line.split()[3] == "0A"]
    loopback = f"0100007F:{cloud.rest:04X}"
    assert ("in the clear" in cloud.log) == warned
    assert (loopback in listens) != warned


def test_as_many_files_may_be_open_as_the_system_lets_us(bundle: Path, tmp_path: Path) -> None:
    hard = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 65_536)
    with running(bundle, tmp_path) as cloud:
        limits = Path(f"/proc/{cloud.pid}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert int(line.split()[3]) >= hard or os.getuid() != 0
