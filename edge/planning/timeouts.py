"""Time-outs of a frame: for a stream to the cloud, and for the cloud's answer."""

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class FrameTimeouts:
    """Time-outs and deadlines of one frame's wait for the cloud.

    Attributes:
        connect_s: Time-out for a stream; the client's default, if None.
        answer_s: Time-out for the answer, once the frame is sent; the client's default, if None.
        connected_s: Deadline for a stream, by `time.perf_counter`.
        answered_s: Deadline for the answer, by `time.perf_counter`.
    """

    connect_s: float | None = None
    answer_s: float | None = None
    connected_s: float = math.inf
    answered_s: float = math.inf

    def stream_timeout_s(self) -> float | None:
        """Return the time left to wait for a stream; None for the client's default."""
        return _until(self.connected_s, self.connect_s)

    def answer_timeout_s(self) -> float | None:
        """Return the time left to wait for an answer; None for the client's default."""
        return _until(self.answered_s, self.answer_s)


CLIENT_DEFAULTS = FrameTimeouts()


def _until(end_s: float, seconds: float | None) -> float | None:
    if end_s == math.inf:
        return seconds
    left_s = max(0.0, end_s - time.perf_counter())
    return left_s if seconds is None else min(seconds, left_s)
