"""The cloud's routes about connected edges: who they are, what they reported, profiling them."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fastapi import FastAPI

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge, Edges, ReportedResult
from cloud.rest import create_app
from cloud.store.samples import SampleSource
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from common.tasks.detections import Detections
from edge.detector import find_plan
from tests import tiny
from tests.asgi import request


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def edges() -> Edges:
    return Edges()


@pytest.fixture
def app(bundle: Bundle, edges: Edges) -> Iterator[FastAPI]:
    with ThreadPoolExecutor(1) as workers:
        yield create_app(DataPlane(Tails(bundle), Admission(workers, 1), edges=edges))


async def _nowhere(message: pb.CloudMessage) -> None:
    """Sent, and never answered."""


def _edge(name: str = "door") -> Edge:
    return Edge(SampleSource(name, "box", "runtime"), "00" * 32, "1", _nowhere)


def test_namesakes_are_listed_apart_and_marked(app: FastAPI, edges: Edges) -> None:
    with edges.connected(_edge()), edges.connected(_edge()), edges.connected(_edge("gate")):
        listed = request(app, "GET", "/v1/edges").json()["edges"]
    marks = {each["edge"]: each["duplicate_name"] for each in listed}
    assert marks == {"door": True, "door#2": True, "gate": False}


def test_an_edges_newest_reports_come_first(app: FastAPI, bundle: Bundle, edges: Edges) -> None:
    digest = find_plan(bundle, tiny.EDGE_ONLY)
    found = Detections(
        np.array([[1, 2, 11, 22]], np.float32), np.array([0.5], np.float32), np.array([1], np.int32)
    )
    with edges.connected(_edge("hall/door")) as edge:
        for frame_id in (1, 2):
            edge.found(ReportedResult(frame_id, digest, 1e9, found))
        told = request(app, "GET", "/v1/edges/hall/door/detections").json()
    assert told["edge"] == "hall/door"
    assert [each["frame_id"] for each in told["reports"]] == [2, 1]
    report = told["reports"][0]
    assert report["plan"] == {"name": tiny.EDGE_ONLY, "digest": digest.hex()}
    assert report["detections"][0]["bbox"] == [1, 2, 10, 20]
    gone = request(app, "GET", "/v1/edges/hall/door/detections")
    assert gone.status_code == 404


def test_a_second_profile_at_once_is_a_conflict(app: FastAPI, edges: Edges) -> None:
    async def hold(edge: Edge) -> None:
        asking = asyncio.ensure_future(edge.profile(300.0))
        while not edge._orders:
            await asyncio.sleep(0)
        answer = await asyncio.to_thread(request, app, "POST", "/v1/edges/door/profile")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert answer.status_code == 409
        assert "profiled already" in answer.json()["error"]["message"]

    with edges.connected(_edge()) as edge:
        asyncio.run(hold(edge))
