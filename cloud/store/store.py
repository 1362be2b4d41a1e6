"""The store: observations of frames, in SQLite, and the latency tables made of them.

    Sample --queue--> writer thread --batches--> samples (newest, raw)  --roll-up--> hours
                           |                            |
        learned() <-- PlanSummary,      table(): of each edge, plan and stage,
                      in memory         latency_rows(): of each segment, with put(): profiled
                                        elsewhere; links(), hours()

What is in the file, `common.tables.store_file` says. One writer thread writes samples; serving a
frame never waits for a disk, and greeting an edge reads memory only. The summary that an edge is
greeted from is loaded when the store is opened and kept up to date by the writer. Everything else
that is read has a connection of its own: SQLite's write-ahead log lets it see one state of the file
while the writer goes on, and neither waits for the other.

Everything is bounded: samples, the sources that they are of, hours, profiles and the summary.
Before raw samples go, each full hour of them is summed up into one row per source, plan and stage.
This upkeep is done in small steps, between which the writer writes what has come. Everything here
can be lost: it is history (`cloud.store.database` begins anew when it must).
"""

import logging
import queue
import sqlite3
import tempfile
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cloud.store.database import open_database
from cloud.store.learned import LinkSeen, PlanMedians, PlanSummary, links
from cloud.store.samples import Sample, SampleSource
from common.bundle.manifest import Plan
from common.errors import StoreError
from common.stages import OBSERVED
from common.tables.rows import LatencyRow, RuntimeTarget, segments
from common.tables.store_file import (
    KEY,
    MOST_PROFILES,
    PROFILE_COLUMNS,
    RECENT,
    SOURCE,
    connect_to_read,
    latency_rows,
)
from common.tables.timing import median_interval

_LOG = logging.getLogger("splitpoint.cloud")

HOUR_S = 3600

MOST_SOURCES = 1000
"""Edges, as (name, device, runtime, threads), that samples are kept of: those seen last."""

_STAGES = ", ".join(f"{stage}_ms" for stage in OBSERVED)
_MEASURED = f"uplink_bytes, uplink_bps, rtt_ms, {_STAGES}"
_BATCH = 256
_WAIT_S = 0.5
_MOST_EDGES = 1000
_UPKEEP_S = 60.0
_LATE_S = 60.0
"""Delay before a full hour is summed up: its last samples may still wait to be written."""
_STEP = 1000
"""Rows that one step of upkeep deletes: some ten milliseconds."""

_Key = tuple[str, str, str, int, str]
"""Edge, device, runtime, threads and plan."""


