"""The cloud's data plane in a test, and the gRPC front end over it, without a network."""

import asyncio
from collections.abc import Awaitable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.reference_frames import ReferenceFrames
from cloud.service import SplitService
from cloud.sessions import EdgeSessions, rejection
from cloud.streams import Streams
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.errors import SplitpointError
from common.imaging.placement import fit_image
from common.rpc import splitpoint_pb2 as pb
from edge.detector import find_plan
from edge.head import open_plans
from tests import tiny

HELLO = pb.EdgeMessage(hello=pb.Hello(edge_id="test", bundle_digest=bytes(32)))


class Aborted(Exception):  # noqa: N818
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class FakeContext:
    """The service's side of a stream, without a network."""

    def __init__(self, *messages: pb.EdgeMessage, hang_up: bool = True) -> None:
        self.written: list[pb.CloudMessage] = []
        self.certificate: dict[str, list[bytes]] = {}
        self.reads = 0
        self.wrote = asyncio.Event()
        self._messages: asyncio.Queue[Any] = asyncio.Queue()
        for message in messages:
            self._messages.put_nowait(message)
        if hang_up:
            self._messages.put_nowait(grpc.aio.EOF)

    async def read(self) -> Any:
        message = await self._messages.get()
        self.reads += 1
        if isinstance(message, Exception):
            raise message
        return message

    async def write(self, message: pb.CloudMessage) -> None:
        self.written.append(message)
        self.wrote.set()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.certificate

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        raise Aborted(code, details)


def sessions(
    tails: Tails,
    admission: Admission,
    streams: Streams | None = None,
    *,
    in_flight: int = 8,
    **options: Any,
) -> EdgeSessions:
    """Sessions of edges over a data plane of their own."""
    plane = DataPlane(tails, admission, **options)
    return EdgeSessions(plane, streams, in_flight=in_flight)


def serve(served: EdgeSessions, context: FakeContext) -> Awaitable[None]:
    """Serve one stream by the gRPC service."""
    untyped: Any = context
    return SplitService(served._plane.tails.bundle, served).Stream(untyped, untyped)


def exchange(
    tails: Tails, workers: ThreadPoolExecutor, *messages: pb.EdgeMessage, **options: Any
) -> list[pb.CloudMessage]:
    """What the cloud writes to an edge that sends these messages and hangs up."""

    async def run() -> list[pb.CloudMessage]:
        context = FakeContext(*messages)
        await serve(sessions(tails, Admission(workers, 2), **options), context)
        return context.written

    return asyncio.run(run())


def answer_to(
    plane: DataPlane, message: pb.EdgeMessage, arrived_s: float, references: ReferenceFrames
) -> pb.CloudMessage:
    """What a stream is sent for one message, worked out in this thread."""
    try:
        return pb.CloudMessage(result=plane.run(message, arrived_s, references))
    except SplitpointError as error:
        return rejection(message, error)


def frame(bundle: Bundle, frame_id: int, name: str = tiny.SPLIT) -> pb.EdgeMessage:
    """A frame of the tiny bundle, as an edge sends it."""
    digest = find_plan(bundle, name)
    pixels = fit_image(tiny.image(), (tiny.SIZE, tiny.SIZE))
    payloads = open_plans(bundle, [digest])[digest].cut(pixels).payloads
    return pb.EdgeMessage(
        frame=pb.Frame(
            frame_id=frame_id,
            plan_digest=digest,
            image_width=48,
            image_height=40,
            payloads=payloads,
        )
    )
