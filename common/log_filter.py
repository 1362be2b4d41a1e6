"""Keeping a log short where strangers can make it grow.

A library logs each request that it cannot read, each connection that breaks, each error of an app
with its stack trace. That is right for one, and a full disk for a million.
"""

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable

_PAUSE_S = 60.0
_MOST_KINDS = 256

Kind = tuple[str, str, str]


class OnceAMinute(logging.Filter):
    """Lets one record of each kind through a minute; the next one says how many were left out.

    Records are of a kind if they begin with the same line and bear the same class of error, raised
    at the same place. Errors of the system (a connection that broke, no descriptor left) lose their
    stack trace: it would tell nothing. What was cancelled because the server stops is no error.

    Args:
        now_s: A monotonic clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now_s = now_s
        self._last_s: OrderedDict[Kind, float] = OrderedDict()
        self._left_out: dict[Kind, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, asyncio.CancelledError):
            return False
        line = record.getMessage().strip().partition("\n")[0]
        kind = (line, type(error).__name__, _place(error))
        now_s = self._now_s()
        if kind in self._last_s and now_s - self._last_s[kind] < _PAUSE_S:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._shorten(record, line, error, self._left_out.pop(kind, 0))
        self._last_s[kind] = now_s
        self._last_s.move_to_end(kind)
        if len(self._last_s) > _MOST_KINDS:
            oldest, _ = self._last_s.popitem(last=False)
            self._left_out.pop(oldest, None)
        return True

    @staticmethod
    def _shorten(
        record: logging.LogRecord, line: str, error: BaseException | None, left_out: int
    ) -> None:
        if isinstance(error, OSError) and error.errno is not None:  # not a time-out
            record.exc_info = record.exc_text = None
            line = f"{line}: {error}"
        elif not left_out:
            return
        record.msg = line if not left_out else f"{line} ({left_out} more like it since)"
        record.args = ()


def _place(error: BaseException | None) -> str:
    """File and line where an error was raised."""
    if error is None:
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else ""
