"""The store: observations of frames, in SQLite, and the latency tables made of them.

    Sample --SampleWriter--> samples (newest, raw)  --Upkeep--> hours
                 |                  |
       plan_medians() <-- Sources,  table(): of each edge, plan and stage,
                          in memory latency_rows(): of each segment, with upsert_profiles();
                                    links(), hours()

What is in the file, `common.tables.store_file` says. One writer thread writes samples; serving a
frame never waits for a disk, and welcoming an edge reads memory only. Everything else that is read
has a connection of its own (`cloud.store.connection`).

Everything is bounded: samples, the sources that they are of, hours, profiles and the summary.
Everything here can be collected again (`cloud.store.database` begins anew when it must).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from cloud.store.connection import StoreConnection
from cloud.store.links import LinkSeen, links
from cloud.store.samples import Sample, SampleSource
from cloud.store.sources import MOST_SOURCES, Sources
from cloud.store.stage_rows import StoredRow, stage_rows
from cloud.store.summary import PlanMedians
from cloud.store.upkeep import StoreLimits, Upkeep
from cloud.store.writer import SampleWriter
from common.bundle.manifest import Plan
from common.tables.rows import LatencyRow, RuntimeTarget, segments
from common.tables.store_file import KEY, PROFILE_COLUMNS, latency_rows

_MOST_EDGES = 1000
"""Edges that impossible measurements are counted of."""


class Store:
    """Measurements of all edges.

    Args:
        path: The file; None keeps everything in a temporary one, which goes when it is closed.
        most_samples: Raw samples kept.
        most_hours: Rows of full hours kept.
        most_sources: Sources kept; see `MOST_SOURCES`.

    Attributes:
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
        self._file = StoreConnection(path)
        try:
            self._sources = Sources(self._file, most_sources)
        except BaseException:
            self._file.close()
            raise
        self._upkeep = Upkeep(self._file, StoreLimits(most_samples, most_hours))
        self._writer = SampleWriter(self._file, self._sources, self._upkeep)
        self.ignored: Counter[str] = Counter()

    @property
    def dropped(self) -> int:
        """Samples that were not kept: they came too fast to be written, or the disk failed."""
        return self._writer.dropped

    def add(self, sample: Sample) -> None:
        """Keep a sample, a little later; never waits, never raises."""
        self._writer.add(sample)

    def ignore(self, edge: str) -> None:
        """Count a measurement that could not be true."""
        if edge in self.ignored or len(self.ignored) < _MOST_EDGES:
            self.ignored[edge] += 1

    def flush(self) -> None:
        """Wait until everything that was added is written, unless the store is closed."""
        if not self._file.closed:
            self._writer.flush()

    def close(self) -> None:
        """Write what waits and let the file go; a second time it does nothing."""
        if not self._file.closed:
            self._writer.close()
            self._file.close()

    def table(
        self, after: tuple[str, str, str, int, str, str] | None = None, most: int | None = None
    ) -> list[StoredRow]:
        """The latency table of sources, plans and stages; see `stage_rows.stage_rows`."""
        with self._file.reading() as database:
            return stage_rows(database, after, most)

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
        with self._file.writing() as database:
            database.execute(
                "DELETE FROM segments WHERE plan NOT IN (SELECT DISTINCT plan FROM samples)"
            )
            database.executemany("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?)", rows)

    def set_cloud_device(self, target: RuntimeTarget, now_s: float) -> None:
        """Say what this cloud itself runs on, from now on.

        Observations of tails on another machine no longer count as this one's.

        Args:
            target: This cloud.
            now_s: In seconds since the epoch.

        Raises:
            StoreError: If it cannot be written.
        """
        fields = {key: str(value) for key, value in target._asdict().items()}
        with self._file.writing() as database:
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
        columns, values = ", ".join(PROFILE_COLUMNS), ", ".join("?" * len(PROFILE_COLUMNS))
        numbers = "n", "median_ms", "p90_ms", "low_ms", "high_ms", "last_seen_s"
        query = (
            f"INSERT INTO profiles ({columns}) VALUES ({values}) "  # noqa: S608 - constants
            "ON CONFLICT (device, runtime, threads, side, network, segment, bits, source) "
            f"DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in numbers)} "
            "WHERE excluded.last_seen_s >= last_seen_s"
        )
        with self._file.writing() as database:
            database.executemany(query, [tuple(row.model_dump().values()) for row in rows])

    def latency_rows(self) -> list[LatencyRow]:
        """The latency table: rows that were put here, and observations of the newest frames.

        Stages on the edge belong to the edge's device, those in the cloud to what it stands on.
        """
        with self._file.reading() as database:
            return latency_rows(database)

    def plan_medians(self, device: str, runtime: str, threads: int) -> tuple[PlanMedians, ...]:
        """Medians of plans on edges of this kind; a look-up in memory, fit for an event loop."""
        return self._sources.summary.medians(RuntimeTarget(device, runtime, threads))

    def links(self) -> list[LinkSeen]:
        """The links of all edges, as they estimated them for their newest frames."""
        with self._file.reading() as database:
            return links(database)

    def hours(self) -> list[tuple[int, SampleSource, str, str, int, float, float]]:
        """Full hours: (hour since the epoch, source, plan, stage, n, median ms, p90 ms)."""
        with self._file.reading() as database:
            rows = database.execute(
                f"SELECT hour, {KEY}, stage, n, median_ms, p90_ms FROM hours "  # noqa: S608
                f"ORDER BY hour, {KEY}, stage"
            ).fetchall()
        return [(row[0], SampleSource(*row[1:5]), row[5], row[6], *row[7:]) for row in rows]

    def roll_up_and_prune(self, now_s: float) -> None:
        """Sum full hours up and drop what is too much; the writer does so every minute."""
        for _ in self._upkeep.steps(now_s):
            pass
