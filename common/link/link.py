"""Links: bandwidth and round-trip time, written "3mbit/20ms", and when a message gets through one.

A link may change: a `LinkTrace` says which link holds from when on, and a message that is on its
way while the rate changes goes on at the new one. The arithmetic is pure: times come in and go out
as numbers, so it is tested without waiting, and the emulated transport (`edge.stream.shaping`) only
waits until the time that it is given.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise

from common.errors import SettingsError

_UNITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_RATE = r"(\d+(?:\.\d+)?)\s*(bit|kbit|mbit|gbit)"
_LINK = re.compile(rf"{_RATE}(?::{_RATE})?(?:/(\d+(?:\.\d+)?)\s*ms)?", re.IGNORECASE | re.ASCII)
_MIN_BPS, _MAX_BPS = 1e3, 1e12
_MAX_RTT_MS = 60_000.0

# What may leave at once after a pause: one Ethernet frame, as a modem's queue would let through.
BURST_BYTES = 1500.0


@dataclass(frozen=True)
class Link:
    """A link between edge and cloud.

    | written | uplink | downlink | round trip |
    |---|---|---|---|
    | `3mbit` | 3 Mbit/s | 3 Mbit/s | 0 ms |
    | `3mbit/20ms` | 3 Mbit/s | 3 Mbit/s | 20 ms |
    | `3mbit:16mbit/20ms` | 3 Mbit/s | 16 Mbit/s | 20 ms |

    Units are decimal: 1 mbit is 10^6 bits per second.
    """

    uplink_bps: float
    downlink_bps: float
    rtt_ms: float

    def __post_init__(self) -> None:
        for rate in (self.uplink_bps, self.downlink_bps):
            if not _MIN_BPS <= rate <= _MAX_BPS:
                raise SettingsError(f"a link of {rate:g} bit/s: expected 1 kbit/s to 1 Tbit/s")
        if not 0 <= self.rtt_ms <= _MAX_RTT_MS:
            raise SettingsError(
                f"a round trip of {self.rtt_ms:g} ms: expected 0 to {_MAX_RTT_MS:g}"
            )

    def __str__(self) -> str:
        rates = _rate(self.uplink_bps)
        if self.downlink_bps != self.uplink_bps:
            rates += f":{_rate(self.downlink_bps)}"
        return f"{rates}/{_number(self.rtt_ms)}ms" if self.rtt_ms else rates


def transfer_ms(size_bytes: float, bps: float) -> float:
    """Time that bytes take at a bandwidth, in milliseconds."""
    return size_bytes * 8e3 / bps


def parse_link(text: str) -> Link:
    """A link as written in the table of `Link`.

    Raises:
        SettingsError: If it is not written so, or no such link makes sense.
    """
    match = _LINK.fullmatch(text.strip())
    if match is None:
        raise SettingsError(f"{text!r} is not a link: write it as 3mbit/20ms or 3mbit:16mbit/20ms")
    up, up_unit, down, down_unit, rtt = match.groups()
    uplink_bps = float(up) * _UNITS[up_unit.lower()]
    downlink_bps = uplink_bps if down is None else float(down) * _UNITS[down_unit.lower()]
    return Link(uplink_bps, downlink_bps, float(rtt or 0.0))


@dataclass(frozen=True)
class LinkTrace:
    """A link that changes: which one holds from when on.

    Attributes:
        steps: Seconds from the start, increasing from 0, each with the link from then on; None is
            an outage, during which nothing passes either way.
        period_s: When it begins again; None lets the last link hold for ever.
    """

    steps: tuple[tuple[float, Link | None], ...]
    period_s: float | None = None

    def __post_init__(self) -> None:
        starts = [at_s for at_s, _ in self.steps]
        if not starts or starts[0] != 0:
            raise SettingsError("a trace of a link: expected its first step at 0 s")
        ends = starts if self.period_s is None else [*starts, self.period_s]
        for before_s, at_s in pairwise(ends):
            if not before_s < at_s < math.inf:
                raise SettingsError(f"a trace of a link: {at_s:g} s after {before_s:g} s")
        links = [link for _, link in self.steps]
        if (links[-1] if self.period_s is None else next(filter(None, links), None)) is None:
            raise SettingsError("a trace of a link that ends in an outage: nothing would arrive")

    def at(self, time_s: float) -> Link | None:
        """The link at a time since the start; None in an outage."""
        return self.piece(time_s)[0]

    def piece(self, time_s: float) -> tuple[Link | None, float]:
        """The link at a time since the start, and until when, strictly later, it holds."""
        number = self._number(time_s)
        return self._link(number), self._start_s(number + 1)

    def rtt_ms(self, time_s: float) -> float:
        """The round trip at a time; in an outage, the one before (or else after) it."""
        number = self._number(time_s)
        before = (self._link(each) for each in range(number, -1, -1))
        after = (link for _, link in self.steps)
        return next(link.rtt_ms for links in (before, after) for link in links if link is not None)

    def _number(self, time_s: float) -> int:
        """Steps that began before, counted through all repetitions."""
        if time_s <= 0:
            return 0
        rounds = 0 if self.period_s is None else int(time_s // self.period_s)
        local_s = time_s - rounds * (self.period_s or 0.0)
        number = rounds * len(self.steps)
        number += max(0, bisect_right(self.steps, local_s, key=lambda step: step[0]) - 1)
        # The division may have rounded across a border.
        while self._start_s(number + 1) <= time_s:
            number += 1
        return number

    def _start_s(self, number: int) -> float:
        rounds, index = divmod(number, len(self.steps))
        if self.period_s is None:
            return self.steps[index][0] if rounds == 0 else math.inf
        return rounds * self.period_s + self.steps[index][0]

    def _link(self, number: int) -> Link | None:
        return self.steps[number % len(self.steps)][1]


Rates = Callable[[float], tuple[float, float]]
"""Function of a time: the rate then, in bit/s, and until when, strictly later, it holds."""


class TokenBucket:
    """One direction of a link: messages leave one after the other, at a rate, after a small burst.

    Tokens are bytes that may leave at once; they come in at the rate, up to the burst. A message
    leaves when the bucket holds as many as it has bytes, and may drive it into debt that later
    messages wait for. Tokens and debt outlast a change of the rate; while it is 0 nothing leaves.

    Args:
        rate: In bit/s, or what it is at which time.
        burst_bytes: The most tokens.
    """

    def __init__(self, rate: float | Rates, burst_bytes: float = BURST_BYTES) -> None:
        self._rates = rate if callable(rate) else lambda _: (rate, math.inf)
        self._burst_bytes = burst_bytes
        self._tokens = burst_bytes
        self._updated_s = -math.inf

    def departure_s(self, now_s: float, size_bytes: int) -> float:
        """Departure time of the last bit of a message handed over at `now_s`.

        Calls are in time order.
        """
        if self._updated_s == -math.inf:
            self._updated_s = now_s
        self._earn(max(now_s, self._updated_s))
        self._tokens -= size_bytes
        return self._paid_s()

    def _earn(self, until_s: float) -> None:
        """Let tokens come in."""
        at_s = self._updated_s
        while at_s < until_s and self._tokens < self._burst_bytes:
            rate_bps, end_s = self._rates(at_s)
            earned = (min(end_s, until_s) - at_s) * rate_bps / 8
            self._tokens = min(self._burst_bytes, self._tokens + earned)
            at_s = end_s
        self._updated_s = until_s

    def _paid_s(self) -> float:
        """Time at which the debt, if any, is paid and something can leave."""
        at_s, debt = self._updated_s, max(0.0, -self._tokens)
        while True:
            rate_bps, end_s = self._rates(at_s)
            if rate_bps:
                paid_s = at_s + debt * 8 / rate_bps
                if paid_s <= end_s:
                    return paid_s
                debt = max(0.0, debt - (end_s - at_s) * rate_bps / 8)
            at_s = end_s


class Shaper:
    """Both directions of a link: when a message that is sent now arrives at the other end.

    Args:
        link: One link for ever, or how it changes.
        start_s: When the trace begins, on the clock of the times that are asked.
    """

    def __init__(self, link: Link | LinkTrace, start_s: float = 0.0) -> None:
        trace = LinkTrace(((0.0, link),)) if isinstance(link, Link) else link
        self._up = _Direction(trace, start_s, lambda link: link.uplink_bps)
        self._down = _Direction(trace, start_s, lambda link: link.downlink_bps)

    def uplink_arrival_s(self, now_s: float, size_bytes: int) -> float:
        """Arrival in the cloud of a message sent by the edge at `now_s`."""
        return self._up.arrival_s(now_s, size_bytes)

    def downlink_arrival_s(self, now_s: float, size_bytes: int) -> float:
        """Arrival at the edge of a message sent by the cloud at `now_s`."""
        return self._down.arrival_s(now_s, size_bytes)


class _Direction:
    """A bucket and the way behind it, on which no message overtakes another."""

    def __init__(self, trace: LinkTrace, start_s: float, rate_of: Callable[[Link], float]) -> None:
        self._trace = trace
        self._start_s = start_s
        self._rate_of = rate_of
        self._bucket = TokenBucket(self._rates)
        self._last_s = -math.inf

    def arrival_s(self, now_s: float, size_bytes: int) -> float:
        left_s = self._bucket.departure_s(now_s - self._start_s, size_bytes)
        arrival_s = self._start_s + left_s + self._trace.rtt_ms(left_s) / 2e3
        self._last_s = max(self._last_s, arrival_s)
        return self._last_s

    def _rates(self, time_s: float) -> tuple[float, float]:
        link, end_s = self._trace.piece(time_s)
        return 0.0 if link is None else self._rate_of(link), end_s


def _rate(bps: float) -> str:
    for unit in ("gbit", "mbit", "kbit"):
        if bps >= _UNITS[unit]:
            return f"{_number(bps / _UNITS[unit])}{unit}"
    return f"{_number(bps)}bit"


def _number(value: float) -> str:
    return format(Decimal(repr(value)).normalize(), "f")
