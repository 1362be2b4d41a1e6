"""The store: what frames took, in SQLite, and the latency tables that come of it.

    Sample --queue--> writer thread --batches--> samples (newest, raw)  --roll-up--> hours
                                                        |
                                                   table(): n, median, p90, 95 % interval

One writer thread owns the connection; serving a frame never waits for a disk. Raw samples are
bounded in number; before they go, each full hour of them is summed up into one row per source, plan
and stage, and these rows are bounded, too. Everything here can be lost: it is history, and a store
that cannot be read is moved aside and begun anew. Only one that a newer version has written is
refused, because that one is of use to somebody.
"""

import logging
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.samples import STAGES, Sample, Source
from common.errors import StoreError
from common.timing import median_interval

_LOG = logging.getLogger("splitpoint.cloud")

_MIGRATIONS = (
    f"""
    CREATE TABLE samples (
        id INTEGER PRIMARY KEY,
        at_s REAL NOT NULL,
        edge TEXT NOT NULL,
        device TEXT NOT NULL,
        runtime TEXT NOT NULL,
        plan TEXT NOT NULL,
        uplink_bytes INTEGER NOT NULL,
        {", ".join(f"{stage}_ms REAL" for stage in STAGES)}
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
)
"""One script for each schema version; `PRAGMA user_version` counts those that were run."""

SCHEMA = len(_MIGRATIONS)
HOUR_S = 3600

_SOURCE = "edge, device, runtime, plan"
_BATCH = 256
_WAIT_S = 0.5
_MOST_EDGES = 1000
_UPKEEP_S = 60.0
_RECENT = 500
"""Samples of one plan that a table is made of: its newest."""


@dataclass(frozen=True)
class Row:
    """One row of a latency table.

    Attributes:
        source: Who measured.
        plan: Digest of the plan, in hex.
        stage: Of `samples.STAGES`.
        n: Samples.
        median_ms: Their median.
        p90_ms: Their 90th percentile.
        low_ms: Lower end of the median's 95 % interval, from order statistics.
        high_ms: Its upper end.
        last_seen_s: When the newest sample came, in seconds since the epoch.
    """

    source: Source
    plan: str
    stage: str
    n: int
    median_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    last_seen_s: float


class Store:
    """Measurements of all edges.

    Args:
        path: The file; None keeps everything in memory.
        most_samples: Raw samples kept.
        most_hours: Rows of full hours kept.

    Attributes:
        dropped: Samples that were not kept: they came faster than they could be written, or the
            disk failed.
        ignored: By edge, measurements that could not be true.

    Raises:
        StoreError: If the file was written by a newer version, or cannot be created.
    """

    def __init__(
        self, path: Path | None = None, *, most_samples: int = 200_000, most_hours: int = 500_000
    ) -> None:
        self._most_samples = most_samples
        self._most_hours = most_hours
        self._queue: queue.Queue[Sample | threading.Event | None] = queue.Queue(10_000)
        self._lock = threading.Lock()
        self._database = _open(path)
        self._kept_up_s = time.monotonic()
        self.dropped = 0
        self.ignored: Counter[str] = Counter()
        self._writer = threading.Thread(target=self._work, name="store", daemon=True)
        self._writer.start()

    def add(self, sample: Sample) -> None:
        """Keep a sample, a little later; never waits, never raises."""
        try:
            self._queue.put_nowait(sample)
        except queue.Full:
            self.dropped += 1

    def ignore(self, edge: str) -> None:
        """Count a measurement that could not be true."""
        if edge in self.ignored or len(self.ignored) < _MOST_EDGES:
            self.ignored[edge] += 1

    def flush(self) -> None:
        """Wait until everything that was added is written."""
        written = threading.Event()
        self._queue.put(written)
        written.wait()

    def close(self) -> None:
        """Write what waits and let the file go."""
        self._queue.put(None)
        self._writer.join()
        with self._lock:
            self._database.close()

    def table(self) -> list[Row]:
        """The latency table of every source and plan, from its newest samples."""
        columns = ", ".join(f"{stage}_ms" for stage in STAGES)
        query = (
            f"SELECT at_s, {columns} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608 - constants
            "AND plan = ? ORDER BY at_s DESC LIMIT ?"
        )
        found: list[Row] = []
        with self._lock:
            keys = self._database.execute(
                f"SELECT DISTINCT {_SOURCE} FROM samples ORDER BY {_SOURCE}"  # noqa: S608
            ).fetchall()
            for key in keys:
                rows = self._database.execute(query, (*key, _RECENT)).fetchall()
                found += _rows(key, rows)
        return found

    def hours(self) -> list[tuple[int, Source, str, str, int, float, float]]:
        """Full hours: (hour since the epoch, source, plan, stage, n, median ms, p90 ms)."""
        with self._lock:
            rows = self._database.execute(
                f"SELECT hour, {_SOURCE}, stage, n, median_ms, p90_ms FROM hours "  # noqa: S608
                f"ORDER BY hour, {_SOURCE}, stage"
            ).fetchall()
        return [(row[0], Source(*row[1:4]), row[4], row[5], *row[6:]) for row in rows]

    def keep_up(self, now_s: float) -> None:
        """Sum full hours up and drop what is too much; the writer does so every minute."""
        with self._lock, self._database:
            self._roll_up(int(now_s // HOUR_S))
            self._database.execute(
                "DELETE FROM samples WHERE id <= (SELECT MAX(id) FROM samples) - ?",
                (self._most_samples,),
            )
            self._database.execute(
                "DELETE FROM hours WHERE rowid NOT IN "
                "(SELECT rowid FROM hours ORDER BY hour DESC LIMIT ?)",
                (self._most_hours,),
            )

    def _roll_up(self, this_hour: int) -> None:
        done = self._database.execute("SELECT MAX(hour) FROM hours").fetchone()[0]
        first = 0 if done is None else (done + 1) * HOUR_S
        columns = ", ".join(f"{stage}_ms" for stage in STAGES)
        rows = self._database.execute(
            f"SELECT CAST(at_s / {HOUR_S} AS INTEGER), {_SOURCE}, {columns} FROM samples "  # noqa: S608
            "WHERE at_s >= ? AND at_s < ?",
            (first, this_hour * HOUR_S),
        )
        grouped: dict[tuple[int | str, ...], list[tuple[float | None, ...]]] = {}
        for row in rows:
            grouped.setdefault(tuple(row[:5]), []).append(tuple(row[5:]))
        for key, samples in grouped.items():
            for stage, values in _by_stage(samples):
                median, p90 = np.percentile(values, (50, 90))
                self._database.execute(
                    "INSERT OR REPLACE INTO hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*key, stage, len(values), float(median), float(p90)),
                )

    def _work(self) -> None:
        while True:
            batch, waiting, ended = self._next_batch()
            try:
                if batch:
                    self._write(batch)
                if time.monotonic() - self._kept_up_s > _UPKEEP_S:
                    self._kept_up_s = time.monotonic()
                    self.keep_up(time.time())
            except sqlite3.Error:
                self.dropped += len(batch)
                _LOG.exception("%d measurements could not be kept", len(batch))
            for event in waiting:
                event.set()
            if ended:
                return

    def _next_batch(self) -> tuple[list[Sample], list[threading.Event], bool]:
        """Samples of half a second, who waits for them to be written, and whether this was all."""
        batch: list[Sample] = []
        until_s = time.monotonic() + _UPKEEP_S
        while len(batch) < _BATCH:
            try:
                item = self._queue.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(item, Sample):
                return batch, [] if item is None else [item], item is None
            if not batch:
                until_s = time.monotonic() + _WAIT_S
            batch.append(item)
        return batch, [], False

    def _write(self, batch: Iterable[Sample]) -> None:
        places = ", ".join("?" * (6 + len(STAGES)))
        columns = ", ".join(f"{stage}_ms" for stage in STAGES)
        rows = [
            (
                sample.at_s,
                sample.source.edge,
                sample.source.device,
                sample.source.runtime,
                sample.plan,
                sample.uplink_bytes,
                *(sample.stages_ms.get(stage) for stage in STAGES),
            )
            for sample in batch
        ]
        with self._lock, self._database:
            self._database.executemany(
                f"INSERT INTO samples (at_s, {_SOURCE}, uplink_bytes, {columns}) "  # noqa: S608
                f"VALUES ({places})",
                rows,
            )


def _open(path: Path | None) -> sqlite3.Connection:
    if path is None:
        database = sqlite3.connect(":memory:", check_same_thread=False)
        _migrate(database, ":memory:")
        return database
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be created: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        aside = _moved_aside(path)
        _LOG.warning("%s is no store any more (%s): moved to %s, begun anew", path, error, aside)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        _check(database)
        _migrate(database, str(path))
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise sqlite3.DatabaseError(state)


def _migrate(database: sqlite3.Connection, name: str) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA:
        raise StoreError(
            f"{name}: written by a newer version (schema {version}, known are up to {SCHEMA}): "
            "upgrade, or give another --store"
        )
    for number, script in enumerate(_MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _moved_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside


def _by_stage(
    samples: list[tuple[float | None, ...]],
) -> Iterable[tuple[str, list[float]]]:
    for stage, column in zip(STAGES, zip(*samples, strict=True), strict=True):
        values = [value for value in column if value is not None]
        if values:
            yield stage, values


def _rows(key: tuple[str, str, str, str], rows: list[tuple[float, ...]]) -> list[Row]:
    source, plan = Source(*key[:3]), key[3]
    newest = max(row[0] for row in rows)
    found = []
    for stage, values in _by_stage([row[1:] for row in rows]):
        ordered = np.sort(values)
        low, high = median_interval(len(ordered))
        median, p90 = np.percentile(ordered, (50, 90))
        found.append(
            Row(
                source,
                plan,
                stage,
                len(ordered),
                float(median),
                float(p90),
                float(ordered[low]),
                float(ordered[high]),
                newest,
            )
        )
    return found
