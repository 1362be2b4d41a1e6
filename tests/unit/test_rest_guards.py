"""What every request passes on both ends: parameters, other sites' pages, and /docs by itself."""

import base64
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi import FastAPI

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from edge import rest as edge_rest
from edge.detector import Detector
from tests import tiny
from tests.asgi import request


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture(scope="module")
def cloud(bundle: Bundle) -> Iterator[FastAPI]:
    with ThreadPoolExecutor(1) as workers:
        yield cloud_rest.create_app(DataPlane(Tails(bundle), Admission(workers, 1)))


@pytest.fixture(scope="module")
def edge(bundle: Bundle) -> Iterator[FastAPI]:
    detector = Detector(bundle, None)
    yield edge_rest.create_app(detector)
    detector.close()


@pytest.fixture(params=["edge", "cloud"])
def app(request: pytest.FixtureRequest) -> FastAPI:
    """Either end: what follows holds on both."""
    found: FastAPI = request.getfixturevalue(request.param)
    return found


EVERYWHERE = ("/v1/plans", "/livez", "/metrics", "/docs", "/openapi.json")


@pytest.mark.parametrize("path", EVERYWHERE)
def test_an_unknown_parameter_is_named(app: FastAPI, path: str) -> None:
    answer = request(app, "GET", path, params={"verbose": "1"})
    assert answer.status_code == 422
    assert "unknown query parameter 'verbose'" in answer.json()["error"]["message"]


def test_the_known_parameters_are_named_beside_it(app: FastAPI) -> None:
    answer = request(app, "POST", "/v1/detect", content=tiny.png(), params={"treshold": "0.5"})
    assert answer.status_code == 422
    assert re.search(
        r"'treshold': /v1/detect takes .*score_threshold", answer.json()["error"]["message"]
    )


def test_a_parameter_given_twice_is_refused(app: FastAPI) -> None:
    answer = request(app, "POST", "/v1/detect?score_threshold=0.5&score_threshold=0.9")
    assert answer.status_code == 422
    assert "given twice" in answer.json()["error"]["message"]


def test_what_strangers_send_is_not_repeated_at_length(app: FastAPI) -> None:
    query = "&".join(f"{'x' * 400}{index}=1" for index in range(20))
    answer = request(app, "GET", f"/livez?{query}")
    assert answer.status_code == 422
    assert len(answer.json()["error"]["message"]) < 500


OTHER = {"origin": "https://evil.example"}
HERE = {"origin": "http://test"}


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, True),  # a program
        (HERE, True),  # our own page, in a browser of old
        ({**HERE, "sec-fetch-site": "same-origin"}, True),
        ({"origin": "https://proxied", "sec-fetch-site": "same-origin"}, True),
        (OTHER, False),
        ({"origin": "null"}, False),  # a page in a sandbox
        ({"origin": "http://test:1"}, False),  # another port of this host
        ({"origin": "http://[::1"}, False),  # no address
        ({**OTHER, "sec-fetch-site": "cross-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({**HERE, "sec-fetch-site": "same-site"}, False),
    ],
)
def test_a_page_of_another_site_starts_nothing(
    app: FastAPI, headers: dict[str, str], passes: bool
) -> None:
    answer = request(app, "POST", "/v1/detect", content=b"no image", headers=headers)
    assert answer.status_code == (415 if passes else 403)


def test_a_page_of_another_site_starts_no_profile(cloud: FastAPI) -> None:
    mine = request(cloud, "POST", "/v1/edges/x/profile")
    answer = request(cloud, "POST", "/v1/edges/x/profile", headers=OTHER)
    assert (mine.status_code, answer.status_code) == (404, 403)
    assert "https://evil.example" in answer.json()["error"]["message"]


def test_reading_is_open_to_links_from_elsewhere(app: FastAPI) -> None:
    headers = {"sec-fetch-site": "cross-site"}
    assert request(app, "GET", "/livez", headers=headers).status_code == 200


@pytest.mark.parametrize("path", [*EVERYWHERE, "/nowhere"])
def test_every_answer_is_taken_for_what_it_is(app: FastAPI, path: str) -> None:
    headers = request(app, "GET", path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in headers["content-security-policy"]


def test_the_documentation_needs_nothing_from_elsewhere(app: FastAPI) -> None:
    answer = request(app, "GET", "/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", answer.text)
    assert "http" not in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_documentation_tells_of_routes_parameters_and_answers(app: FastAPI) -> None:
    text = request(app, "GET", "/docs").text
    for told in ("/v1/detect", "/v1/plans", "/livez", "score_threshold", "413", "Retry-After"):
        assert told in text
    assert 'type="file"' in text


def test_the_documents_policy_admits_its_own_script(app: FastAPI) -> None:
    answer = request(app, "GET", "/docs")
    for tag in ("script", "style"):
        found = re.search(f"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert found is not None
        digest = base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in answer.headers["content-security-policy"]


def test_the_description_names_what_a_busy_server_answers(app: FastAPI) -> None:
    answers = request(app, "GET", "/openapi.json").json()["paths"]["/v1/detect"]["post"]
    assert {"403", "408", "413", "415", "422", "503"} <= set(answers["responses"])
