"""The sources whose samples are kept: those seen last, and what they were seen to do.

samples written -> Sources -> PlanSummary: what an edge is welcomed with
+-----> the samples of sources that are too many are deleted, in steps
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Sequence

from cloud.store.connection import StoreConnection
from cloud.store.samples import Sample, SampleSource
from cloud.store.summary import PlanSummary
from cloud.store.upkeep import ROWS_PER_STEP
from common.tables.store_file import SOURCE

MOST_SOURCES = 1000
"""Edges, as (name, device, runtime, threads), that samples are kept of: those seen last."""


class Sources:
    """Sources in the order in which they were seen, with a summary of their samples.

    One thread at a time changes it; any thread may look the summary up.

    Args:
        file: The store's file; what it holds is read now.
        most: Sources kept.

    Attributes:
        summary: Medians of plans, by kind of edge.
    """

    def __init__(self, file: StoreConnection, most: int = MOST_SOURCES) -> None:
        self._file = file
        self._most = most
        self.summary = PlanSummary()
        self._leaving: dict[SampleSource, None] = {}
        with file.reading() as database:
            self._seen = OrderedDict.fromkeys(_sources_of(database))
            self.summary.load(database)
        self._choose_leaving()

    @property
    def some_leave(self) -> bool:
        """Whether samples wait to be deleted."""
        return bool(self._leaving)

    def add(self, written: Sequence[Sample]) -> None:
        """Take in samples that were written."""
        for sample in written:
            self.summary.add(sample)
            self._seen[sample.source] = None
            self._seen.move_to_end(sample.source)
            self._leaving.pop(sample.source, None)
        self.summary.publish()
        self._choose_leaving()

    def delete_leaving(self) -> None:
        """Delete samples of sources that are too many, at most `ROWS_PER_STEP` of them."""
        query = (
            "DELETE FROM samples WHERE id IN (SELECT id FROM samples "
            "WHERE edge = ? AND device = ? AND runtime = ? AND threads = ? LIMIT ?)"
        )
        left = ROWS_PER_STEP
        with self._file.transaction() as database:
            for source in [*self._leaving]:
                key = source.edge, source.device, source.runtime, source.threads
                left -= database.execute(query, (*key, left)).rowcount
                if left <= 0:  # there may be more of this source
                    break
                del self._leaving[source]

    def _choose_leaving(self) -> None:
        """Choose the sources that are too many: their samples go in steps, the summary now."""
        while len(self._seen) > self._most:
            source, _ = self._seen.popitem(last=False)
            self._leaving[source] = None
            self.summary.forget(source)
        self.summary.publish()


def _sources_of(database: sqlite3.Connection) -> list[SampleSource]:
    """Sources that there are samples of, the one seen last at the end."""
    keys = f"SELECT {SOURCE} FROM samples GROUP BY {SOURCE} ORDER BY MAX(at_s)"  # noqa: S608
    return [SampleSource(*key) for key in database.execute(keys)]
