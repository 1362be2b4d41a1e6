"""Remote profiling: asks a running cloud, over its REST API, to have an edge profile itself."""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from common import errors
from common.errors import CloudUnavailableError, SettingsError, SplitpointError
from common.tables.rows import LatencyRow

_ROWS = TypeAdapter(list[LatencyRow])
_MOST_BYTES = 64 << 20
_MOST_ERROR_BYTES = 64 << 10
_CHUNK_BYTES = 64 << 10
_PATIENCE_S = 60.0
"""Time-out beyond the budget: the edge may be busy, and the link slow."""

# No proxy: a web proxy can rarely reach the cloud.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def profile_edge(cloud: str, edge: str, budget_s: float) -> list[LatencyRow]:
    """Have a connected edge time its plans, and wait for its rows.

    Args:
        cloud: Address of the cloud's REST API, http://HOST:PORT.
        edge: Name of the edge.
        budget_s: Time budget of the edge.

    Raises:
        SettingsError: If the address is invalid, or the cloud refuses.
        CloudUnavailableError: If the cloud cannot be reached, does not answer in time or sends an
            invalid answer.
    """
    path = f"/v1/edges/{urllib.parse.quote(edge, safe='')}/profile?budget_s={budget_s:g}"
    url = _checked(cloud) + path
    request = urllib.request.Request(url, data=b"", method="POST")  # noqa: S310 - checked
    answer = _body(request, cloud, budget_s + _PATIENCE_S)
    try:
        return _ROWS.validate_python(answer["rows"])
    except (KeyError, TypeError, ValidationError) as error:
        raise _no_splitpoint(cloud) from error


def _checked(cloud: str) -> str:
    """Validate an address; returns it without a slash at its end."""
    try:
        parts = urllib.parse.urlsplit(cloud)
        fine = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        fine = False
    if not fine or parts.path.strip("/") or parts.query or parts.fragment:
        raise SettingsError(f"--cloud {cloud!r}: expected http://HOST:PORT, the cloud's REST API")
    return cloud.rstrip("/")


def _body(request: urllib.request.Request, cloud: str, timeout_s: float) -> Any:
    """Send a request; returns the JSON of the answer.

    Raises:
        SplitpointError: If the cloud answers with an error, of the type that it names.
        CloudUnavailableError: If there is no answer, or none of a Splitpoint cloud.
    """
    until_s = time.monotonic() + timeout_s
    try:
        try:
            with _OPENER.open(request, timeout=timeout_s) as response:
                return json.loads(_read(response, _MOST_BYTES, until_s))
        except urllib.error.HTTPError as error:
            raise _told(error, cloud, until_s) from error
    except TimeoutError as error:
        raise CloudUnavailableError(f"{cloud}: no answer within {timeout_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or error
        raise CloudUnavailableError(
            f"{cloud}: cannot be reached ({why}): is `splitpoint cloud` running there?"
        ) from error
    except ValueError as error:
        raise _no_splitpoint(cloud) from error


def _read(response: IO[bytes] | http.client.HTTPResponse, most_bytes: int, until_s: float) -> bytes:
    """Read the body of an answer, in bounded memory and time.

    Raises:
        TimeoutError: If it is not complete at `until_s`, by the monotonic clock: a socket's own
            time-out starts again with each byte.
        ValueError: If it is larger than `most_bytes`.
    """
    # `read` would block until the whole chunk has arrived.
    read = response.read1 if isinstance(response, http.client.HTTPResponse) else response.read
    body = bytearray()
    while part := read(_CHUNK_BYTES):
        body += part
        if len(body) > most_bytes:
            raise ValueError(f"an answer of more than {most_bytes} bytes")
        if time.monotonic() > until_s:
            raise TimeoutError
    return bytes(body)


def _told(error: urllib.error.HTTPError, cloud: str, until_s: float) -> SplitpointError:
    """Convert the cloud's error response to an exception."""
    try:
        body = _read(error.fp, _MOST_ERROR_BYTES, until_s)
        detail: Mapping[str, Any] = json.loads(body)["error"]
        kind, message = str(detail["type"]), " ".join(str(detail["message"]).split())[:500]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return _no_splitpoint(cloud)
    known = getattr(errors, kind, None)
    if isinstance(known, type) and issubclass(known, SplitpointError):
        return known(message)
    return (SettingsError if error.code < 500 else CloudUnavailableError)(f"{cloud}: {message}")


def _no_splitpoint(cloud: str) -> CloudUnavailableError:
    return CloudUnavailableError(
        f"{cloud}: does not answer as this version's cloud does: expected the REST API of "
        "`splitpoint cloud`"
    )
