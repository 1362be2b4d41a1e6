"""A log that strangers can make grow says each thing once a minute."""

import asyncio
import errno
import logging
from collections.abc import Iterator

import pytest

from common.log_filter import OnceAMinute


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[logging.Logger]:
    logger = logging.getLogger("tests.log_filter")
    filtering = OnceAMinute(clock)
    logger.addFilter(filtering)
    yield logger
    logger.removeFilter(filtering)


def _fail(log: logging.Logger, error: BaseException) -> None:
    log.error("Exception in app\n", exc_info=error)


def test_the_same_is_said_once_a_minute_and_counted(
    log: logging.Logger, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        log.warning("Invalid request")
    clock.now_s = 61
    log.warning("Invalid request")
    assert caplog.messages == ["Invalid request", "Invalid request (999 more like it since)"]


def test_another_thing_is_said_beside_it(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    log.warning("one")
    log.warning("other")
    _fail(log, ZeroDivisionError())
    _fail(log, KeyError())
    _fail(log, KeyError())
    assert len(caplog.records) == 4
    assert caplog.records[-1].exc_info is not None


def test_an_error_of_the_system_is_a_line_without_a_stack_trace(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    _fail(log, OSError(errno.EMFILE, "Too many open files"))
    assert caplog.messages == ["Exception in app: [Errno 24] Too many open files"]
    assert caplog.records[0].exc_info is None


def test_what_was_cancelled_is_no_error(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    _fail(log, asyncio.CancelledError())
    assert not caplog.records


def test_the_kinds_that_are_remembered_are_bounded(
    log: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(300):
        log.warning("kind %d", number)
    log.warning("kind %d", 299)
    log.warning("kind %d", 0)  # forgotten, and said again
    assert len(caplog.records) == 301
