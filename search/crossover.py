"""Crossovers: which of the kept plans is the fastest at which bandwidth.

    latency = fixed + bits x 1/bandwidth

Over 1/bandwidth every plan is a line, and the fastest plans are the lower envelope of these lines.
It is found exactly, as a convex hull is: plans come in the order of their bits, and the last winner
is dropped while the next plan overtakes it before it has won anything.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.candidates import Judged, World, predict

_UNITS = (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0))
_MOST_DIGITS = 17


@dataclass(frozen=True)
class Stretch:
    """The bandwidths at which one plan is the fastest.

    Attributes:
        judged: The plan.
        from_bps: Where it begins to be, of the uplink; 0 if at the slowest link.
        to_bps: Where another plan overtakes it; infinite if none does.
    """

    judged: Judged
    from_bps: float
    to_bps: float


@dataclass(frozen=True)
class _Line:
    judged: Judged
    bits: float
    fixed_ms: float


def crossovers(kept: Sequence[Judged], world: World) -> list[Stretch]:
    """The fastest plan of every bandwidth, from the lowest bandwidth to the highest.

    Round trip and device are those of `world`. Of plans that take the same time at every bandwidth,
    the first is meant.
    """
    lines = sorted((_line(j, world) for j in kept), key=lambda line: (line.bits, line.fixed_ms))
    winners: list[tuple[_Line, float]] = []
    for line in lines:
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
        Stretch(line.judged, from_bps, to_bps)
        for (line, from_bps), to_bps in zip(winners, ends, strict=False)
    ]


def in_words(stretches: Sequence[Stretch]) -> list[str]:
    """A line for each stretch, such as "below 2.3 Mbit/s: conv_8 4-bit packed (5,300 bytes)"."""
    digits = _digits([stretch.from_bps for stretch in stretches[1:]])
    return [
        f"{_range(stretch, digits)}: {stretch.judged.candidate.name} "
        f"({stretch.judged.axes[1]:,.0f} bytes)"
        for stretch in stretches
    ]


def rate_in_words(bps: float, digits: int = 2) -> str:
    """A bandwidth in the largest unit that it has one of, such as "2.3 Mbit/s"."""
    return " ".join(_rate(bps, digits))


def _line(judged: Judged, world: World) -> _Line:
    prediction = predict(judged.candidate, judged.times, world)
    fixed_ms = math.fsum(
        (
            prediction.preprocess_ms,
            prediction.head_ms,
            prediction.encode_ms,
            prediction.rtt_ms,
            prediction.decode_ms,
            prediction.tail_ms,
            prediction.postprocess_ms,
        )
    )
    return _Line(judged, prediction.uplink_bytes * 8, fixed_ms)


def _crossing_bps(lean: _Line, quick: _Line) -> float:
    """Where a plan of more bits and less fixed time overtakes another."""
    return 1e3 * (quick.bits - lean.bits) / (lean.fixed_ms - quick.fixed_ms)


def _digits(bounds: Sequence[float]) -> int:
    """How many digits tell all of them apart; two at the least."""
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
