"""GET /v1/tables by pages: all of it, in order, each row once, and never much at a time."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.rest import create_app
from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.tables.rows import LatencyRow, RuntimeTarget
from tests import tiny
from tests.asgi import request

EDGES = 7


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store.sqlite")
    bundle = tiny.build(tmp_path / "bundle")
    store.register_plans(bundle.plans)
    store.set_cloud_device(RuntimeTarget("rack", "r", 2), 0.0)
    for digest in bundle.plans:
        for k in range(EDGES):
            source = SampleSource(f"edge \N{SNOWMAN} {k}", "box", "r", 1)
            stages = {"preprocess": 1.0, "head": 2.0, "tail": 3.0, "total": 6.0}
            store.add(Sample(source, digest.hex(), 1000.0, 100, stages))
    store.flush()
    yield store
    store.close()


@pytest.fixture
def cloud(tmp_path: Path, store: Store) -> Iterator[FastAPI]:
    with ThreadPoolExecutor(1) as workers:
        yield create_app(
            DataPlane(Tails(tiny.build(tmp_path / "served")), Admission(workers, 1), store=store)
        )


def pages(cloud: FastAPI, limit: int) -> list[dict[str, Any]]:
    """All pages, as a caller finds them."""
    found: list[dict[str, Any]] = []
    params: dict[str, str | int] = {"limit": limit}
    while True:
        response = request(cloud, "GET", "/v1/tables", params=params)
        assert response.status_code == 200
        found.append(response.json())
        if found[-1]["next"] is None:
            return found
        params["cursor"] = found[-1]["next"]


def test_a_small_table_is_one_page(cloud: FastAPI, store: Store) -> None:
    told = request(cloud, "GET", "/v1/tables").json()
    assert told["next"] is None
    assert len(told["rows"]) == len(store.table())
    assert len(told["tables"]) == len(store.latency_rows())


@pytest.mark.parametrize("limit", [1, 3, 4, 7, 50])
def test_pages_make_up_the_table(cloud: FastAPI, limit: int) -> None:
    whole = request(cloud, "GET", "/v1/tables", params={"limit": 5000}).json()
    found = pages(cloud, limit)
    assert all(len(page["rows"]) + len(page["tables"]) <= limit for page in found)
    assert [row for page in found for row in page["rows"]] == whole["rows"]
    assert [row for page in found for row in page["tables"]] == whole["tables"]
    keys = [LatencyRow.model_validate(row).key for row in whole["tables"]]
    assert keys == sorted(keys)


def test_rows_that_come_between_two_pages_shift_nothing(cloud: FastAPI, store: Store) -> None:
    first = request(cloud, "GET", "/v1/tables", params={"limit": 4}).json()
    store.add(Sample(SampleSource("a new edge", "box", "r", 1), "00" * 32, 1.0, 1, {"total": 1.0}))
    store.flush()
    second = request(
        cloud, "GET", "/v1/tables", params={"limit": 4, "cursor": first["next"]}
    ).json()
    rows = [(row["edge"], row["plan"]["digest"], row["stage"]) for row in second["rows"]]
    assert rows[0][0] == first["rows"][-1]["edge"]
    assert not {(r["edge"], r["plan"]["digest"], r["stage"]) for r in first["rows"]} & set(rows)


def encoded(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    "params",
    [
        {"limit": 0},
        {"limit": 5001},
        {"cursor": "x"},
        {"cursor": "\N{SNOWMAN}"},
        {"cursor": encoded("[]")},
        {"cursor": encoded('{"stage": ["a", "b", "c", 1, "d", "no stage"]}')},
        {"cursor": encoded('{"stage": ["a", "b", "c", 99999999999999999999, "d", "total"]}')},
        {"cursor": encoded('{"stage": ["a"]}')},
        {"cursor": encoded('{"segment": [1, 2]}')},
        {"cursor": "A" * 40_000},
    ],
)
def test_what_is_no_page_is_refused(cloud: FastAPI, params: dict[str, Any]) -> None:
    response = request(cloud, "GET", "/v1/tables", params=params)
    assert response.status_code == 422
    assert "\n" not in response.json()["error"]["message"]
