"""Rate limit for log lines: the first event of a kind is logged at once, then one a minute.

    event -> Sparingly.due(kind) -> number of events to log now, or 0

An unreachable cloud or a camera whose frames all fail must not fill a disk with repeated lines.
"""

import threading
import time
from collections.abc import Callable

_PERIOD_S = 60.0
_MOST_KINDS = 64
_OTHERS = "others"


class Sparingly:
    """Counts events by kind and decides which of them to log. Thread-safe.

    Args:
        period_s: Least time between two lines of a kind.
        now_s: A monotonic clock.
    """

    def __init__(
        self, period_s: float = _PERIOD_S, now_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._period_s = period_s
        self._now_s = now_s
        self._lock = threading.Lock()
        self._logged_s: dict[str, float] = {}
        self._silent: dict[str, int] = {}

    def due(self, kind: str) -> int:
        """Return the events of the kind since its last line, this one included; 0 if not due."""
        with self._lock:
            if kind not in self._logged_s and len(self._logged_s) >= _MOST_KINDS:
                kind = _OTHERS
            now_s = self._now_s()
            self._silent[kind] = self._silent.get(kind, 0) + 1
            if now_s - self._logged_s.get(kind, -float("inf")) < self._period_s:
                return 0
            self._logged_s[kind] = now_s
            return self._silent.pop(kind)
