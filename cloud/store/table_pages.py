"""Pages of the latency tables, for `GET /v1/tables`: a store may hold more than one answer should.

    rows of sources, plans and stages, in order | rows of segments, in order
    ^ no cursor       ^ cursor: the last row that was sent, as text that callers give back

A cursor names a row and not a number of rows, so that nothing is left out or sent twice when rows
come and go between two pages.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cloud.store.stage_rows import StoredRow
from cloud.store.store import Store
from common.errors import SettingsError
from common.stages import OBSERVED
from common.tables.rows import LatencyRow

MAX_CURSOR_CHARACTERS = 32_768

_Threads = Annotated[int, Field(ge=0, lt=2**63)]
_Stage = tuple[str, str, str, _Threads, str, str]
"""Edge, device, runtime, threads, plan and stage of a row."""

_Segment = tuple[str, str, _Threads, str, str, str, str, str]
"""Key of a row, `LatencyRow.key`."""


class _Cursor(BaseModel):
    """The last row that was sent; none of either kind before the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: _Stage | None = None
    segment: _Segment | None = None

    @field_validator("stage")
    @classmethod
    def _stage_is_one(cls, key: _Stage | None) -> _Stage | None:
        if key is not None and key[5] not in OBSERVED:
            raise ValueError(f"no stage {key[5]}")
        return key


@dataclass(frozen=True)
class Page:
    """Some rows of the tables.

    Attributes:
        rows: Of sources, plans and stages.
        tables: Of segments; they begin when there are no more of the others.
        next: Cursor of the next page; None if there is none.
    """

    rows: Sequence[StoredRow]
    tables: Sequence[LatencyRow]
    next: str | None


def read_page(store: Store, cursor: str | None, limit: int) -> Page:
    """A page of a store's tables.

    Args:
        store: The store.
        cursor: `Page.next` of the page before; None for the first.
        limit: Rows of both kinds together at the most.

    Raises:
        SettingsError: If the cursor is none.
        StoreError: If the store cannot be read.
    """
    after = _Cursor() if cursor is None else _parsed(cursor)
    rows: list[StoredRow] = []
    if after.segment is None:
        rows = store.table(after.stage, limit + 1)
        if len(rows) > limit:
            return Page(rows[:limit], (), _text(_Cursor(stage=_key(rows[limit - 1]))))
    tables = sorted(store.latency_rows(), key=lambda row: row.key)
    left = [row for row in tables if after.segment is None or row.key > after.segment]
    sent = left[: limit - len(rows)]
    if len(sent) == len(left):
        return Page(rows, sent, None)
    last = _Cursor(segment=sent[-1].key) if sent else _Cursor(stage=_key(rows[-1]))
    return Page(rows, sent, _text(last))


def _key(row: StoredRow) -> _Stage:
    source = row.source
    return source.edge, source.device, source.runtime, source.threads, row.plan, row.stage


def _text(cursor: _Cursor) -> str:
    text = cursor.model_dump_json(exclude_none=True)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _parsed(cursor: str) -> _Cursor:
    """The key of the last row that was sent.

    Raises:
        SettingsError: If it is none.
    """
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return _Cursor.model_validate_json(text)
    except ValueError as error:  # no base64, no UTF-8, no JSON, or another one
        raise SettingsError("cursor: expected `next` of the page before, unchanged") from error
