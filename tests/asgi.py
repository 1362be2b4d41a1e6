"""Requests to an ASGI app in this process: no socket, no server, no thread of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpx
from fastapi import FastAPI


def request(
    app: FastAPI,
    method: str,
    path: str,
    *,
    content: bytes | Iterable[bytes] | None = None,
    params: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> httpx.Response:
    """Send one request; an iterable body is sent in chunks, without a Content-Length."""
    body = content if content is None or isinstance(content, bytes) else _chunks(content)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=body, params=params, headers=headers)

    return asyncio.run(send())


async def _chunks(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
