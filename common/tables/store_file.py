"""The file that a cloud keeps its measurements in, and the latency tables that come of it.

    samples --newest of each plan and device--> grouped by segment --> served rows --+
    profiles -------------------------------------------------------> profiled rows -+-> LatencyRows

The cloud alone writes such a file (`cloud.store.store`). It stands here what is in it, because the
search reads it as well, on another day and without the bundle: which plan's stage is which segment,
and what the cloud itself is, are kept beside the samples.
"""

import heapq
import sqlite3
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import StoreError
from common.stages import COMPUTED
from common.tables.rows import LatencyRow, RuntimeTarget, Segment, Side, merged, read_json, row_of
from common.tables.timing import Timing

APPLICATION_ID: Final = 1397771348
"""Distinguishes a store from the SQLite files of other programs ("SPLT")."""

_FIRST_WITH_AN_ID = 3
_TABLES = ("samples", "hours", "profiles", "segments", "about")
"""The first two are as old as the store."""

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
    # Segments belong to networks, which older rows do not name. Segments are written anew by each
    # start of a cloud, and samples name plans by digest, so both stay of use. The index holds
    # all of a sample: the newest of one source and plan are many, and lie apart in the table.
    """
    PRAGMA application_id = 1397771348;
    DROP INDEX samples_by_device;
    DROP INDEX samples_by_source;
    CREATE INDEX samples_by_source ON samples (
        edge, device, runtime, threads, plan, at_s, uplink_bytes, uplink_bps, rtt_ms,
        capture_ms, preprocess_ms, head_ms, encode_ms, uplink_ms, queue_ms, decode_ms, tail_ms,
        postprocess_ms, downlink_ms, other_ms, total_ms
    );
    DROP TABLE profiles;
    CREATE TABLE profiles (
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        threads INTEGER NOT NULL,
        side TEXT NOT NULL,
        network TEXT NOT NULL,
        segment TEXT NOT NULL,
        bits TEXT NOT NULL,
        n INTEGER NOT NULL,
        median_ms REAL NOT NULL,
        p90_ms REAL NOT NULL,
        low_ms REAL NOT NULL,
        high_ms REAL NOT NULL,
        source TEXT NOT NULL,
        last_seen_s REAL NOT NULL,
        PRIMARY KEY (device, runtime, threads, side, network, segment, bits, source)
    );
    CREATE INDEX profiles_by_time ON profiles (last_seen_s);
    DROP TABLE segments;
    CREATE TABLE segments (
        plan TEXT NOT NULL,
        stage TEXT NOT NULL,
        side TEXT NOT NULL,
        network TEXT NOT NULL,
        segment TEXT NOT NULL,
        bits TEXT NOT NULL,
        PRIMARY KEY (plan, stage)
    );
    DELETE FROM about WHERE key = 'model';
    INSERT INTO about SELECT 'summed_up_to_hour', IFNULL(MAX(hour) + 1, 0) FROM hours;
    """,
)
"""One script for each schema version; `PRAGMA user_version` counts those that were run."""

SCHEMA: Final = len(MIGRATIONS)
RECENT: Final = 500
"""Samples that a row is made of: the newest."""

SOURCE: Final = "edge, device, runtime, threads"
KEY: Final = f"{SOURCE}, plan"
"""Columns of `samples` that its largest index begins with."""

MOST_PROFILES: Final = 50_000
"""Rows that were profiled or simulated; the newest are kept, and read."""

PROFILE_COLUMNS: Final = tuple(LatencyRow.model_fields)

_MOST_BYTES = 1 << 20
"""Most bytes of one value or row that is read: a file may be anybody's."""
_CACHE_KIB = 32 << 10
"""Page cache while a table is made: samples of one plan lie between those of others."""

_MAGIC = b"SQLite format 3\0"


_Seen = tuple[Any, ...]
"""Time of a sample, in seconds since the epoch, and latency of each of `COMPUTED`, or None."""

