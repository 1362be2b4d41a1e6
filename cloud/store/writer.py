"""The thread that writes samples, and does the store's upkeep between two batches.

    add -> queue -> batches of half a second -> samples, Sources
                        +-- one step of upkeep, if any is due

Serving a frame never waits for a disk: what does not fit into the queue is dropped and counted.
"""

import logging
import queue
import threading
import time
from collections.abc import Generator, Sequence

from cloud.store.connection import StoreConnection
from cloud.store.samples import Sample
from cloud.store.sources import Sources
from cloud.store.stage_rows import STAGE_COLUMNS
from cloud.store.upkeep import Upkeep
from common.stages import OBSERVED
from common.tables.store_file import KEY

_LOG = logging.getLogger("splitpoint.cloud")

_MEASURED = f"uplink_bytes, uplink_bps, rtt_ms, {STAGE_COLUMNS}"
_BATCH = 256
_QUEUE = 10_000
_WAIT_S = 0.5
_UPKEEP_S = 60.0


class SampleWriter:
    """Writes samples in the background.

    Args:
        file: The store's file.
        sources: Takes in what was written.
        upkeep: Done every minute.

    Attributes:
        dropped: Samples that were not kept: they came faster than they could be written, or the
            disk failed.
    """

    def __init__(self, file: StoreConnection, sources: Sources, upkeep: Upkeep) -> None:
        self._file = file
        self._sources = sources
        self._upkeep = upkeep
        self._queue: queue.Queue[Sample | threading.Event | None] = queue.Queue(_QUEUE)
        self._closing = False
        self._kept_up_s = time.monotonic()
        self._steps: Generator[None, None, None] | None = None
        self._idle_until_s = self._silent_until_s = 0.0
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="store", daemon=True)
        self._thread.start()

    def add(self, sample: Sample) -> None:
        """Write a sample, a little later; never waits, never raises."""
        try:
            self._queue.put_nowait(sample)
        except queue.Full:
            self.dropped += 1

    def flush(self) -> None:
        """Wait until everything that was added is written."""
        written = threading.Event()
        self._queue.put(written)
        while not written.wait(_WAIT_S) and self._thread.is_alive():
            pass

    def close(self) -> None:
        """Write what waits, then end."""
        self._closing = True
        self._queue.put(None)
        self._thread.join()

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
                if self._steps is not None:
                    self._steps.close()
                return
            try:
                self._step()
            except Exception:  # noqa: BLE001 - it is tried again later
                self._steps = None
                self._idle_until_s = time.monotonic() + _UPKEEP_S
                self._complain("upkeep of the store failed")

    def _step(self) -> None:
        """One step of what is to be done beside writing, if anything is."""
        if self._closing or time.monotonic() < self._idle_until_s:
            return
        if self._sources.some_leave:
            self._sources.delete_leaving()
        if self._steps is None and time.monotonic() - self._kept_up_s > _UPKEEP_S:
            self._kept_up_s = time.monotonic()
            self._steps = self._upkeep.steps(time.time())
        if self._steps is not None and next(self._steps, self) is self:
            self._steps = None

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
        busy = self._sources.some_leave or self._steps is not None
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
        values = ", ".join("?" * (9 + len(OBSERVED)))
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
        with self._file.transaction() as database:
            database.executemany(
                f"INSERT INTO samples (at_s, {KEY}, {_MEASURED}) VALUES ({values})",  # noqa: S608
                rows,
            )
        self._sources.add(batch)
