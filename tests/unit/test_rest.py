"""REST on both ends, in process: an image in, detections out, errors as one JSON shape."""

import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.reference_frames import ReferenceFrames
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.imaging.images import ImageLimits
from common.rpc import splitpoint_pb2 as pb
from edge import rest as edge_rest
from edge.detector import Detector
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport
from tests import tiny
from tests.asgi import request
from tests.planes import answer_to

LIMITS = ImageLimits(max_bytes=100_000, max_decoded_bytes=700_000)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    tails = Tails(bundle)
    tails.warm_up()
    return tails


@pytest.fixture(scope="module")
def cloud(tails: Tails) -> FastAPI:
    return cloud_rest.create_app(
        DataPlane(tails, Admission(ThreadPoolExecutor(1), 1), image_limits=LIMITS)
    )


@pytest.fixture(scope="module")
def edge(bundle: Bundle, tails: Tails) -> Iterable[FastAPI]:
    """An edge whose cloud is a function call."""
    plane = DataPlane(tails, Admission(ThreadPoolExecutor(1), 1))

    def serve(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        if message.WhichOneof("kind") == "hello":
            return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=tails.digests))]
        return [answer_to(plane, message, 0.0, ReferenceFrames())]

    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    detector = Detector(bundle, CloudClient(lambda: InProcessTransport(serve), hello))
    yield edge_rest.create_app(detector, limits=LIMITS)
    detector.close()


@pytest.fixture(params=["edge", "cloud"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    """Either end: what follows holds on both."""
    found: FastAPI = request.getfixturevalue(request.param)
    return found


def _error(response: httpx.Response) -> str:
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    message: str = body["error"]["message"]
    assert "\n" not in message
    return message


def test_an_image_becomes_detections_in_coco_format(app: FastAPI) -> None:
    response = request(app, "POST", "/v1/detect", content=tiny.png())
    assert response.status_code == 200
    body = response.json()
    assert body["image"] == {"width": 48, "height": 40}
    assert body["detections"]
    for found in body["detections"]:
        x, y, width, height = found["bbox"]
        assert 0 <= x <= x + width <= 48
        assert 0 <= y <= y + height <= 40
        assert found["class_name"] in {"cat", "dog"}
        assert 0.25 <= found["score"] <= 1
    assert body["latency_ms"] == pytest.approx(sum(body["times_ms"].values()), abs=5)


def test_the_lossless_upload_equals_the_whole_network(edge: FastAPI, cloud: FastAPI) -> None:
    ours = request(edge, "POST", "/v1/detect", content=tiny.png(), params={"plan": tiny.CLOUD_ONLY})
    whole = request(cloud, "POST", "/v1/detect", content=tiny.png())
    assert ours.json()["detections"] == whole.json()["detections"]


@pytest.mark.parametrize(("plan", "kind"), [(tiny.SPLIT, "split"), (tiny.EDGE_ONLY, "edge-only")])
def test_a_plan_can_be_asked_for(edge: FastAPI, plan: str, kind: str) -> None:
    body = request(edge, "POST", "/v1/detect", content=tiny.png(), params={"plan": plan}).json()
    assert (body["plan"]["name"], body["plan"]["kind"]) == (plan, kind)
    assert (body["uplink_bytes"] > 0) == (kind == "split")
    by_digest = {"plan": body["plan"]["digest"][:12]}
    again = request(edge, "POST", "/v1/detect", content=tiny.png(), params=by_digest)
    assert again.json()["detections"] == body["detections"]


def test_the_threshold_is_kept(app: FastAPI) -> None:
    params = {"score_threshold": 0.6}
    body = request(app, "POST", "/v1/detect", content=tiny.png(), params=params).json()
    assert all(found["score"] >= 0.6 for found in body["detections"])


def _bomb() -> bytes:
    file = io.BytesIO()
    Image.new("1", (2000, 2000)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 415),  # nothing
        (b"not an image", 415),  # something else
        (tiny.png()[:100], 415),  # cut off
        (bytes(LIMITS.max_bytes + 1), 413),  # too many bytes, announced
        (_bomb(), 413),  # few bytes, too many pixels
    ],
)
def test_what_is_no_usable_image_has_its_status(app: FastAPI, content: bytes, status: int) -> None:
    response = request(app, "POST", "/v1/detect", content=content)
    assert response.status_code == status
    _error(response)


def test_an_unannounced_flood_is_cut_off(app: FastAPI) -> None:
    taken = 0

    def flood() -> Iterable[bytes]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield bytes(10_000)

    response = request(app, "POST", "/v1/detect", content=flood())
    assert response.status_code == 413
    assert taken < 20


@pytest.mark.parametrize("threshold", ["0", "1.5", "-1", "nan", "high"])
def test_a_senseless_threshold_is_422(app: FastAPI, threshold: str) -> None:
    params = {"score_threshold": threshold}
    response = request(app, "POST", "/v1/detect", content=tiny.png(), params=params)
    assert response.status_code == 422
    assert "score_threshold" in _error(response)


def test_an_unknown_plan_is_409_and_lists_the_known(edge: FastAPI) -> None:
    response = request(edge, "POST", "/v1/detect", content=tiny.png(), params={"plan": "best-plan"})
    assert response.status_code == 409
    assert tiny.SPLIT in _error(response)


def test_without_a_cloud_only_edge_only_works(bundle: Bundle) -> None:
    detector = Detector(bundle, None)
    app = edge_rest.create_app(detector)
    split = request(app, "POST", "/v1/detect", content=tiny.png(), params={"plan": tiny.SPLIT})
    assert split.status_code == 503
    assert int(split.headers["retry-after"]) >= 1
    _error(split)
    local = request(app, "POST", "/v1/detect", content=tiny.png(), params={"plan": tiny.EDGE_ONLY})
    assert local.status_code == 200
    assert request(app, "GET", "/readyz").status_code == 503
    detector.close()


def test_the_cloud_is_ready_only_after_its_warm_up(bundle: Bundle) -> None:
    cold = Tails(bundle)
    app = cloud_rest.create_app(DataPlane(cold, Admission(ThreadPoolExecutor(1), 1)))
    assert request(app, "GET", "/livez").status_code == 200
    assert request(app, "GET", "/readyz").status_code == 503
    cold.warm_up()
    assert request(app, "GET", "/readyz").status_code == 200


def test_a_bundle_without_the_whole_network_has_no_upload(tmp_path: Path) -> None:
    split_only = tiny.build(tmp_path / "split", [tiny.SPLIT])
    app = cloud_rest.create_app(DataPlane(Tails(split_only), Admission(ThreadPoolExecutor(1), 1)))
    response = request(app, "POST", "/v1/detect", content=tiny.png())
    assert response.status_code == 409
    assert "cloud-only" in _error(response)


def test_plans_and_documentation_are_there(app: FastAPI) -> None:
    plans = request(app, "GET", "/v1/plans").json()["plans"]
    assert [plan["name"] for plan in plans] == list(tiny.ALL_PLANS)
    assert request(app, "GET", "/docs").status_code == 200
    schema = request(app, "GET", "/openapi.json").json()
    body = schema["paths"]["/v1/detect"]["post"]["requestBody"]["content"]
    assert body["image/jpeg"]["schema"]["format"] == "binary"


def test_unknown_paths_have_the_same_shape_of_error(app: FastAPI) -> None:
    response = request(app, "GET", "/v2/detect")
    assert response.status_code == 404
    _error(response)
