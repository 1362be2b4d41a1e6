"""Guards on both ends: checks of every request before its route, headers of every answer.

    request -> not from another site's page -> no unknown query parameter -> route
    answer  <- its content is what its type says, and no page may frame it or add to it

A browser lets any page send requests to any address, and hides only the answers. So whatever a POST
starts, a page of strangers could start, were it not refused here.
"""

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import SettingsError

NO_CONTENT: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_READING = {"GET", "HEAD", "OPTIONS"}
_MOST_SHOWN = 5
_MOST_CHARACTERS = 40


class CrossSiteError(SettingsError):
    """A request that the page of another site makes a browser send."""

    http_status = 403


def refuse_cross_site(request: Request) -> None:
    """Require that a request that starts something comes from no other site's page.

    Programs such as curl send neither `Origin` nor `Sec-Fetch-Site`, and pass; browsers send them,
    and no page can keep them from it.

    Raises:
        CrossSiteError: If it does.
    """
    if request.method in _READING:
        return
    site = request.headers.get("sec-fetch-site")
    if site in {"same-origin", "none"}:
        return
    origin = request.headers.get("origin")
    if site is None and (origin is None or _host_of(origin) == request.headers.get("host")):
        return
    raise CrossSiteError(
        f"a page of {(origin or 'another site')[:200]} may not send {request.method} here: use "
        "the page under /docs, or a program"
    )


def refuse_unknown_parameters(request: Request) -> None:
    """Require that the route has every query parameter, and that each is given once.

    Raises:
        SettingsError: If not; names the unknown parameters and the valid ones.
    """
    given = request.query_params
    if not given:
        return
    route = request.scope.get("route")
    known = set(_parameters(route.dependant)) if isinstance(route, APIRoute) else set()
    unknown = [name[:_MOST_CHARACTERS] for name in given if name not in known]
    if unknown:
        raise SettingsError(
            f"unknown query parameter {', '.join(map(repr, unknown[:_MOST_SHOWN]))}: "
            f"{request.url.path[:200]} takes {', '.join(sorted(known)) or 'none'}"
        )
    if len(given.multi_items()) > len(given):
        raise SettingsError("a query parameter is given twice: give each once")


class AnswerHeaders:
    """Adds what browsers should keep to; a route's own headers win."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Content-Security-Policy", NO_CONTENT)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _parameters(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        yield field.alias
    for each in dependant.dependencies:
        yield from _parameters(each)


def _host_of(origin: str) -> str | None:
    """HOST or HOST:PORT of an Origin header, as a Host header has it; None for an opaque one."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc if parts.scheme in {"http", "https"} and parts.netloc else None
