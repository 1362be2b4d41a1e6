"""Mutual TLS between real processes, with certificates by the script that containers use."""

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from bench.processes import Service
from tests import tiny
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


def make_certs(folder: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    command = ["sh", str(REPOSITORY / "docker" / "make_certs.sh"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    return folder


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certs(tmp_path_factory.mktemp("certs"))


def _cloud(bundle: Path, certs: Path, log: Path) -> Service:
    ports = ("--grpc-port", "0", "--rest-port", "0")
    tls = ("--tls-cert", str(certs / "cloud.pem"), "--tls-key", str(certs / "cloud.key"))
    return Service(
        ["cloud", "--bundle", str(bundle), *ports, *tls, "--tls-client-ca", str(certs / "ca.pem")],
        log,
    )


def _edge(bundle: Path, cloud: Service, log: Path, *tls: str) -> Service:
    address = f"127.0.0.1:{cloud.ready['grpc']}"
    command = ["edge", "--bundle", str(bundle), "--cloud", address, "--plan", tiny.SPLIT]
    return Service([*command, "--listen", "127.0.0.1:0", *tls], log)


def _own(certs: Path) -> tuple[str, ...]:
    return ("--tls-cert", str(certs / "edge.pem"), "--tls-key", str(certs / "edge.key"))


def _detect(edge: Service) -> httpx.Response:
    url = f"http://127.0.0.1:{edge.ready['rest']}/v1/detect"
    return httpx.post(url, content=tiny.png(), timeout=60, trust_env=False)


def test_an_edge_with_a_certificate_is_served(bundle: Path, certs: Path, tmp_path: Path) -> None:
    with (
        _cloud(bundle, certs, tmp_path / "cloud.log") as cloud,
        _edge(
            bundle, cloud, tmp_path / "edge.log", "--tls-ca", str(certs / "ca.pem"), *_own(certs)
        ) as edge,
    ):
        answer = _detect(edge)
    assert answer.status_code == 200
    assert answer.json()["plan"]["kind"] == "split"


def test_no_other_edge_is(bundle: Path, certs: Path, tmp_path: Path) -> None:
    strangers = make_certs(tmp_path / "strangers")
    ca = ("--tls-ca", str(certs / "ca.pem"))
    ways = {
        "in the clear": (),
        "without a certificate": ca,
        "with a stranger's": (*ca, *_own(strangers)),
        "that does not trust this cloud": (
            "--tls-ca",
            str(strangers / "ca.pem"),
            *_own(certs),
        ),
    }
    with _cloud(bundle, certs, tmp_path / "cloud.log") as cloud:
        for way, tls in ways.items():
            with _edge(bundle, cloud, tmp_path / "edge.log", *tls) as edge:
                answer = _detect(edge)
            assert answer.status_code == 503, way
            assert "--tls-ca" in answer.json()["error"]["message"], way
