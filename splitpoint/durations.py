"""Parsers of durations and percentages: "24h", "90s", "5%"."""

import re

from common.errors import SettingsError

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_MOST_S = 366 * 86_400


def parse_duration(text: str) -> float:
    """Parse a duration such as "24h" into seconds.

    Raises:
        SettingsError: If it is not a positive number with a known unit, of 366 days at the most.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text, re.ASCII)
    unit = _SECONDS.get(match.group(2).lower()) if match else None
    seconds = 0.0 if match is None or unit is None else float(match.group(1)) * unit
    if not 0 < seconds <= _MOST_S:
        raise SettingsError(f"{text!r} is not a duration: write it as 90s, 30m, 24h or 7d")
    return seconds


def parse_percent(text: str) -> float:
    """Parse a percentage such as "5%" into a fraction.

    Raises:
        SettingsError: If it is not a percentage from 0 to 100.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text, re.ASCII)
    if match is None or float(match.group(1)) > 100:
        raise SettingsError(f"{text!r} is not a percentage: write it as 5%")
    return float(match.group(1)) / 100
