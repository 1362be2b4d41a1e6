"""Mutual TLS between edge and cloud: PEM files in, gRPC credentials out.

    cloud: --tls-cert, --tls-key [, --tls-client-ca]  -> server_credentials
    edge:  --tls-ca [, --tls-cert, --tls-key]         -> channel_credentials

gRPC takes any bytes for a certificate and fails at the first connection, if it says anything at
all; so files are tried with OpenSSL first, and a mistake is a line at the start.
"""

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.errors import SettingsError


@dataclass(frozen=True)
class ServerTls:
    """The cloud's files: its certificate and key, and who signs those of edges.

    Without `client_ca` every edge is served.
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


@dataclass(frozen=True)
class ClientTls:
    """The edge's files: who signs the cloud's certificate, its own certificate and key."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


def server_credentials(files: ServerTls) -> grpc.ServerCredentials | None:
    """Build the credentials of a server; None without any file: it then serves in cleartext.

    Raises:
        SettingsError: If a file is missing, cannot be read, or does not go with the others.
    """
    if files == ServerTls():
        return None
    if files.cert is None or files.key is None:
        raise SettingsError("TLS needs both of --tls-cert and --tls-key")
    pair = _pair(files.cert, files.key)
    if files.client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials(
        [pair], root_certificates=_authority(files.client_ca), require_client_auth=True
    )


def channel_credentials(files: ClientTls) -> grpc.ChannelCredentials | None:
    """Build the credentials of a client; None without any file: it then uses cleartext.

    Raises:
        SettingsError: If a file is missing, cannot be read, or does not go with the others.
    """
    if files == ClientTls():
        return None
    if files.ca is None:
        raise SettingsError("TLS needs --tls-ca, to verify the cloud by")
    if (files.cert is None) != (files.key is None):
        raise SettingsError("give both of --tls-cert and --tls-key, or neither")
    authority = _authority(files.ca)
    if files.cert is None or files.key is None:
        return grpc.ssl_channel_credentials(authority)
    key, cert = _pair(files.cert, files.key)
    return grpc.ssl_channel_credentials(authority, key, cert)


def certificate_name(peer: Mapping[str, object]) -> str | None:
    """Whom a peer's certificate names: its common name, else its first alternative name.

    Args:
        peer: Of `grpc.ServicerContext.auth_context`.

    Returns:
        None if the peer showed no certificate; "" if it has no name.
    """
    for key in ("x509_common_name", "x509_subject_alternative_name"):
        values = peer.get(key)
        first = next(iter(values), b"") if isinstance(values, Iterable) else b""
        if isinstance(first, bytes) and first:
            return first.decode(errors="replace")
    return "" if "x509_pem_cert" in peer else None


def _pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """A key and its certificate, as gRPC orders them."""
    found = _read(key), _read(cert)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A key under a password would otherwise be asked for on the terminal.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise SettingsError(f"{key} is not the key of the certificate {cert}") from error
        raise SettingsError(
            f"{cert}, {key}: expected a certificate and its key, PEM, no password: {_words(error)}"
        ) from error
    return found


def _authority(path: Path) -> bytes:
    found = _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingsError(f"{path}: expected certificates, PEM: {_words(error)}") from error
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error


def _words(error: ssl.SSLError) -> str:
    return (error.reason or "not understood").lower().replace("_", " ")
