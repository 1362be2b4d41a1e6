"""Limits on log lines, so that a client cannot fill a disk; its faults leave no stack trace.

    record -> LogLimit: kind (logger, level, what it says less numbers) --+
    event of a frame, such as an unreachable cloud -----------------------+-> EventLimit
                                           the first of a kind pass, the others are counted <-+

Any client that reaches a port can cause lines: by connecting, by hanging up, by sending garbage. Of
each kind of line the first few of a minute are written; the last of them is followed by a line that
says so, and once the minute is over another one says how many were held back. Events that may come
with every frame are limited where they arise, to one line a minute: programs that use the package
log as they like.
"""

import errno
import json
import logging
import os
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LINES: Final = 120
"""Lines of a kind that pass in each interval: a player says one a second."""
TRACES: Final = 5
"""Lines of a kind that pass in each interval where each has a stack trace."""
INTERVAL_S: Final = 60.0

_MOST_KINDS = 512
_KIND_CHARACTERS = 80
_DIGITS = str.maketrans("", "", "0123456789")
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SUMMARY = "splitpoint.log_limits"


@dataclass
class _Kind:
    since_s: float
    sample: str
    passed: int = 0
    held: int = 0


class EventLimit:
    """Passes the first events of each kind in each interval, and counts the others. Thread-safe.

    Args:
        interval_s: The interval, in seconds; of each kind it begins with the first event.
        clock: Seconds, never backwards.
    """

    def __init__(
        self, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: OrderedDict[str, _Kind] = OrderedDict()

    def due(self, kind: str) -> int:
        """Count an event of which one passes in each interval.

        Returns:
            Events since the last that passed, this one included; 0 if this one is held back.
        """
        with self._lock:
            found = self._of(kind, "")
            held = 0
            if self._clock() - found.since_s >= self._interval_s:
                held = found.held
                found.since_s, found.passed, found.held = self._clock(), 0, 0
            return 1 + held if _passes(found, 1) else 0

    def count(self, kind: str, sample: str, most: int) -> tuple[bool, bool]:
        """Count an event; returns whether it passes, and whether it is the last that does.

        Args:
            kind: What it is; see `ended`.
            sample: An event of this kind, for people.
            most: Events that pass in each interval.
        """
        with self._lock:
            found = self._of(kind, sample)
            passes = _passes(found, most)
            return passes, passes and found.passed == most

    def ended(self) -> list[tuple[str, int]]:
        """Forget the kinds whose interval has ended; returns samples and counts of held events."""
        with self._lock:
            now_s, held = self._clock(), []
            while self._kinds:
                name, kind = next(iter(self._kinds.items()))
                if now_s - kind.since_s < self._interval_s:
                    break
                del self._kinds[name]
                if kind.held:
                    held.append((kind.sample, kind.held))
            return held

    def _of(self, kind: str, sample: str) -> _Kind:
        if kind not in self._kinds and len(self._kinds) >= _MOST_KINDS:
            kind = ""  # so many kinds are a flood of their own
        return self._kinds.setdefault(kind, _Kind(self._clock(), sample))


def _passes(kind: _Kind, most: int) -> bool:
    if kind.passed < most:
        kind.passed += 1
        return True
    kind.held += 1
    return False


class LogLimit(logging.Filter):
    """Passes a bounded number of lines of each kind; for a handler, so that it sees all loggers.

    Args:
        lines: Lines of a kind that pass in each interval.
        interval_s: The interval, in seconds.
        clock: Seconds, never backwards.
    """

    def __init__(
        self,
        lines: int = LINES,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._lines = lines
        self._interval_s = interval_s
        self._events = EventLimit(interval_s, clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line passes; removes the stack trace of an error that a peer caused."""
        if record.name == _SUMMARY:
            return True
        _shorten(record)
        for sample, held in self._events.ended():
            _say("lines-held-back", {"like": sample, "count": held})
        most = min(self._lines, TRACES) if record.exc_info else self._lines
        passes, is_last = self._events.count(_kind_of(record), _sample(record), most)
        if is_last:
            fields = {"like": _sample(record), "for_s": self._interval_s}
            # After this line, which is not written yet.
            record.msg = f"{record.getMessage()}\n{_line('more-lines-are-held-back', fields)}"
            record.args = None
        return passes


def quiet_grpc() -> None:
    """Keep gRPC from writing a line for each failed TLS handshake; before it is imported.

    It writes past `logging`, where nothing limits it.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def _kind_of(record: logging.LogRecord) -> str:
    event = getattr(record, "event", None)  # of `log_event`, whose message holds names
    said = event if isinstance(event, str) else str(record.msg)
    return f"{record.name} {record.levelno} {said[:_KIND_CHARACTERS].translate(_DIGITS)}"


def _sample(record: logging.LogRecord) -> str:
    event = getattr(record, "event", None)
    said = event if isinstance(event, str) else record.getMessage()
    return " ".join(said.split())[:_KIND_CHARACTERS]


def _shorten(record: logging.LogRecord) -> None:
    """One line in place of a stack trace where the cause is a peer, or that too many came."""
    error = record.exc_info[1] if record.exc_info else None
    if not _of_a_peer(error):
        return
    first = record.getMessage().partition("\n")[0]
    record.msg = f"{first}: {type(error).__name__}: {error}"
    record.args = None
    record.exc_info = record.exc_text = None


def _of_a_peer(error: BaseException | None) -> bool:
    if isinstance(error, (ConnectionError, ssl.SSLError, TimeoutError)):
        return True
    return isinstance(error, OSError) and error.errno in _SCARCE


def _line(event: str, fields: dict[str, object]) -> str:
    return json.dumps({"event": event, **fields})


def _say(event: str, fields: dict[str, object]) -> None:
    logging.getLogger(_SUMMARY).warning(_line(event, fields))
