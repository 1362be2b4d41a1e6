"""Reports edge-only frames to the cloud, in the background."""

import logging
import queue
import threading
from typing import Literal

from common.errors import PlanNotHeldError, SplitpointError
from common.http.log_limits import EventLimit
from common.rpc import splitpoint_pb2 as pb
from edge.stream.client import CloudClient

Reported = Literal["results", "times", "none"]
"""Content of a report about an edge-only frame: times and result, times alone, or no report."""

_LOG = logging.getLogger("splitpoint.edge")


class EdgeOnlyReporter:
    """Sends reports in the background, so that an edge-only frame never waits for the cloud.

    Attributes:
        sent: Reports that the cloud has acknowledged.
        lost: Reports that were dropped: the cloud could not be reached or refused, or the queue was
            full.
    """

    def __init__(self, client: CloudClient, *, limit: int = 64) -> None:
        self._client = client
        self._reports: queue.Queue[pb.Report | None] = queue.Queue(limit)
        self._worker: threading.Thread | None = None
        self._refused: tuple[object, bytes] | None = None
        self._log_limit = EventLimit()
        self.sent = 0
        self.lost = 0

    def report(self, message: pb.Report) -> None:
        """Queue a report; never blocks, never raises."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._work, name="reporter", daemon=True)
            self._worker.start()
        try:
            self._reports.put_nowait(message)
        except queue.Full:
            self.lost += 1

    def close(self, timeout_s: float = 1.0) -> None:
        """Wait for the queued reports to be sent, within a time-out."""
        if self._worker is not None and self._worker.is_alive():
            try:
                self._reports.put(None, timeout=timeout_s)
            except queue.Full:
                return
            self._worker.join(timeout_s)

    def _work(self) -> None:
        while (message := self._reports.get()) is not None:
            here = self._client.stream, message.plan_digest
            if here == self._refused:
                self.lost += 1  # a cloud with another bundle: not worth the link
                continue
            try:
                self._client.request(message)
            except SplitpointError as error:
                self.lost += 1
                if isinstance(error, PlanNotHeldError):
                    self._refused = self._client.stream, message.plan_digest
                if times := self._log_limit.due(type(error).__name__):
                    _LOG.warning("%d reports did not reach the cloud: %s", times, error)
            else:
                self.sent += 1
