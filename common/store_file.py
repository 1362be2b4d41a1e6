"""The file that a cloud keeps its measurements in, and the latency tables that come of it.

    samples --newest of each plan and device--> grouped by segment --> served rows --+
    profiles -------------------------------------------------------> profiled rows -+-> LatencyRows

The cloud alone writes such a file (`cloud.store`). It stands here what is in it, because the search
reads it as well, on another day and without the bundle: which plan's stage is which segment, and
what the cloud itself is, are kept beside the samples.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from common.errors import StoreError
from common.tables import LatencyRow, Place, Segment, Side, merged, read_json, row_of
from common.timing import Timing

MIGRATIONS: Final = (
    """
    CREATE TABLE samples (
        id INTEGER PRIMARY KEY,
        at_s REAL NOT NULL,
        edge TEXT NOT NULL,
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        plan TEXT NOT NULL,
        uplink_bytes INTEGER NOT NULL,
        capture_ms REAL,
        preprocess_ms REAL,
        head_ms REAL,
        encode_ms REAL,
        link_ms REAL,
        queue_ms REAL,
        decode_ms REAL,
        tail_ms REAL,
        postprocess_ms REAL,
        other_ms REAL,
        total_ms REAL
    );
    CREATE INDEX samples_by_source ON samples (edge, device, runtime, plan, at_s);
    CREATE INDEX samples_by_time ON samples (at_s);
    CREATE TABLE hours (
        hour INTEGER NOT NULL,
        edge TEXT NOT NULL,
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        plan TEXT NOT NULL,
        stage TEXT NOT NULL,
        n INTEGER NOT NULL,
        median_ms REAL NOT NULL,
        p90_ms REAL NOT NULL,
        PRIMARY KEY (hour, edge, device, runtime, plan, stage)
    );
    """,
    """
    ALTER TABLE samples RENAME COLUMN link_ms TO uplink_ms;
    ALTER TABLE samples ADD COLUMN downlink_ms REAL;
    ALTER TABLE samples ADD COLUMN threads INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE samples ADD COLUMN uplink_bps REAL;
    ALTER TABLE samples ADD COLUMN rtt_ms REAL;
    DROP INDEX samples_by_source;
    CREATE INDEX samples_by_source ON samples (edge, device, runtime, threads, plan, at_s);
    CREATE INDEX samples_by_device ON samples (device, runtime, threads, plan, at_s);
    CREATE INDEX samples_by_plan ON samples (plan, at_s);
    CREATE TABLE hours_by_threads (
        hour INTEGER NOT NULL,
        edge TEXT NOT NULL,
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        threads INTEGER NOT NULL,
        plan TEXT NOT NULL,
        stage TEXT NOT NULL,
        n INTEGER NOT NULL,
        median_ms REAL NOT NULL,
        p90_ms REAL NOT NULL,
        PRIMARY KEY (hour, edge, device, runtime, threads, plan, stage)
    );
    INSERT INTO hours_by_threads
        SELECT hour, edge, device, runtime, 0, plan,
            CASE stage WHEN 'link' THEN 'uplink' ELSE stage END, n, median_ms, p90_ms
        FROM hours;
    DROP TABLE hours;
    ALTER TABLE hours_by_threads RENAME TO hours;
    CREATE TABLE profiles (
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        threads INTEGER NOT NULL,
        side TEXT NOT NULL,
        segment TEXT NOT NULL,
        bits TEXT NOT NULL,
        n INTEGER NOT NULL,
        median_ms REAL NOT NULL,
        p90_ms REAL NOT NULL,
        low_ms REAL NOT NULL,
        high_ms REAL NOT NULL,
        source TEXT NOT NULL,
        last_seen_s REAL NOT NULL,
        PRIMARY KEY (device, runtime, threads, side, segment, bits, source)
    );
    CREATE TABLE segments (
        plan TEXT NOT NULL,
        stage TEXT NOT NULL,
        side TEXT NOT NULL,
        segment TEXT NOT NULL,
        bits TEXT NOT NULL,
        PRIMARY KEY (plan, stage)
    );
    CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    """,
)
"""One script for each schema version; `PRAGMA user_version` counts those that were run."""

SCHEMA: Final = len(MIGRATIONS)
RECENT: Final = 500
"""Samples that a row is made of: the newest."""

PROFILE_COLUMNS: Final = tuple(LatencyRow.model_fields)

_MAGIC = b"SQLite format 3\0"
_STAGES = ("preprocess", "head", "encode", "decode", "tail", "postprocess")


_Seen = tuple[Any, ...]
"""When, in seconds since the epoch, and what each of `_STAGES` took, or None."""


def read_tables(path: Path) -> list[LatencyRow]:
    """Read latency tables, from JSON or from a cloud's store; the file is left as it is.

    Raises:
        StoreError: If there is no such file, if it is neither, damaged, or of another version.
    """
    return _read_store(path) if is_store(path) else read_json(path)


def is_store(path: Path) -> bool:
    """Whether a file is an SQLite database, by its first bytes.

    Raises:
        StoreError: If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read: {error.strerror}: give a file that `splitpoint profile "
            "--tables` or `splitpoint cloud --store` wrote"
        ) from error


