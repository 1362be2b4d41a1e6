"""Exponential back-off between attempts to reach a cloud."""

import threading


class Backoff:
    """Exponential back-off: doubles after each failure in a row, up to a maximum.

    Args:
        bounds_s: First pause and longest pause, in seconds.

    Attributes:
        until_s: End of the pause, by the clock of the caller.
    """

    def __init__(self, bounds_s: tuple[float, float]) -> None:
        self._first_s, self._most_s = bounds_s
        self._next_s = self._first_s
        self._lock = threading.Lock()
        self.until_s = -float("inf")

    def begin(self, now_s: float, asked_s: float = 0.0) -> None:
        """Start a pause; a pause already running is left as it is.

        Args:
            now_s: The time.
            asked_s: The cloud's retry-after time; capped at the longest pause.
        """
        with self._lock:
            if now_s >= self.until_s:
                self.until_s = now_s + min(max(self._next_s, asked_s), self._most_s)
                self._next_s = min(2 * self._next_s, self._most_s)

    def left_s(self, now_s: float) -> float:
        """Return the seconds left of the pause; 0 outside a pause."""
        return max(0.0, self.until_s - now_s)

    def end(self, now_s: float = float("inf")) -> None:
        """Reset the back-off, unless a pause is running at `now_s`."""
        with self._lock:
            if now_s >= self.until_s:
                self._next_s = self._first_s
                self.until_s = -float("inf")