_Times = NDArray[np.float64]
"""(N, 2): time of a sample, in seconds since the epoch, and latency of one stage, in ms."""


def read_tables(path: Path) -> list[LatencyRow]:
    """Read latency tables, from JSON or from a cloud's store; the file is left as it is.

    Raises:
        StoreError: If there is no such file, if it is neither, damaged, or of another version.
    """
    return _read_store(path) if is_store(path) else read_json(path)


def is_store(path: Path) -> bool:
    """Whether a file is an SQLite database, by its first bytes.

    Raises:
        StoreError: If it cannot be read, or is a folder, a pipe or a device.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise StoreError(f"{path}: cannot be read: expected a file")
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read: {error.strerror}: give a file that `splitpoint profile "
            "--tables` or `splitpoint cloud --store` wrote"
        ) from error


def connect_to_read(path: Path, *, at_rest: bool | None = None) -> sqlite3.Connection:
    """A connection that writes nothing, not even beside the file; threads may share it by turns.

    Args:
        path: The store.
        at_rest: Whether nobody writes it meanwhile, so that SQLite need not create files to read;
            None looks whether there is a log beside it.
    """
    if at_rest is None:
        at_rest = not path.with_name(path.name + "-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if at_rest else ''}"
    database = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=5.0)
    try:
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        database.execute("PRAGMA trusted_schema = OFF")
        database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    except BaseException:
        database.close()
        raise
    return database


def is_ours(database: sqlite3.Connection) -> bool:
    """Whether a cloud wrote this file, of whatever version; also true of one with nothing in it."""
    (application,) = database.execute("PRAGMA application_id").fetchone()
    kinds = dict(database.execute("SELECT name, type FROM sqlite_master"))
    version = schema_of(database)
    if application != APPLICATION_ID and (application != 0 or version >= _FIRST_WITH_AN_ID):
        return False
    if version == 0:
        return not kinds
    # A view of such a name could be anything, and without an end.
    return all(kinds.get(name) == "table" for name in _TABLES[: 2 if version == 1 else None])


def latency_rows(database: sqlite3.Connection) -> list[LatencyRow]:
    """All rows of a store of this schema: those put there, and those of served frames."""
    columns = ", ".join(PROFILE_COLUMNS)
    kept = database.execute(
        f"SELECT {columns} FROM profiles ORDER BY last_seen_s DESC LIMIT {MOST_PROFILES}"  # noqa: S608 - constants
    )
    put = [LatencyRow(**dict(zip(PROFILE_COLUMNS, row, strict=True))) for row in kept]
    return merged(put, _served(database))


def schema_of(database: sqlite3.Connection) -> int:
    """Schema version of a file: the number of migrations that it has gone through."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    return int(version)


def _read_store(path: Path) -> list[LatencyRow]:
    try:
        with closing(connect_to_read(path)) as database:
            _check_version(path, database)
            return latency_rows(database)
    except (sqlite3.Error, KeyError, ValueError, TypeError, OverflowError) as error:
        raise StoreError(
            f"{path}: damaged, or no store of a cloud: {' '.join(str(error).split())[:200]}"
        ) from error


def _check_version(path: Path, database: sqlite3.Connection) -> None:
    version = schema_of(database)
    if version == 0 or not is_ours(database):
        raise StoreError(f"{path}: an SQLite file, but not one that `splitpoint cloud` wrote")
    if version > SCHEMA:
        raise StoreError(
            f"{path}: written by a newer version (schema {version}, known are up to {SCHEMA}): "
            "upgrade"
        )
    if version < SCHEMA:
        raise StoreError(
            f"{path}: written by an older version (schema {version}, expected {SCHEMA}): start "
            "`splitpoint cloud` with this --store once, which brings it up to date"
        )


