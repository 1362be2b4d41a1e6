"""Plans change under load: no frame is lost, none answered twice, none by another plan's tail."""

import asyncio
import itertools
import math
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edges
from cloud.reference_frames import ReferenceFrames
from cloud.service import SplitService
from cloud.sessions import EdgeSessions
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.errors import SplitpointError, StaleReferenceError
from common.latency import costs
from common.link.link import Link
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import channel_options
from common.rpc.splitpoint_pb2_grpc import add_SplitServiceServicer_to_server
from common.tasks.detections import Detections
from edge.detector import Detector, find_plan
from edge.planning.controller import PlanController
from edge.planning.planner import PlannerSettings
from edge.planning.timeouts import FrameTimeouts
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport
from tests import tiny

PLANS = (tiny.SPLIT, tiny.CLOUD_ONLY, tiny.SPLIT_8, tiny.SPLIT_VIDEO, tiny.EDGE_ONLY)
SWITCHES = 30
THREADS = 4
FRAMES_BETWEEN = 5
PICTURES = [tiny.image(seed) for seed in range(1, 7)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", PLANS)


class Counting(DataPlane):
    """Remembers what it was asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.served: list[tuple[str, int, bytes]] = []
        self.refused: list[SplitpointError] = []

    def run(
        self, message: pb.EdgeMessage, arrived_s: float, references: ReferenceFrames
    ) -> pb.Result:
        kind = message.WhichOneof("kind") or ""
        body = getattr(message, kind)
        self.served.append((kind, body.frame_id, getattr(body, "plan_digest", b"")))
        try:
            return super().run(message, arrived_s, references)
        except SplitpointError as error:
            self.refused.append(error)
            raise


@contextmanager
def cloud(bundle: Bundle, edges: Edges) -> Iterator[tuple[Counting, str]]:
    """A real gRPC server, in a loop of its own; gives its data plane and address."""
    loop = asyncio.new_event_loop()
    running = threading.Thread(target=loop.run_forever)
    running.start()
    workers = ThreadPoolExecutor(2)

    async def start() -> tuple[grpc.aio.Server, Counting, int]:
        plane = Counting(Tails(bundle), Admission(workers, 2), edges=edges)
        service = SplitService(bundle, EdgeSessions(plane))
        server = grpc.aio.server(options=channel_options())
        add_SplitServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, plane, port

    server, plane, port = asyncio.run_coroutine_threadsafe(start(), loop).result(60)
    try:
        yield plane, f"127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        running.join(60)
        loop.close()
        workers.shutdown()


def same(left: Detections, right: Detections) -> bool:
    return all(
        np.array_equal(getattr(left, column), getattr(right, column))
        for column in ("boxes", "scores", "classes")
    )


def test_no_frame_is_lost_or_doubled_over_many_switches(bundle: Bundle) -> None:
    edges = Edges()
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    with cloud(bundle, edges) as (plane, address):
        client = CloudClient(lambda: GrpcTransport(address), hello, answer_timeout_s=60)
        detector = Detector(bundle, client, adaptive=True)
        assert detector.controller is not None
        detector.controller.close()
        detector.controller = PlanController(
            client,
            costs(bundle.plans),
            Link(1e9, 1e9, 1.0),
            PlannerSettings(switch_cost=math.inf, trial_share=0.0),
        )
        # However busy this machine is: a frame is waited for.
        detector.controller.timeouts = lambda *_: FrameTimeouts(60.0, 60.0)  # type: ignore[method-assign]
        planner = detector.controller._planner
        expected = {
            (digest, number): detector.detect(picture, digest).detections
            for digest in bundle.plans
            for number, picture in enumerate(PICTURES)
        }
        unlike = {d.boxes.tobytes() + d.scores.tobytes() for d in expected.values()}
        assert len(unlike) > len(PICTURES), "plans must differ, or this test tells nothing"
        before = len([kind for kind, *_ in plane.served if kind == "frame"])

        answered: list[tuple[bytes, int, Detections]] = []
        done = threading.Semaphore(0)
        stop = threading.Event()

        def serve(start: int) -> int:
            sent = 0
            while not stop.is_set():
                picture = (sent + start) % len(PICTURES)
                outcome = detector.detect(PICTURES[picture])
                answered.append((outcome.digest, picture, outcome.detections))
                sent += 1
                done.release()
            return sent

        wanted: list[bytes] = []
        with ThreadPoolExecutor(THREADS) as pool:
            serving = [pool.submit(serve, start) for start in range(THREADS)]
            try:
                for name in itertools.islice(itertools.cycle(PLANS), SWITCHES):
                    digest = find_plan(bundle, name)
                    with planner._lock:
                        now = planner._expectations.now(0.0)
                        planner._switch(now[digest], 0.0, name)
                    wanted.append(digest)
                    while done.acquire(blocking=False):
                        pass
                    for _ in range(FRAMES_BETWEEN * THREADS):
                        assert done.acquire(timeout=60)
            finally:
                stop.set()
            sent = sum(each.result(60) for each in serving)
        client.request(pb.Probe())  # what was told before it has arrived when it is answered
        told = edges.find("test")
        reporter = detector.reporter
        assert reporter is not None
        reporter.close(timeout_s=60)
        detector.close()

    assert len(answered) == sent
    assert all(same(found, expected[digest, number]) for digest, number, found in answered)
    used = Counter(digest for digest, _, _ in answered)
    assert set(used) == set(bundle.plans)
    through_cloud = sum(n for digest, n in used.items() if bundle.plans[digest].tail is not None)
    frames = [(frame_id, digest) for kind, frame_id, digest in plane.served if kind == "frame"]
    stale = [error for error in plane.refused if isinstance(error, StaleReferenceError)]
    assert len(stale) == len(plane.refused)
    assert len(frames) - before - len(stale) == through_cloud
    assert (
        Counter(digest for _, digest in frames[before:])[find_plan(bundle, tiny.SPLIT)]
        == (used[find_plan(bundle, tiny.SPLIT)])
    )
    ids = [frame_id for _, frame_id, _ in plane.served]
    assert len(set(ids)) == len(ids)
    reports = sum(kind == "report" for kind, *_ in plane.served)
    assert reporter.sent + reporter.lost == used[find_plan(bundle, tiny.EDGE_ONLY)] + len(PICTURES)
    assert reports == reporter.sent
    assert told.switches == SWITCHES
    assert told.switch is not None
    assert told.switch.plan_digest == wanted[-1]
