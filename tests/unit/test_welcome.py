"""The handshake: many edges at once, whatever the store is doing, with what others observed."""

import asyncio
from collections.abc import Awaitable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from grpc.aio import EOF

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.service import SplitService
from cloud.sessions import EdgeSessions
from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.rpc import splitpoint_pb2 as pb
from tests import tiny

EDGES = 200
KIND = ("box", "r", 1)


class Stream:
    """The service's side of a stream of an edge that says hello and hangs up."""

    def __init__(self, edge: str) -> None:
        device, runtime, threads = KIND
        hello = pb.Hello(
            edge_id=edge, bundle_digest=bytes(32), device=device, runtime=runtime, threads=threads
        )
        self._messages: list[Any] = [EOF, pb.EdgeMessage(hello=hello)]
        self.written: list[pb.CloudMessage] = []

    async def read(self) -> Any:
        return self._messages.pop()

    async def write(self, message: pb.CloudMessage) -> None:
        self.written.append(message)

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {}


def serve(service: SplitService, stream: Any) -> Awaitable[None]:
    return service.Stream(stream, stream)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.sqlite")
    for k in range(600):  # more edges than samples count
        stages = {"preprocess": 1.0, "head": 2.0, "decode": 3.0, "tail": 4.0, "total": 10.0}
        store.add(Sample(SampleSource(f"edge-{k}", *KIND), "ab" * 32, 1000.0, 100, stages))
    store.flush()
    yield store
    store.close()


def test_edges_are_welcomed_without_asking_the_database(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a handshake reads no database")

    async def connect(service: SplitService) -> list[Stream]:
        streams = [Stream(f"edge-{k}") for k in range(EDGES)]
        async with asyncio.timeout(60):
            await asyncio.gather(*(serve(service, each) for each in streams))
        return streams

    with ThreadPoolExecutor(1) as workers:
        tails = Tails(tiny.build(tmp_path / "bundle"))
        plane = DataPlane(tails, Admission(workers, 1), store=store)
        service = SplitService(tails.bundle, EdgeSessions(plane))
        monkeypatch.setattr("sqlite3.connect", refuse)
        with store._file._lock:  # the writer is at its disk all the while
            streams = asyncio.run(connect(service))
    monkeypatch.undo()
    for stream in streams:
        (message,) = stream.written
        (learned,) = message.welcome.learned
        assert (learned.plan_digest.hex(), learned.n) == ("ab" * 32, 500)
        assert (learned.edge_us, learned.cloud_us, learned.uplink_bytes) == (3000, 7000, 100)