def latency_rows(database: sqlite3.Connection) -> list[LatencyRow]:
    """All rows of a store of this schema: what was put there, and what frames took."""
    columns = ", ".join(PROFILE_COLUMNS)
    kept = database.execute(f"SELECT {columns} FROM profiles")  # noqa: S608 - constants
    put = [LatencyRow(**dict(zip(PROFILE_COLUMNS, row, strict=True))) for row in kept]
    return merged(put, _served(database))


def schema_of(database: sqlite3.Connection) -> int:
    """How many migrations a file has gone through."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _read_store(path: Path) -> list[LatencyRow]:
    # Without a log beside it nobody writes it, and SQLite need not create one to read.
    untouched = "" if path.with_name(path.name + "-wal").exists() else "&immutable=1"
    address = f"{path.absolute().as_uri()}?mode=ro{untouched}"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            _check_version(path, schema_of(database))
            return latency_rows(database)
    except (sqlite3.Error, KeyError, ValueError, TypeError, OverflowError) as error:
        raise StoreError(
            f"{path}: damaged, or no store of a cloud: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_version(path: Path, version: int) -> None:
    if version > SCHEMA:
        raise StoreError(
            f"{path}: written by a newer version (schema {version}, known are up to {SCHEMA}): "
            "upgrade"
        )
    if version == 0:
        raise StoreError(f"{path}: an SQLite file, but not one that `splitpoint cloud` wrote")
    if version < SCHEMA:
        raise StoreError(
            f"{path}: written by an older version (schema {version}, expected {SCHEMA}): start "
            "`splitpoint cloud` with this --store once, which brings it up to date"
        )


def _served(database: sqlite3.Connection) -> list[LatencyRow]:
    """Rows of what frames took: the newest samples of all plans that share a segment."""
    segments = _segments(database)
    taken: dict[tuple[Place, Segment], list[tuple[float, float]]] = defaultdict(list)
    for side, place, plan, samples in _newest(database):
        for segment in segments[plan]:
            if segment.side == side:
                column = 1 + _STAGES.index(segment.stage)
                taken[place, segment] += [
                    (sample[0], sample[column]) for sample in samples if sample[column] is not None
                ]
    rows = []
    for (place, segment), times in sorted(taken.items()):
        newest = sorted(times)[-RECENT:]
        if newest:
            timing = Timing.of([ms for _, ms in newest])
            rows.append(row_of(timing, segment, place, "served", newest[-1][0]))
    return rows


def _segments(database: sqlite3.Connection) -> dict[str, list[Segment]]:
    """The segments of each plan that was ever known."""
    found: dict[str, list[Segment]] = defaultdict(list)
    rows = database.execute("SELECT plan, stage, side, segment, bits FROM segments")
    for plan, stage, side, name, bits in rows:
        if stage in _STAGES:
            found[plan].append(Segment(stage, side, name, bits))
    return found


def of_one_kind() -> str:
    """A query for the newest samples of a plan on edges of one kind, as many of each edge.

    So an edge that sends much, or lies, counts no more than another. It takes device, runtime,
    threads and plan, twice.
    """
    kind = "device = ? AND runtime = ? AND threads = ? AND plan = ?"
    return (
        "SELECT * FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY edge ORDER BY at_s DESC) AS rank "  # noqa: S608
        f"FROM samples WHERE {kind}) WHERE rank <= {RECENT} / "
        f"(SELECT COUNT(DISTINCT edge) FROM samples WHERE {kind})"
    )


def _newest(
    database: sqlite3.Connection,
) -> Iterator[tuple[Side, Place, str, Iterable[_Seen]]]:
    """The newest samples of each plan: on each kind of edge, and in this cloud from all edges."""
    columns = ", ".join(f"{stage}_ms" for stage in _STAGES)
    in_cloud = (
        f"SELECT at_s, {columns} FROM samples "  # noqa: S608
        f"WHERE plan = ? AND at_s >= ? ORDER BY at_s DESC LIMIT {RECENT}"
    )
    on_edge = f"SELECT at_s, {columns} FROM ({of_one_kind()})"  # noqa: S608
    keys = database.execute("SELECT DISTINCT device, runtime, threads, plan FROM samples")
    for *place, plan in keys.fetchall():
        samples = database.execute(on_edge, (*place, plan, *place, plan)).fetchall()
        yield "edge", Place(*place), plan, samples
    about: dict[str, str] = dict(database.execute("SELECT key, value FROM about"))
    if "device" not in about:
        return
    here = Place(about["device"], about["runtime"], int(about["threads"]))
    for (plan,) in database.execute("SELECT DISTINCT plan FROM samples").fetchall():
        samples = database.execute(in_cloud, (plan, float(about["since_s"]))).fetchall()
        yield "cloud", here, plan, samples
