"""The files around containers, as far as they can be checked without any."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from cloud.admission import Admission
from cloud.metrics import CloudMetrics
from cloud.store import Store
from cloud.streams import Streams
from common.bundle import Bundle
from common.link import parse_link
from common.rpc import splitpoint_pb2 as pb
from edge.client import CloudClient
from edge.detector import Detector
from edge.metrics import EdgeMetrics
from edge.source import Camera, open_feed
from edge.transport import GrpcTransport
from splitpoint.demo.prepare import EFFORTS, Aim, prepare
from tests import tiny
from tests.conftest import REPOSITORY

DOCKER = REPOSITORY / "docker"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "splitpoint.json"


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of everything that both ends tell under /metrics."""
    folder = tmp_path_factory.mktemp("told")
    bundle = tiny.build(folder / "bundle")
    (folder / "picture.png").write_bytes(tiny.png())
    return _cloud_names(bundle) | _edge_names(bundle, folder)


def _cloud_names(bundle: Bundle) -> set[str]:
    store, streams = Store(), Streams()
    admission = Admission(ThreadPoolExecutor(1), 1)
    metrics = CloudMetrics(bundle.plans, None, store, streams=streams, admission=admission)
    text = generate_latest(metrics.registry).decode()
    store.close()
    return _names(text)


def _edge_names(bundle: Bundle, folder: Path) -> set[str]:
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(lambda: GrpcTransport("127.0.0.1:1"), hello)
    detector = Detector(bundle, client, adaptive=True)
    text = generate_latest(EdgeMetrics(detector, Camera(open_feed(str(folder)))).registry).decode()
    detector.close()
    return _names(text)


def _names(text: str) -> set[str]:
    """From the TYPE lines, which are there without a value, too."""
    names = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names |= {name + part for part in parts}
    return names


def _expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_asks_for_nothing_that_is_not_told(told: set[str]) -> None:
    asked = {name for expr in _expressions() for name in re.findall(r"\bsplitpoint_\w+", expr)}
    assert asked
    assert not asked - told


def test_and_shows_everything_that_is(told: set[str]) -> None:
    asked = " ".join(_expressions())
    shown = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in told}
    shown = {name for name in shown if not name.endswith("_created")}
    assert not {name for name in shown if name not in asked}


def test_panels_have_ids_of_their_own_and_the_provisioned_source() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    (source,) = _yaml(DOCKER / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}


def test_prometheus_asks_the_services_where_they_listen() -> None:
    (job,) = _yaml(DOCKER / "prometheus.yml")["scrape_configs"]
    (static,) = job["static_configs"]
    services = _yaml(REPOSITORY / "docker-compose.yml")["services"]
    for target in static["targets"]:
        name, port = target.split(":")
        assert any(published.endswith(f":{port}") for published in services[name]["ports"])


def test_the_dashboard_is_where_its_provider_looks() -> None:
    (provider,) = _yaml(DOCKER / "grafana/provisioning/dashboards/splitpoint.yml")["providers"]
    volumes = _yaml(REPOSITORY / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./docker/grafana/dashboards:{provider['options']['path']}:ro" in volumes


@pytest.mark.parametrize("name", ["prepare", "cloud", "edge"])
def test_our_services_are_hardened(name: str) -> None:
    service = _yaml(REPOSITORY / "docker-compose.yml")["services"][name]
    assert service["init"]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", ["cloud", "edge"])
def test_servers_are_watched_and_started_again(name: str) -> None:
    service = _yaml(REPOSITORY / "docker-compose.yml")["services"][name]
    assert "/readyz" in service["healthcheck"]["test"][-1]
    assert service["restart"] == "unless-stopped"


def test_images_run_as_a_user() -> None:
    stages = (DOCKER / "Dockerfile").read_text().split("\nFROM ")
    finals = [s for s in stages if re.match(r"base AS (edge|cloud|search)\n", s)]
    assert len(finals) == 3
    assert all("\nUSER splitpoint\n" in stage for stage in finals)


def test_a_bundle_that_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"kept")
    digest = tiny.build(tmp_path / "bundle").digest
    prepare(tmp_path, Aim(parse_link("3mbit"), None), EFFORTS["usual"])  # fetches nothing
    assert Bundle.open(tmp_path / "bundle").digest == digest


def test_nothing_but_the_code_goes_to_a_build() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert not {path for path in kept if not (REPOSITORY / path).exists()}
    assert not kept & {".git", "tests", ".venv", ".demo"}
