"""Rows of the latency tables by edge, plan and stage: statistics of the newest samples.

samples (ms by stage) -> sorted by stage -> n, median, p90, 95 % interval
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.store.samples import SampleSource
from common.stages import OBSERVED
from common.tables.store_file import KEY, RECENT
from common.tables.timing import median_interval

STAGE_COLUMNS = ", ".join(f"{stage}_ms" for stage in OBSERVED)
"""Columns of the table `samples`, one per stage of `OBSERVED`."""

PlanKeyColumns = tuple[str, str, str, int, str]
"""Edge, device, runtime, threads and plan: the columns of `KEY`."""


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


def stage_rows(
    database: sqlite3.Connection,
    after: tuple[str, str, str, int, str, str] | None = None,
    most: int | None = None,
) -> list[StoredRow]:
    """Return rows of sources, plans and stages, in this order, from the newest samples.

    Args:
        database: One state of the store.
        after: Edge, device, runtime, threads, plan and stage of the row before the first that is
            wanted; None begins with the first.
        most: Rows that are wanted at the most; None for all.
    """
    where = "" if after is None else f"WHERE ({KEY}) >= (?, ?, ?, ?, ?)"
    keys = f"SELECT DISTINCT {KEY} FROM samples {where} ORDER BY {KEY}"  # noqa: S608 - constants
    query = (
        f"SELECT at_s, {STAGE_COLUMNS} FROM samples WHERE edge = ? AND device = ? "  # noqa: S608
        "AND runtime = ? AND threads = ? AND plan = ? ORDER BY at_s DESC LIMIT ?"
    )
    found: list[StoredRow] = []
    for key in database.execute(keys, () if after is None else after[:5]):
        samples = database.execute(query, (*key, RECENT)).fetchall()
        rows = _rows(key, np.array(samples, np.float64))
        if after is not None and key == after[:5]:
            sent = OBSERVED.index(after[5])
            rows = [row for row in rows if OBSERVED.index(row.stage) > sent]
        found += rows
        if most is not None and len(found) >= most:
            return found[:most]
    return found


def by_stage(columns: NDArray[np.float64]) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """The stages that have values; of sorted columns, where what is missing (NaN) comes last."""
    counts = np.count_nonzero(~np.isnan(columns), axis=0)
    for index, stage in enumerate(OBSERVED):
        if counts[index]:
            yield stage, columns[: counts[index], index]


def quantile(values: NDArray[np.float64], share: float) -> float:
    """Quantile of sorted values, as `numpy.percentile`, which is ten times slower for few."""
    position = share * (len(values) - 1)
    below = int(position)
    low, high = values[below], values[min(below + 1, len(values) - 1)]
    return float(low + (high - low) * (position - below))


def _rows(key: PlanKeyColumns, samples: NDArray[np.float64]) -> list[StoredRow]:
    """Rows of one source and plan.

    Args:
        key: These.
        samples: (N, 1 + stages): when, in seconds since the epoch, and ms by stage or NaN.
    """
    source, plan, newest = SampleSource(*key[:4]), key[4], float(samples[:, 0].max())
    found = []
    for stage, values in by_stage(np.sort(samples[:, 1:], axis=0)):
        low, high = median_interval(len(values))
        found.append(
            StoredRow(
                source=source,
                plan=plan,
                stage=stage,
                n=len(values),
                median_ms=quantile(values, 0.5),
                p90_ms=quantile(values, 0.9),
                low_ms=float(values[low]),
                high_ms=float(values[high]),
                last_seen_s=newest,
            )
        )
    return found
