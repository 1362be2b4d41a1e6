"""The store: what frames took, in SQLite, and the latency tables that come of it.

    Sample --queue--> writer thread --batches--> samples (newest, raw)  --roll-up--> hours
                                                        |
                table(): of each edge, plan and stage --+-- latency_rows(): of each segment
                                                        |          + put(): profiled elsewhere
                                             learned(), links()

What is in the file, `common.store_file` says. One writer thread writes samples; serving a frame
never waits for a disk. Raw samples are bounded in number; before they go, each full hour of them is
summed up into one row per source, plan and stage, and these rows are bounded, too. Everything here
can be lost: it is history (`cloud.database` begins anew when it must).
"""

import logging
import queue
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.database import open_database
from cloud.learned import Learned, LinkSeen, learned, links
from cloud.samples import STAGES, Sample, Source
from common.errors import StoreError
from common.manifest import Plan
from common.store_file import PROFILE_COLUMNS, RECENT, latency_rows
from common.tables import LatencyRow, Place, segments
from common.timing import Timing

_LOG = logging.getLogger("splitpoint.cloud")

HOUR_S = 3600

_SOURCE = "edge, device, runtime, threads, plan"
_STAGES = ", ".join(f"{stage}_ms" for stage in STAGES)
_MEASURED = f"uplink_bytes, uplink_bps, rtt_ms, {_STAGES}"
_BATCH = 256
_WAIT_S = 0.5
_MOST_EDGES = 1000
_UPKEEP_S = 60.0
_MOST_PROFILES = 50_000


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
        self._name = ":memory:" if path is None else str(path)
        self._database = open_database(path)
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
        query = (
            f"SELECT at_s, {_STAGES} FROM samples WHERE edge = ? AND device = ? AND runtime = ? "  # noqa: S608 - constants
            "AND threads = ? AND plan = ? ORDER BY at_s DESC LIMIT ?"
        )
        found: list[Row] = []
        with self._lock:
            keys = self._database.execute(
                f"SELECT DISTINCT {_SOURCE} FROM samples ORDER BY {_SOURCE}"  # noqa: S608
            ).fetchall()
            for key in keys:
                rows = self._database.execute(query, (*key, RECENT)).fetchall()
                found += _rows(key, rows)
        return found

    def know(self, plans: Mapping[bytes, Plan], model: str) -> None:
        """Remember which segments plans have, so that the file can be read without their bundle.

        Args:
            plans: By digest.
            model: What they run. A segment is known by the names of layers, which other models may
                have, too, so a store is for one model.

        Raises:
            StoreError: If it keeps times of another model, or cannot be written.
        """
        rows = [
            (digest.hex(), each.stage, each.side, each.name, each.bits)
            for digest, plan in plans.items()
            for each in segments(plan)
        ]
        with self._writing() as database:
            database.execute("INSERT OR IGNORE INTO about VALUES ('model', ?)", (model,))
            query = "SELECT value FROM about WHERE key = 'model'"
            (known,) = database.execute(query).fetchone()
            if known != model:
                raise StoreError(
                    f"this store keeps times of {known}, the bundle runs {model}: give another "
                    "--store"
                )
            database.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)", rows)

    def stand_on(self, place: Place, now_s: float) -> None:
        """Say what this cloud itself runs on, from now on.

        What tails took on another machine is no longer told as this one's.

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

    def put(self, rows: Iterable[LatencyRow]) -> None:
        """Keep rows of a latency table; of rows of the same thing, the newest.

        Raises:
            StoreError: If they cannot be written.
        """
        columns, places = ", ".join(PROFILE_COLUMNS), ", ".join("?" * len(PROFILE_COLUMNS))
        numbers = "n", "median_ms", "p90_ms", "low_ms", "high_ms", "last_seen_s"
        query = (
            f"INSERT INTO profiles ({columns}) VALUES ({places}) "  # noqa: S608 - constants
            "ON CONFLICT (device, runtime, threads, side, segment, bits, source) "
            f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in numbers)} "
            "WHERE excluded.last_seen_s >= last_seen_s"
        )
        with self._writing() as database:
            database.executemany(query, [tuple(row.model_dump().values()) for row in rows])

    def latency_rows(self) -> list[LatencyRow]:
        """The latency table: what was put here, and what the newest served frames took.

        Stages on the edge belong to the edge's device, those in the cloud to what it stands on.
        """
        with self._lock:
            return latency_rows(self._database)

    def learned(self, device: str, runtime: str, threads: int) -> list[Learned]:
        """What plans took on edges of this kind."""
        with self._lock:
            return learned(self._database, Place(device, runtime, threads))

    def links(self) -> list[LinkSeen]:
        """The links of all edges, as they estimated them for their newest frames."""
        with self._lock:
            return links(self._database)

    def hours(self) -> list[tuple[int, Source, str, str, int, float, float]]:
        """Full hours: (hour since the epoch, source, plan, stage, n, median ms, p90 ms)."""
        with self._lock:
            rows = self._database.execute(
                f"SELECT hour, {_SOURCE}, stage, n, median_ms, p90_ms FROM hours "  # noqa: S608
                f"ORDER BY hour, {_SOURCE}, stage"
            ).fetchall()
        return [(row[0], Source(*row[1:5]), row[5], row[6], *row[7:]) for row in rows]

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
            self._database.execute(
                "DELETE FROM profiles WHERE rowid NOT IN "
                "(SELECT rowid FROM profiles ORDER BY last_seen_s DESC LIMIT ?)",
                (_MOST_PROFILES,),
            )

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction of somebody who wants to know if it fails."""
        with self._lock:
            try:
                with self._database:
                    yield self._database
            except sqlite3.Error as error:
                raise StoreError(f"{self._name}: cannot be written: {error}") from error

    def _roll_up(self, this_hour: int) -> None:
        done = self._database.execute("SELECT MAX(hour) FROM hours").fetchone()[0]
        first = 0 if done is None else (done + 1) * HOUR_S
        rows = self._database.execute(
            f"SELECT CAST(at_s / {HOUR_S} AS INTEGER), {_SOURCE}, {_STAGES} FROM samples "  # noqa: S608
            "WHERE at_s >= ? AND at_s < ?",
            (first, this_hour * HOUR_S),
        )
        grouped: dict[tuple[int | str, ...], list[tuple[float | None, ...]]] = {}
        for row in rows:
            grouped.setdefault(tuple(row[:6]), []).append(tuple(row[6:]))
        for key, samples in grouped.items():
            for stage, values in _by_stage(samples):
                median, p90 = np.percentile(values, (50, 90))
                self._database.execute(
                    "INSERT OR REPLACE INTO hours VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            except Exception:  # noqa: BLE001 - whatever a batch does, the next one is written
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
        places = ", ".join("?" * (9 + len(STAGES)))
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
                *(sample.stages_ms.get(stage) for stage in STAGES),
            )
            for sample in batch
        ]
        with self._lock, self._database:
            self._database.executemany(
                f"INSERT INTO samples (at_s, {_SOURCE}, {_MEASURED}) VALUES ({places})",  # noqa: S608
                rows,
            )


def _by_stage(
    samples: list[tuple[float | None, ...]],
) -> Iterable[tuple[str, list[float]]]:
    for stage, column in zip(STAGES, zip(*samples, strict=True), strict=True):
        values = [value for value in column if value is not None]
        if values:
            yield stage, values


def _rows(key: tuple[str, str, str, int, str], rows: list[tuple[float, ...]]) -> list[Row]:
    source, plan = Source(*key[:4]), key[4]
    newest = max(row[0] for row in rows)
    found = []
    for stage, values in _by_stage([row[1:] for row in rows]):
        took = Timing.of(values)
        numbers = took.n, took.median_ms, took.p90_ms, took.low_ms, took.high_ms
        found.append(Row(source, plan, stage, *numbers, newest))
    return found
