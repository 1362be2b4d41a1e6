"""Patience: how long a frame waits for a stream to the cloud, and for its answer there."""

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long a frame waits for the cloud.

    Attributes:
        connect_s: For a stream; as long as usual, if None.
        answer_s: For the answer, once the frame is sent; as long as usual, if None.
        connected_s: When waiting for a stream ends in any case, by `time.perf_counter`.
        answered_s: When waiting for the answer ends in any case.
    """

    connect_s: float | None = None
    answer_s: float | None = None
    connected_s: float = math.inf
    answered_s: float = math.inf

    def for_stream_s(self) -> float | None:
        """How long to wait for a stream from now on."""
        return _until(self.connected_s, self.connect_s)

    def for_answer_s(self) -> float | None:
        """How long to wait for an answer from now on."""
        return _until(self.answered_s, self.answer_s)


AS_USUAL = Patience()


def _until(end_s: float, seconds: float | None) -> float | None:
    if end_s == math.inf:
        return seconds
    left_s = max(0.0, end_s - time.perf_counter())
    return left_s if seconds is None else min(seconds, left_s)
