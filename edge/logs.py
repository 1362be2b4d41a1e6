"""Log lines that may come with every frame: the first of a kind at once, then one a minute.

    event -> Sparingly.due(kind) -> how many to tell of now, or none

A cloud that is away or a camera whose frames all fail must not fill a disk with what one line says.
"""

import threading
import time
from collections.abc import Callable

_PERIOD_S = 60.0
_MOST_KINDS = 64
_OTHERS = "others"


class Sparingly:
    """Counts events by kind and says which of them to log. Thread-safe.

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
        """Events of the kind since its last line, this one included; 0 if it is not time yet."""
        with self._lock:
            if kind not in self._logged_s and len(self._logged_s) >= _MOST_KINDS:
                kind = _OTHERS
            now_s = self._now_s()
            self._silent[kind] = self._silent.get(kind, 0) + 1
            if now_s - self._logged_s.get(kind, -float("inf")) < self._period_s:
                return 0
            self._logged_s[kind] = now_s
            return self._silent.pop(kind)
