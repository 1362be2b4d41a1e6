"""Crossovers: which of several plans is the fastest at which bandwidth.

    latency = fixed + bits x 1/bandwidth

Over 1/bandwidth every plan is a line, and the fastest plans are the lower envelope of these lines.
It is found exactly, as a convex hull is: plans come in the order of their bits, and the last winner
is dropped while the next plan overtakes it before it has won anything.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.link.link import transfer_ms

_UNITS = (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0))
_MOST_DIGITS = 17


@dataclass(frozen=True)
class Line:
    """The latency of one plan, by the bandwidth of the uplink.

    Attributes:
        name: Of the plan, for people.
        uplink_bytes: What travels before the answer can come.
        fixed_ms: The part of the latency that no bandwidth changes.
        overhead_bytes: Part of `uplink_bytes` that texts for people leave out: framing. Negative
            for bytes that they add: a burst.
    """

    name: str
    uplink_bytes: float
    fixed_ms: float
    overhead_bytes: float = 0.0

    def latency_ms(self, uplink_bps: float) -> float:
        """Latency in milliseconds at one bandwidth."""
        return self.fixed_ms + transfer_ms(self.uplink_bytes, uplink_bps)


@dataclass(frozen=True)
class Stretch:
    """The bandwidths at which one plan is the fastest.

    Attributes:
        line: The plan.
        from_bps: Where it begins to be, of the uplink; 0 if at the slowest link.
        to_bps: Where another plan overtakes it; infinite if none does.
    """

    line: Line
    from_bps: float
    to_bps: float


def crossovers(lines: Iterable[Line]) -> list[Stretch]:
    """The fastest plan of every bandwidth, from the lowest bandwidth to the highest.

    Of plans that take the same time at every bandwidth, the first is meant.
    """
    winners: list[tuple[Line, float]] = []
    for line in sorted(lines, key=lambda line: (line.uplink_bytes, line.fixed_ms)):
        if winners and line.fixed_ms >= winners[-1][0].fixed_ms:
            continue
        from_bps = 0.0
        while winners:
            from_bps = _crossing_bps(winners[-1][0], line)
            if from_bps > winners[-1][1]:
                break
            winners.pop()
        winners.append((line, from_bps))
    ends = [from_bps for _, from_bps in winners[1:]] + [math.inf]
    # Without plans there is one end, and nothing that it ends.
    return [
        Stretch(line, from_bps, to_bps)
        for (line, from_bps), to_bps in zip(winners, ends, strict=False)
    ]


def in_words(stretches: Sequence[Stretch]) -> list[str]:
    """A line for each stretch, such as "below 2.3 Mbit/s: conv_8 4-bit packed (5,300 bytes)"."""
    digits = _digits([stretch.from_bps for stretch in stretches[1:]])
    return [
        f"{_range(stretch, digits)}: {stretch.line.name} "
        f"({stretch.line.uplink_bytes - stretch.line.overhead_bytes:,.0f} bytes)"
        for stretch in stretches
    ]


def rate_in_words(bps: float, digits: int = 2) -> str:
    """A bandwidth in the largest unit that it has one of, such as "2.3 Mbit/s"."""
    return " ".join(_rate(bps, digits))


def _crossing_bps(lean: Line, quick: Line) -> float:
    """Bandwidth above which a plan of more bits and less fixed time is the faster one."""
    return 8e3 * (quick.uplink_bytes - lean.uplink_bytes) / (lean.fixed_ms - quick.fixed_ms)


def _digits(bounds: Sequence[float]) -> int:
    """Fewest significant digits, at least two, that keep all bounds distinct."""
    for digits in range(2, _MOST_DIGITS):
        if len({_rate(bound, digits) for bound in bounds}) == len(bounds):
            return digits
    return _MOST_DIGITS


def _range(stretch: Stretch, digits: int) -> str:
    start, start_unit = _rate(stretch.from_bps, digits)
    end = rate_in_words(stretch.to_bps, digits)
    if math.isinf(stretch.to_bps):
        return f"above {start} {start_unit}" if stretch.from_bps else "at any bandwidth"
    if not stretch.from_bps:
        return f"below {end}"
    if end.endswith(f" {start_unit}"):
        return f"from {start} to {end}"
    return f"from {start} {start_unit} to {end}"


def _rate(bps: float, digits: int) -> tuple[str, str]:
    rounded = float(f"{bps:.{digits}g}")
    unit, size = next((each for each in _UNITS if rounded >= each[1]), _UNITS[-1])
    return f"{rounded / size:.{max(digits, 4)}g}", unit