def newest_by_kind(
    database: sqlite3.Connection, columns: str
) -> Iterator[tuple[RuntimeTarget, str, list[tuple[Any, ...]]]]:
    """The newest samples of each plan on edges of each kind, as many of each edge.

    So an edge that sends much, or lies, counts no more than another. Of more than `RECENT` edges
    the ones seen last count, with a sample each.

    Args:
        database: A store of this schema.
        columns: What is wanted of a sample, in SQL, separated by commas.

    Yields:
        Kind of edge, digest of a plan, and at most `RECENT` samples.
    """
    edges: dict[tuple[str, str, int, str], list[tuple[float, str]]] = defaultdict(list)
    keys = f"SELECT {KEY}, MAX(at_s) FROM samples GROUP BY {KEY}"  # noqa: S608 - constants
    for edge, device, runtime, threads, plan, last_s in database.execute(keys):
        edges[device, runtime, threads, plan].append((last_s, edge))
    query = (
        f"SELECT {columns} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608
        "AND threads = ? AND plan = ? ORDER BY at_s DESC LIMIT ?"
    )
    for (device, runtime, threads, plan), seen in sorted(edges.items()):
        newest = heapq.nlargest(RECENT, seen)
        share = RECENT // len(newest)
        samples: list[tuple[Any, ...]] = []
        for _, edge in newest:
            samples += database.execute(query, (edge, device, runtime, threads, plan, share))
        yield RuntimeTarget(device, runtime, threads), plan, samples


def _served(database: sqlite3.Connection) -> list[LatencyRow]:
    """Rows of served frames: the newest samples of all plans that share a segment."""
    segments = _segments(database)
    taken: dict[tuple[RuntimeTarget, Segment], list[_Times]] = defaultdict(list)
    for side, target, plan, samples in _newest(database):
        times = np.array(samples, np.float64).reshape(-1, 1 + len(COMPUTED))
        for segment in segments[plan]:
            if segment.side == side:
                column = times[:, [0, 1 + COMPUTED.index(segment.stage)]]
                taken[target, segment].append(column[~np.isnan(column[:, 1])])
    rows = []
    for (target, segment), parts in sorted(taken.items(), key=itemgetter(0)):
        times = np.concatenate(parts)
        newest = times[np.argsort(times[:, 0], kind="stable")[-RECENT:]]
        if len(newest):
            timing = Timing.of(newest[:, 1].tolist())
            rows.append(row_of(timing, segment, target, "served", float(newest[-1, 0])))
    return rows


def _segments(database: sqlite3.Connection) -> dict[str, list[Segment]]:
    """Segments of each plan in the store, by digest."""
    found: dict[str, list[Segment]] = defaultdict(list)
    rows = database.execute("SELECT plan, stage, side, network, segment, bits FROM segments")
    for plan, stage, side, network, name, bits in rows:
        if stage in COMPUTED:
            found[plan].append(Segment(stage, side, network, name, bits))
    return found


def _newest(
    database: sqlite3.Connection,
) -> Iterator[tuple[Side, RuntimeTarget, str, Sequence[_Seen]]]:
    """The newest samples of each plan: on each kind of edge, and in this cloud from all edges."""
    columns = ", ".join(("at_s", *(f"{stage}_ms" for stage in COMPUTED)))
    plans = set()
    for target, plan, samples in newest_by_kind(database, columns):
        plans.add(plan)
        yield "edge", target, plan, samples
    about: dict[str, str] = dict(database.execute("SELECT key, value FROM about"))
    if "device" not in about:
        return
    here = RuntimeTarget(about["device"], about["runtime"], int(about["threads"]))
    in_cloud = (
        f"SELECT {columns} FROM samples "  # noqa: S608 - constants
        f"WHERE plan = ? AND at_s >= ? ORDER BY at_s DESC LIMIT {RECENT}"
    )
    for plan in sorted(plans):
        samples = database.execute(in_cloud, (plan, float(about["since_s"]))).fetchall()
        yield "cloud", here, plan, samples
