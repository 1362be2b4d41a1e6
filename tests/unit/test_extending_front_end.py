"""The front end that docs/extending.md writes, run as it stands there."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.tails import Tails
from tests import tiny

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"


@pytest.fixture
def plane(tmp_path: Path) -> DataPlane:
    tails = Tails(tiny.build(tmp_path / "b"))
    return DataPlane(tails, Admission(ThreadPoolExecutor(1), 1))


def front_end() -> Any:
    """The class of the page's example."""
    blocks: list[str] = re.findall(
        r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    (source,) = [block for block in blocks if "class LineServer" in block]
    names: dict[str, Any] = {"__name__": "lines"}
    exec(compile(source, "lines", "exec"), names)  # noqa: S102 - our own page
    return names["LineServer"]


def asked(plane: DataPlane, *requests: bytes) -> list[dict[str, Any]]:
    """The answers to requests, each by a connection of its own."""

    async def ask(port: int, request: bytes) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer: dict[str, Any] = json.loads(await reader.read())
        writer.close()
        return answer

    return asyncio.run(served(plane, lambda port: _all(ask(port, each) for each in requests)))


async def served(plane: DataPlane, use: Callable[[int], Awaitable[Any]]) -> Any:
    server = front_end()(plane, "127.0.0.1", 0)
    await server.start()
    try:
        return await use(server.port)
    finally:
        await server.stop(60.0)


async def _all(calls: Any) -> list[Any]:
    return [await call for call in calls]


def test_an_image_is_answered_as_by_the_other_front_ends(plane: DataPlane) -> None:
    image = tiny.png()
    (answer,) = asked(plane, f"{len(image)} 0.25\n".encode() + image)
    expected = asyncio.run(plane.infer(image, "test")).result
    names = plane.tails.bundle.manifest.task.class_names
    assert answer["detections"] == json.loads(json.dumps(expected.to_json(names)))


def test_errors_have_the_status_of_the_table(plane: DataPlane) -> None:
    answers = asked(plane, b"5 0.5\nhello", b"nonsense\n", b"999999999 0.5\n", b"5 7\nhello")
    assert [answer["status"] for answer in answers] == [415, 400, 413, 400]


def test_a_caller_who_waits_for_nothing_does_not_hold_up_the_end(plane: DataPlane) -> None:
    async def leave(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    asyncio.run(served(plane, leave))
