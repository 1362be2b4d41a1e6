"""Log lines of strangers: bounded in number, and without a stack trace."""

import errno
import io
import json
import logging
from collections.abc import Iterator

import pytest

from common.http.log_limits import TRACES, LogLimit
from common.http.serving import log_event


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(clock: Clock) -> Iterator[io.StringIO]:
    """What the root's handler writes, with 10 lines of a kind a minute."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.addFilter(LogLimit(lines=10, clock=clock))
    root, ours = logging.getLogger(), logging.getLogger("splitpoint")
    level = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    yield written
    root.removeHandler(handler)
    ours.setLevel(level)


def _flood(count: int) -> None:
    for number in range(count):
        log_event("edge-connected", {"edge_id": f"edge-{number}"})


def test_the_first_lines_of_a_kind_pass_and_then_one_says_that_there_are_more(
    log: io.StringIO,
) -> None:
    _flood(1000)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == [
        *["edge-connected"] * 10,
        "more-lines-are-held-back",
    ]
    assert lines[-1]["like"] == "edge-connected"


def test_other_kinds_pass(log: io.StringIO) -> None:
    _flood(1000)
    log_event("stopped", {"pid": 1})
    assert '"stopped"' in log.getvalue().splitlines()[-1]


def test_when_the_interval_is_over_they_pass_again_and_the_held_are_counted(
    log: io.StringIO, clock: Clock
) -> None:
    _flood(1000)
    clock.now_s = 60.0
    log_event("edge-connected", {"edge_id": "late"})
    counted, late = [json.loads(line) for line in log.getvalue().splitlines()[-2:]]
    assert (counted["event"], counted["like"], counted["count"]) == (
        "lines-held-back",
        "edge-connected",
        990,
    )
    assert late["edge_id"] == "late"


def test_lines_that_differ_in_numbers_are_of_one_kind(log: io.StringIO) -> None:
    for number in range(100):
        logging.getLogger("asyncio").error(f"socket {number} is gone")
    assert log.getvalue().count("socket") == 10 + 1


def test_kinds_are_bounded(log: io.StringIO) -> None:
    for number in range(10_000):
        name = "".join(chr(ord("a") + int(digit)) for digit in str(number))
        logging.getLogger("uvicorn.error").warning(f"from {name}")
    assert len(log.getvalue().splitlines()) < 600


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError("peer"),
        OSError(errno.EMFILE, "Too many open files"),
        TimeoutError("slow"),
    ],
)
def test_what_a_peer_does_leaves_no_stack_trace(log: io.StringIO, error: Exception) -> None:
    try:
        raise error
    except type(error):
        logging.getLogger("asyncio").exception("accept failed\nsocket: <socket fd=7>")
    (line,) = log.getvalue().splitlines()
    assert line == f"accept failed: {type(error).__name__}: {error}"


def test_a_fault_of_our_own_does_but_not_without_end(log: io.StringIO) -> None:
    for _ in range(100):
        try:
            1 / 0  # noqa: B018 - raises
        except ZeroDivisionError:
            logging.getLogger("splitpoint.cloud").exception("a frame failed")
    assert log.getvalue().count("Traceback") == TRACES
