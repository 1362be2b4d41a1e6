"""Links: bandwidth and round-trip time, written "3mbit/20ms", and when a message gets through one.

The arithmetic is pure: times come in and go out as numbers, so it is tested without waiting, and
the emulated transport (`edge.shaping`) only waits until the time that it is told.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal

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


class TokenBucket:
    """One direction of a link: messages leave one after the other, at a rate, after a small burst.

    Tokens are bytes that may leave at once; they come in at the rate, up to the burst. A message
    leaves when the bucket holds as many as it has bytes, and may drive it into debt that later
    messages wait for.
    """

    def __init__(self, rate_bps: float, burst_bytes: float = BURST_BYTES) -> None:
        self._bytes_per_s = rate_bps / 8
        self._burst_bytes = burst_bytes
        self._tokens = burst_bytes
        self._updated_s = -math.inf

    def departure_s(self, now_s: float, size_bytes: int) -> float:
        """When the last bit of a message handed over at `now_s` leaves; calls are in time order."""
        if self._updated_s == -math.inf:
            self._updated_s = now_s
        earned = max(0.0, now_s - self._updated_s) * self._bytes_per_s
        self._tokens = min(self._burst_bytes, self._tokens + earned) - size_bytes
        self._updated_s = max(now_s, self._updated_s)
        return self._updated_s + max(0.0, -self._tokens) / self._bytes_per_s


class Shaper:
    """Both directions of a link: when a message that is sent now arrives at the other end."""

    def __init__(self, link: Link) -> None:
        self._up = TokenBucket(link.uplink_bps)
        self._down = TokenBucket(link.downlink_bps)
        self._one_way_s = link.rtt_ms / 2e3

    def uplink_arrival_s(self, now_s: float, size_bytes: int) -> float:
        """Arrival in the cloud of a message sent by the edge at `now_s`."""
        return self._up.departure_s(now_s, size_bytes) + self._one_way_s

    def downlink_arrival_s(self, now_s: float, size_bytes: int) -> float:
        """Arrival at the edge of a message sent by the cloud at `now_s`."""
        return self._down.departure_s(now_s, size_bytes) + self._one_way_s


def _rate(bps: float) -> str:
    for unit in ("gbit", "mbit", "kbit"):
        if bps >= _UNITS[unit]:
            return f"{_number(bps / _UNITS[unit])}{unit}"
    return f"{_number(bps)}bit"


def _number(value: float) -> str:
    return format(Decimal(repr(value)).normalize(), "f")
