"""Traces of links as files: CSV that a person can write and a recording can be turned into.

    seconds,uplink_mbit,downlink_mbit,rtt_ms
    0,4,,20             4 Mbit/s both ways: an empty downlink is the uplink
    10,0,,              an outage: nothing passes until the next step
    12.5,1,8,60
    30,repeat,,         begin again at 30 s; without it the last link holds for ever

Times are from the start, and increase from 0.
"""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

from common.errors import SettingsError
from common.link.link import Link, LinkTrace, parse_link

HEADER = ("seconds", "uplink_mbit", "downlink_mbit", "rtt_ms")
_REPEAT = "repeat"
_MAX_BYTES = 8 << 20


def link_or_trace(text: str) -> Link | LinkTrace:
    """A link as a user writes one, or the path of a trace, which ends in ".csv".

    Raises:
        SettingsError: If it is neither.
    """
    return read_trace(Path(text)) if text.lower().endswith(".csv") else parse_link(text)


def read_trace(path: Path) -> LinkTrace:
    """The trace in a CSV file.

    Raises:
        SettingsError: If it cannot be read or is no trace; the message names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise SettingsError(f"{path}: no trace of a link: larger than {_MAX_BYTES} bytes")
    try:
        return parse_trace(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: no trace of a link: not UTF-8 text") from error


def parse_trace(text: str, name: str = "trace") -> LinkTrace:
    """The trace in CSV text.

    Args:
        text: As at the head of this module.
        name: What errors call it.

    Raises:
        SettingsError: If it is none; the message names the line.
    """
    lines = [(number, row) for number, row in enumerate(_rows(text, name), 1) if any(row)]
    if not lines or tuple(lines[0][1]) != HEADER:
        raise SettingsError(f"{name}, line 1: expected the header {','.join(HEADER)}")
    steps: list[tuple[float, Link | None]] = []
    period_s: float | None = None
    for number, row in lines[1:]:
        where = f"{name}, line {number}"
        if len(row) != len(HEADER):
            raise SettingsError(f"{where}: expected {len(HEADER)} columns, found {len(row)}")
        if period_s is not None:
            raise SettingsError(f"{where}: a step after {_REPEAT!r}, which comes last")
        at_s = _number(row[0], where, HEADER[0])
        if not steps and at_s != 0:
            raise SettingsError(f"{where}: the first step is at {at_s:g} s: expected 0")
        if steps and at_s <= steps[-1][0]:
            raise SettingsError(f"{where}: {at_s:g} s does not come after {steps[-1][0]:g} s")
        if row[1] == _REPEAT:
            period_s = at_s
        else:
            steps.append((at_s, _link(row, where)))
    try:
        return LinkTrace(tuple(steps), period_s)
    except SettingsError as error:
        raise SettingsError(f"{name}, line {lines[-1][0]}: {error}") from error


def to_csv(trace: LinkTrace) -> str:
    """The text that `parse_trace` reads as this trace."""
    rows: list[Sequence[str]] = [HEADER]
    for at_s, link in trace.steps:
        if link is None:
            rows.append((_text(at_s), "0", "", ""))
            continue
        same = link.downlink_bps == link.uplink_bps
        rates = _text(link.uplink_bps / 1e6), "" if same else _text(link.downlink_bps / 1e6)
        rows.append((_text(at_s), *rates, _text(link.rtt_ms)))
    if trace.period_s is not None:
        rows.append((_text(trace.period_s), _REPEAT, "", ""))
    return "".join(",".join(row) + "\n" for row in rows)


def _rows(text: str, name: str) -> list[list[str]]:
    try:
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise SettingsError(f"{name}: not CSV: {error}") from error
    return [[cell.strip() for cell in row] for row in rows]


def _link(row: Sequence[str], where: str) -> Link | None:
    uplink_mbit = _number(row[1], where, HEADER[1])
    downlink_mbit = _number(row[2] or row[1], where, HEADER[2])
    rtt_ms = _number(row[3] or "0", where, HEADER[3])
    if uplink_mbit == downlink_mbit == 0:
        return None
    try:
        return Link(_bps(uplink_mbit), _bps(downlink_mbit), rtt_ms)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from error


def _bps(mbit: float) -> float:
    """Bit/s as written, rounded: 2.788 x 10^6 is not exact in binary."""
    return round(mbit * 1e6, 3)


def _number(text: str, where: str, column: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SettingsError(f"{where}: {column} is {text!r}: expected a number")
    return number


def _text(number: float) -> str:
    return f"{number:.15g}"
