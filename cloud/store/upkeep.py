"""Upkeep of the store: full hours are summed up, and rows that are too many are deleted.

    samples --roll-up--> hours: one row per source, plan and stage of each full hour
    samples, hours, profiles --prune--> the newest of each

It is done in small steps, between which the writer writes what has come.
"""

import sqlite3
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np

from cloud.store.connection import StoreConnection
from cloud.store.stage_rows import STAGE_COLUMNS, PlanKeyColumns, by_stage, quantile
from common.tables.store_file import KEY, MOST_PROFILES

HOUR_S = 3600
ROWS_PER_STEP = 1000
"""Rows that one step of upkeep deletes: some ten milliseconds."""
_LATE_S = 60.0
"""Delay before a full hour is summed up: its last samples may still wait to be written."""


@dataclass(frozen=True)
class StoreLimits:
    """Bounds on the rows of a store.

    Attributes:
        samples: Raw samples kept.
        hours: Rows of full hours kept.
    """

    samples: int
    hours: int


class Upkeep:
    """Sums full hours up and deletes what is too much.

    Args:
        file: The store's file.
        limits: Bounds on its rows.
    """

    def __init__(self, file: StoreConnection, limits: StoreLimits) -> None:
        self._file = file
        self._limits = limits

    def steps(self, now_s: float) -> Generator[None, None, None]:
        """Do all of it, in steps after each of which the writer may do something else.

        Args:
            now_s: In seconds since the epoch.
        """
        yield from self._roll_up(int((now_s - _LATE_S) // HOUR_S))
        yield from self._prune("samples", "id", self._limits.samples)
        yield from self._prune("hours", f"hour, {KEY}, stage", self._limits.hours)
        yield from self._prune("profiles", "last_seen_s", MOST_PROFILES)

    def _prune(self, table: str, order: str, most: int) -> Iterator[None]:
        """Delete the rows of a table that are too many, the first in an order."""
        query = (
            f"DELETE FROM {table} WHERE rowid IN "  # noqa: S608 - constants
            f"(SELECT rowid FROM {table} ORDER BY {order} LIMIT ?)"
        )
        with self._file.reading() as database:
            (count,) = database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()  # noqa: S608
        for left in range(count - most, 0, -ROWS_PER_STEP):
            with self._file.transaction() as database:
                database.execute(query, (min(left, ROWS_PER_STEP),))
            yield

    def _roll_up(self, this_hour: int) -> Iterator[None]:
        """Sum up the hours before this one that were not yet."""
        with closing(self._file.reader()) as database:
            first = _first_hour(database)
            if first > this_hour:  # the clock was ahead: what was summed up then stays
                self._summed_up_to(first := this_hour)
            hour = _next_hour(database, first, this_hour)
            while hour is not None:
                for key in _keys_since(database, hour * HOUR_S):
                    rows = _summed_up(database, hour, key)
                    if rows:
                        self._keep_hours(rows)
                        yield
                self._summed_up_to(hour + 1)
                yield
                hour = _next_hour(database, hour + 1, this_hour)

    def _summed_up_to(self, hour: int) -> None:
        with self._file.transaction() as database:
            database.execute(
                "UPDATE about SET value = ? WHERE key = 'summed_up_to_hour'", (str(hour),)
            )

    def _keep_hours(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._file.transaction() as database:
            database.executemany(
                f"INSERT OR REPLACE INTO hours (hour, {KEY}, stage, n, median_ms, p90_ms) "  # noqa: S608
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )


def _first_hour(database: sqlite3.Connection) -> int:
    """The first hour that was not summed up."""
    query = "SELECT value FROM about WHERE key = 'summed_up_to_hour'"
    (hour,) = database.execute(query).fetchone()
    return int(hour)


def _next_hour(database: sqlite3.Connection, first: int, end: int) -> int | None:
    """The first hour from `first` on and before `end` that there are samples of."""
    query = "SELECT MIN(at_s) FROM samples WHERE at_s >= ? AND at_s < ?"
    (at_s,) = database.execute(query, (first * HOUR_S, end * HOUR_S)).fetchone()
    return None if at_s is None else int(at_s // HOUR_S)


def _keys_since(database: sqlite3.Connection, at_s: float) -> list[PlanKeyColumns]:
    """Sources and plans that there are newer samples of."""
    query = f"SELECT {KEY} FROM samples GROUP BY {KEY} HAVING MAX(at_s) >= ?"  # noqa: S608
    return database.execute(query, (at_s,)).fetchall()


def _summed_up(
    database: sqlite3.Connection, hour: int, key: PlanKeyColumns
) -> list[tuple[Any, ...]]:
    """Rows of `hours` for a source and plan."""
    query = (
        f"SELECT {STAGE_COLUMNS} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608
        "AND threads = ? AND plan = ? AND at_s >= ? AND at_s < ?"
    )
    samples = database.execute(query, (*key, hour * HOUR_S, (hour + 1) * HOUR_S)).fetchall()
    if not samples:
        return []
    columns = np.sort(np.array(samples, np.float64), axis=0)
    return [
        (hour, *key, stage, len(values), quantile(values, 0.5), quantile(values, 0.9))
        for stage, values in by_stage(columns)
    ]
