"""Files for TLS: what works, and the line that a mistake is."""

import shutil
import subprocess
from pathlib import Path

import pytest

from common.errors import SettingsError
from common.rpc.tls import ClientTls, ServerTls, channel_credentials, server_credentials
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    folder = tmp_path_factory.mktemp("certs")
    command = ["sh", str(REPOSITORY / "docker" / "make_certs.sh"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    (folder / "no.pem").write_text("no certificate")
    return folder


def test_no_files_are_no_tls() -> None:
    assert server_credentials(ServerTls()) is None
    assert channel_credentials(ClientTls()) is None


def test_files_that_go_together_are_taken(certs: Path) -> None:
    ca = certs / "ca.pem"
    assert server_credentials(ServerTls(certs / "cloud.pem", certs / "cloud.key", ca))
    assert server_credentials(ServerTls(certs / "cloud.pem", certs / "cloud.key"))
    assert channel_credentials(ClientTls(ca, certs / "edge.pem", certs / "edge.key"))
    assert channel_credentials(ClientTls(ca))


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "message"),
    [
        ("cloud.pem", None, None, "both of --tls-cert and --tls-key"),
        (None, None, "ca.pem", "both of --tls-cert and --tls-key"),
        ("none.pem", "cloud.key", None, r"none\.pem: cannot be read: No such file"),
        ("cloud.pem", "none.key", None, r"none\.key: cannot be read: No such file"),
        (".", "cloud.key", None, "cannot be read: Is a directory"),
        ("cloud.pem", "edge.key", None, "is not the key of the certificate"),
        ("no.pem", "cloud.key", None, "expected a certificate and its key"),
        ("cloud.pem", "no.pem", None, "expected a certificate and its key"),
        ("cloud.pem", "cloud.key", "no.pem", r"no\.pem: expected certificates"),
        ("cloud.pem", "cloud.key", "none.pem", r"none\.pem: cannot be read"),
    ],
)
def test_a_mistake_of_the_cloud_is_one_line(
    certs: Path, cert: str | None, key: str | None, client_ca: str | None, message: str
) -> None:
    files = [None if name is None else certs / name for name in (cert, key, client_ca)]
    with pytest.raises(SettingsError, match=message) as e:
        server_credentials(ServerTls(*files))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("ca", "cert", "key", "message"),
    [
        (None, "edge.pem", "edge.key", "needs --tls-ca"),
        ("ca.pem", "edge.pem", None, "both of --tls-cert and --tls-key"),
        ("no.pem", None, None, "expected certificates"),
        ("ca.pem", "edge.pem", "cloud.key", "is not the key of the certificate"),
    ],
)
def test_a_mistake_of_the_edge_is_one_line(
    certs: Path, ca: str | None, cert: str | None, key: str | None, message: str
) -> None:
    files = [None if name is None else certs / name for name in (ca, cert, key)]
    with pytest.raises(SettingsError, match=message) as e:
        channel_credentials(ClientTls(*files))
    assert "\n" not in str(e.value)