@dataclass(frozen=True)
class StoredRow:
    """One row of a latency table.

    Attributes:
        source: Who measured.
        plan: Digest of the plan, in hex.
        stage: Of `stages.OBSERVED`.
        n: Samples.
        median_ms: Their median.
        p90_ms: Their 90th percentile.
        low_ms: Lower end of the median's 95 % interval, from order statistics.
        high_ms: Its upper end.
        last_seen_s: When the newest sample came, in seconds since the epoch.
    """

    source: SampleSource
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
        path: The file; None keeps everything in a temporary one, which goes when it is closed.
        most_samples: Raw samples kept.
        most_hours: Rows of full hours kept.
        most_sources: Sources kept; see `MOST_SOURCES`.

    Attributes:
        dropped: Samples that were not kept: they came faster than they could be written, or the
            disk failed.
        ignored: By edge, measurements that could not be true.

    Raises:
        StoreError: If the file was written by a newer version or by another program, is no file,
            or cannot be created.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        most_samples: int = 200_000,
        most_hours: int = 500_000,
        most_sources: int = MOST_SOURCES,
    ) -> None:
        self._most_samples = most_samples
        self._most_hours = most_hours
        self._most_sources = most_sources
        self._queue: queue.Queue[Sample | threading.Event | None] = queue.Queue(10_000)
        self._lock = threading.Lock()
        self._scratch = None if path is not None else _scratch_folder()
        self._path = _file_of(path, self._scratch)
        self._closed = False
        self._summary = PlanSummary()
        self._sources: OrderedDict[SampleSource, None] = OrderedDict()
        self._leaving: dict[SampleSource, None] = {}
        try:
            self._database = open_database(self._path)
            self._load_or_close()
        except BaseException:
            self._remove_scratch()
            raise
        self._kept_up_s = time.monotonic()
        self._upkeep: Generator[None, None, None] | None = None
        self._idle_until_s = self._silent_until_s = 0.0
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
        """Wait until everything that was added is written, unless the store is closed."""
        if self._closed:
            return
        written = threading.Event()
        self._queue.put(written)
        while not written.wait(_WAIT_S) and self._writer.is_alive():
            pass

    def close(self) -> None:
        """Write what waits and let the file go; a second time it does nothing."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._writer.join()
        with self._lock:
            self._database.close()
        self._remove_scratch()

    def table(
        self, after: tuple[str, str, str, int, str, str] | None = None, most: int | None = None
    ) -> list[StoredRow]:
        """The latency table of sources, plans and stages, in this order, from the newest samples.

        Args:
            after: Edge, device, runtime, threads, plan and stage of the row before the first that
                is wanted; None begins with the first.
            most: Rows that are wanted at the most; None for all.
        """
        where = "" if after is None else f"WHERE ({KEY}) >= (?, ?, ?, ?, ?)"
        keys = f"SELECT DISTINCT {KEY} FROM samples {where} ORDER BY {KEY}"  # noqa: S608 - constants
        query = (
            f"SELECT at_s, {_STAGES} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608
            "AND threads = ? AND plan = ? ORDER BY at_s DESC LIMIT ?"
        )
        found: list[StoredRow] = []
        with self._reading() as database:
            for key in database.execute(keys, () if after is None else after[:5]):
                samples = database.execute(query, (*key, RECENT)).fetchall()
                rows = _rows(key, np.array(samples, np.float64))
                if after is not None and key == after[:5]:
                    told = OBSERVED.index(after[5])
                    rows = [row for row in rows if OBSERVED.index(row.stage) > told]
                found += rows
                if most is not None and len(found) >= most:
                    return found[:most]
        return found

    def register_plans(self, plans: Mapping[bytes, Plan]) -> None:
        """Remember which segments plans have, so that the file can be read without their bundle.

        Those of plans that neither this bundle has nor any sample is of are forgotten.

        Args:
            plans: By digest.

        Raises:
            StoreError: If it cannot be written.
        """
        rows = [
            (digest.hex(), each.stage, each.side, each.network, each.name, each.bits)
            for digest, plan in plans.items()
            for each in segments(plan)
        ]
        with self._writing() as database:
            database.execute(
                "DELETE FROM segments WHERE plan NOT IN (SELECT DISTINCT plan FROM samples)"
            )
            database.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", rows)

    def set_cloud_device(self, place: RuntimeTarget, now_s: float) -> None:
        """Say what this cloud itself runs on, from now on.

        Observations of tails on another machine no longer count as this one's.

        Args:
            place: This cloud.
            now_s: In seconds since the epoch.

        Raises:
            StoreError: If it cannot be written.
        """
        fields = {key: str(value) for key, value in place._asdict().items()}
        with self._writing() as database:
            known = dict(database.execute("SELECT key, value FROM about"))
            if fields.items() <= known.items():
                return
            fields["since_s"] = str(now_s)
            database.executemany("INSERT OR REPLACE INTO about VALUES (?, ?)", fields.items())

    def upsert_profiles(self, rows: Iterable[LatencyRow]) -> None:
        """Keep rows of a latency table; of rows of the same thing, the newest.

        Raises:
            StoreError: If they cannot be written.
        """
        columns, places = ", ".join(PROFILE_COLUMNS), ", ".join("?" * len(PROFILE_COLUMNS))
        numbers = "n", "median_ms", "p90_ms", "low_ms", "high_ms", "last_seen_s"
        query = (
            f"INSERT INTO profiles ({columns}) VALUES ({places}) "  # noqa: S608 - constants
            "ON CONFLICT (device, runtime, threads, side, network, segment, bits, source) "
            f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in numbers)} "
            "WHERE excluded.last_seen_s >= last_seen_s"
        )
        with self._writing() as database:
            database.executemany(query, [tuple(row.model_dump().values()) for row in rows])

    def latency_rows(self) -> list[LatencyRow]:
        """The latency table: rows that were put here, and observations of the newest frames.

        Stages on the edge belong to the edge's device, those in the cloud to what it stands on.
        """
        with self._reading() as database:
            return latency_rows(database)

    def learned(self, device: str, runtime: str, threads: int) -> tuple[PlanMedians, ...]:
        """Medians of plans on edges of this kind; a look-up in memory, fit for an event loop."""
        return self._summary.known(RuntimeTarget(device, runtime, threads))

    def links(self) -> list[LinkSeen]:
        """The links of all edges, as they estimated them for their newest frames."""
        with self._reading() as database:
            return links(database)

    def hours(self) -> list[tuple[int, SampleSource, str, str, int, float, float]]:
        """Full hours: (hour since the epoch, source, plan, stage, n, median ms, p90 ms)."""
        with self._reading() as database:
            rows = database.execute(
                f"SELECT hour, {KEY}, stage, n, median_ms, p90_ms FROM hours "  # noqa: S608
                f"ORDER BY hour, {KEY}, stage"
            ).fetchall()
        return [(row[0], SampleSource(*row[1:5]), row[5], row[6], *row[7:]) for row in rows]

    def roll_up_and_prune(self, now_s: float) -> None:
        """Sum full hours up and drop what is too much; the writer does so every minute."""
        for _ in self._steps(now_s):
            pass

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, to read from beside the writer.

        Raises:
            StoreError: If the store is closed, or the file cannot be read.
        """
        try:
            with closing(self._reader()) as database:
                database.execute("BEGIN")
                yield database
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: cannot be read: {error}") from error
        except (ValueError, TypeError, OverflowError) as error:  # words where numbers should be
            why = " ".join(str(error).split())[:200]
            raise StoreError(f"{self._path}: damaged: {why}: move it away") from error

    def _reader(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreError(f"{self._path}: cannot be read: the store is closed")
        return connect_to_read(self._path, at_rest=False)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that raises to its caller if it fails."""
        with self._lock:
            try:
                with self._database:
                    yield self._database
            except sqlite3.Error as error:
                raise StoreError(f"{self._path}: cannot be written: {error}") from error

    def _load_or_close(self) -> None:
        try:
            if self._scratch is not None:
                self._database.execute("PRAGMA synchronous = OFF")  # it is not to outlive a crash
            self._load()
        except BaseException:
            self._database.close()
            raise

    def _load(self) -> None:
        """Fill the summary, and see which sources are too many."""
        keys = f"SELECT {SOURCE} FROM samples GROUP BY {SOURCE} ORDER BY MAX(at_s)"  # noqa: S608
        with self._reading() as database:
            self._sources = OrderedDict.fromkeys(
                SampleSource(*key) for key in database.execute(keys)
            )
            self._summary.load(database)
        self._let_go()

    def _let_go(self) -> None:
        """Choose the sources that are too many: their samples go in steps, the summary now."""
        while len(self._sources) > self._most_sources:
            source, _ = self._sources.popitem(last=False)
            self._leaving[source] = None
            self._summary.forget(source)
        self._summary.publish()

    def _steps(self, now_s: float) -> Generator[None, None, None]:
        """Upkeep, as steps after each of which the writer may do something else."""
        yield from self._roll_up(int((now_s - _LATE_S) // HOUR_S))
        yield from self._prune("samples", "id", self._most_samples)
        yield from self._prune("hours", f"hour, {KEY}, stage", self._most_hours)
        yield from self._prune("profiles", "last_seen_s", MOST_PROFILES)

    def _prune(self, table: str, order: str, most: int) -> Iterator[None]:
        """Delete the rows of a table that are too many, the first in an order."""
        query = (
            f"DELETE FROM {table} WHERE rowid IN "  # noqa: S608 - constants
            f"(SELECT rowid FROM {table} ORDER BY {order} LIMIT ?)"
        )
        with self._reading() as database:
            (count,) = database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()  # noqa: S608
        for left in range(count - most, 0, -_STEP):
            with self._lock, self._database:
                self._database.execute(query, (min(left, _STEP),))
            yield

    def _roll_up(self, this_hour: int) -> Iterator[None]:
        """Sum up the hours before this one that were not yet."""
        with closing(self._reader()) as database:
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
        with self._lock, self._database:
            self._database.execute(
                "UPDATE about SET value = ? WHERE key = 'summed_up_to_hour'", (str(hour),)
            )

    def _keep_hours(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._lock, self._database:
            self._database.executemany(
                f"INSERT OR REPLACE INTO hours (hour, {KEY}, stage, n, median_ms, p90_ms) "  # noqa: S608
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )

    def _work(self) -> None:
        while True:
            batch, waiting, ended = self._next_batch()
            try:
                if batch:
                    self._write(batch)
            except Exception:  # noqa: BLE001 - whatever a batch does, the next one is written
                self.dropped += len(batch)
                self._complain("%d measurements could not be kept so far", self.dropped)
            for event in waiting:
                event.set()
            if ended:
                if self._upkeep is not None:
                    self._upkeep.close()
                return
            try:
                self._step()
            except Exception:  # noqa: BLE001 - it is tried again later
                self._upkeep = None
                self._idle_until_s = time.monotonic() + _UPKEEP_S
                self._complain("upkeep of the store failed")

    def _step(self) -> None:
        """One step of what is to be done beside writing, if anything is."""
        if self._closed or time.monotonic() < self._idle_until_s:
            return
        if self._leaving:
            self._delete_leaving()
        if self._upkeep is None and time.monotonic() - self._kept_up_s > _UPKEEP_S:
            self._kept_up_s = time.monotonic()
            self._upkeep = self._steps(time.time())
        if self._upkeep is not None and next(self._upkeep, self) is self:
            self._upkeep = None

    def _complain(self, what: str, *numbers: int) -> None:
        """Log an error, unless one was logged a moment ago: a full disk fails every batch."""
        if time.monotonic() >= self._silent_until_s:
            self._silent_until_s = time.monotonic() + _UPKEEP_S
            _LOG.exception(what, *numbers)

    def _next_batch(self) -> tuple[list[Sample], list[threading.Event], bool]:
        """Samples of half a second, who waits for them to be written, and whether this was all.

        Nothing is waited for while upkeep is under way.
        """
        batch: list[Sample] = []
        busy = bool(self._leaving) or self._upkeep is not None
        busy = busy and time.monotonic() >= self._idle_until_s
        until_s = time.monotonic() + (0.0 if busy else _UPKEEP_S)
        while len(batch) < _BATCH:
            try:
                item = self._queue.get(timeout=max(0.0, until_s - time.monotonic()))
            except queue.Empty:
                break
            if not isinstance(item, Sample):
                return batch, [] if item is None else [item], item is None
            if not batch and not busy:
                until_s = time.monotonic() + _WAIT_S
            batch.append(item)
        return batch, [], False

    def _write(self, batch: Sequence[Sample]) -> None:
        places = ", ".join("?" * (9 + len(OBSERVED)))
        rows = [
            (
                sample.at_s,
                sample.source.edge,
                sample.source.device,
                sample.source.runtime,
                sample.source.threads,
                sample.plan,
                sample.uplink_bytes,
                sample.uplink_bps,
                sample.rtt_ms,
                *(sample.stages_ms.get(stage) for stage in OBSERVED),
            )
            for sample in batch
        ]
        with self._lock, self._database:
            self._database.executemany(
                f"INSERT INTO samples (at_s, {KEY}, {_MEASURED}) VALUES ({places})",  # noqa: S608
                rows,
            )
        self._learn(batch)

    def _learn(self, batch: Sequence[Sample]) -> None:
        """Bring the summary up to date with samples that were written."""
        for sample in batch:
            self._summary.add(sample)
            self._sources[sample.source] = None
            self._sources.move_to_end(sample.source)
            self._leaving.pop(sample.source, None)
        self._summary.publish()
        self._let_go()

    def _delete_leaving(self) -> None:
        """Delete samples of sources that are too many, at most `_STEP` of them."""
        query = (
            "DELETE FROM samples WHERE id IN (SELECT id FROM samples "
            "WHERE edge = ? AND device = ? AND runtime = ? AND threads = ? LIMIT ?)"
        )
        left = _STEP
        with self._lock, self._database:
            for source in [*self._leaving]:
                key = source.edge, source.device, source.runtime, source.threads
                left -= self._database.execute(query, (*key, left)).rowcount
                if left <= 0:  # there may be more of this source
                    break
                del self._leaving[source]

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()


def _scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for a store that is not to be kept.

    Raises:
        StoreError: If there is nowhere to put it.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="splitpoint-store-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(
            f"no temporary folder can be written ({error.strerror}): give --store FILE"
        ) from error


def _file_of(path: Path | None, scratch: "tempfile.TemporaryDirectory[str] | None") -> Path:
    """The file itself, where a link leads to it.

    Raises:
        StoreError: If it leads nowhere.
    """
    if path is None:
        return Path(scratch.name) / "store.sqlite" if scratch is not None else Path()
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise StoreError(f"{path}: cannot be opened: {error}: give another --store") from error


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


def _keys_since(database: sqlite3.Connection, at_s: float) -> list[_Key]:
    """Sources and plans that there are newer samples of."""
    query = f"SELECT {KEY} FROM samples GROUP BY {KEY} HAVING MAX(at_s) >= ?"  # noqa: S608
    return database.execute(query, (at_s,)).fetchall()


def _summed_up(database: sqlite3.Connection, hour: int, key: _Key) -> list[tuple[Any, ...]]:
    """Rows of `hours` for a source and plan."""
    query = (
        f"SELECT {_STAGES} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608
        "AND threads = ? AND plan = ? AND at_s >= ? AND at_s < ?"
    )
    samples = database.execute(query, (*key, hour * HOUR_S, (hour + 1) * HOUR_S)).fetchall()
    if not samples:
        return []
    columns = np.sort(np.array(samples, np.float64), axis=0)
    return [
        (hour, *key, stage, len(values), _quantile(values, 0.5), _quantile(values, 0.9))
        for stage, values in _by_stage(columns)
    ]


def _rows(key: _Key, samples: NDArray[np.float64]) -> list[StoredRow]:
    """Rows of one source and plan.

    Args:
        key: These.
        samples: (N, 1 + stages): when, in seconds since the epoch, and ms by stage or NaN.
    """
    source, plan, newest = SampleSource(*key[:4]), key[4], float(samples[:, 0].max())
    found = []
    for stage, values in _by_stage(np.sort(samples[:, 1:], axis=0)):
        low, high = median_interval(len(values))
        found.append(
            StoredRow(
                source=source,
                plan=plan,
                stage=stage,
                n=len(values),
                median_ms=_quantile(values, 0.5),
                p90_ms=_quantile(values, 0.9),
                low_ms=float(values[low]),
                high_ms=float(values[high]),
                last_seen_s=newest,
            )
        )
    return found


def _by_stage(columns: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The stages that have values; of sorted columns, where what is missing (NaN) comes last."""
    counts = np.count_nonzero(~np.isnan(columns), axis=0)
    for index, stage in enumerate(OBSERVED):
        if counts[index]:
            yield stage, columns[: counts[index], index]


def _quantile(values: NDArray[np.float64], share: float) -> float:
    """Quantile of sorted values, as `numpy.percentile`, which is ten times slower for few."""
    place = share * (len(values) - 1)
    below = int(place)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    return float(low + (high - low) * (place - below))
