"""The files around containers, as far as they can be checked without any."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from cloud.admission import Admission
from cloud.metrics import CloudMetrics
from cloud.store.store import Store
from cloud.streams import Streams
from common.bundle.bundle import Bundle
from common.errors import SettingsError, WeightsError
from common.link.link import parse_link
from common.rpc import splitpoint_pb2 as pb
from common.sizes import parse_size
from edge.capture.sources import Camera, open_feed
from edge.detector import Detector
from edge.metrics import EdgeMetrics
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport
from search.kept import keep
from splitpoint.cli import main
from splitpoint.demo.frames import FITTED, JUDGING, SHOWN, DemoPictures, division
from splitpoint.demo.prepare import EDGE_MEMORY, EFFORTS, LINK, Aim, parser, prepare, request_of
from tests import tiny
from tests.conftest import REPOSITORY

AIM = Aim(parse_link(LINK), parse_size(EDGE_MEMORY))
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


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The volume as `prepare` left it, with pictures and a bundle that are small."""
    (tmp_path / "video.mp4").write_bytes(b"kept")
    frames = tmp_path / "frames" / division()
    for name, numbers in (("calibration", FITTED), ("evaluation", JUDGING), ("shown", SHOWN)):
        (frames / name).mkdir(parents=True)
        for number in numbers:
            (frames / name / f"frame-{number:03d}.jpg").write_bytes(b"kept")
    tiny.build(tmp_path / "bundle")
    pictures = DemoPictures(frames / "calibration", frames / "evaluation", ())
    keep(request_of(AIM, EFFORTS["usual"], pictures), tmp_path / "bundle")
    return tmp_path


def test_the_same_settings_keep_the_bundle(data: Path) -> None:
    digest = Bundle.open(data / "bundle").digest
    prepare(data, AIM, EFFORTS["usual"])  # fetches nothing
    assert Bundle.open(data / "bundle").digest == digest


@pytest.mark.parametrize(
    ("aim", "effort"),
    [
        (replace(AIM, link=parse_link("1mbit/20ms")), "usual"),
        (replace(AIM, edge_memory_bytes=None), "usual"),
        (AIM, "quick"),
    ],
    ids=["SPLITPOINT_SEARCH_LINK", "SPLITPOINT_EDGE_MEMORY", "SPLITPOINT_SEARCH_EFFORT"],
)
def test_another_setting_leads_to_another_search(
    data: Path, monkeypatch: pytest.MonkeyPatch, aim: Aim, effort: str
) -> None:
    """Here it ends where the weights are missing, and leaves the bundle."""
    monkeypatch.setenv("SPLITPOINT_CACHE", str(data / "video.mp4"))
    with pytest.raises(WeightsError):
        prepare(data, aim, EFFORTS[effort])
    Bundle.open(data / "bundle").close()


def test_every_documented_setting_is_read_with_its_default() -> None:
    """Of the table in docs/containers.md."""
    documented = _documented()
    text = (REPOSITORY / "docker-compose.yml").read_text()
    read = dict(re.findall(r"\$\{(SPLITPOINT_\w+):?-([^}]*)\}", text))
    assert documented.keys() == read.keys()
    assert {**read, "SPLITPOINT_MEDIA": "empty"} == documented


def _documented() -> dict[str, str]:
    """Defaults by variable."""
    found: dict[str, str] = {}
    lines = (REPOSITORY / "docs" / "containers.md").read_text().splitlines()
    for line in lines:
        if line.startswith("| `SPLITPOINT_"):
            names, defaults = line.split("|")[1:3]
            values = [value.strip().strip("`") for value in defaults.split(",")]
            found |= dict(zip(re.findall(r"SPLITPOINT_\w+", names), values, strict=True))
    return found


def test_what_prepare_is_told_are_options_that_it_has() -> None:
    """With nothing set, they say what it does by itself; what is set, it takes."""
    (_, _, module, folder, *given) = _yaml(REPOSITORY / "docker-compose.yml")["services"][
        "prepare"
    ]["entrypoint"]
    assert (module, folder) == ("splitpoint.demo.prepare", "/data")
    usual = [re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", option) for option in given]
    assert parser().parse_args([folder, *usual]) == parser().parse_args([folder])
    other = ["--link=1mbit", "--edge-memory=", "--effort=quick"]
    assert [option.partition("=")[0] for option in given] == [o.partition("=")[0] for o in other]
    parsed = parser().parse_args([folder, *other])
    assert (parsed.link, parsed.edge_memory, parsed.effort) == ("1mbit", "", "quick")


def test_an_empty_link_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.build(tmp_path / "bundle")
    (tmp_path / "picture.png").write_bytes(tiny.png())
    command = ["edge", "--bundle", str(tmp_path / "bundle"), "--plan", tiny.EDGE_ONLY]
    monkeypatch.setenv("SPLITPOINT_LINK", "soon")
    assert main([*command, str(tmp_path / "picture.png")]) == SettingsError.exit_code
    monkeypatch.setenv("SPLITPOINT_LINK", "")
    with pytest.raises(SystemExit) as end:
        main([*command, str(tmp_path / "picture.png")])
    assert end.value.code == 0


@pytest.mark.parametrize(("service", "needed"), [("cloud", "prepare"), ("edge", "cloud")])
def test_a_new_bundle_reaches_those_that_hold_the_old_one(service: str, needed: str) -> None:
    """Compose stops and starts them where it makes `prepare` anew."""
    assert _yaml(REPOSITORY / "docker-compose.yml")["services"][service]["depends_on"][needed][
        "restart"
    ]


def test_nothing_but_the_code_goes_to_a_build() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert not {path for path in kept if not (REPOSITORY / path).exists()}
    assert not kept & {".git", "tests", ".venv", ".demo"}
