"""Sizes as people write them: "16MiB", "500 kB", "2GB"."""

import re

from common.errors import SettingsError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}


def parse_size(text: str) -> int:
    """Bytes of a size such as "4MiB".

    Raises:
        SettingsError: If it is not a positive number with a known unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match.group(2).lower()) if match else None
    size = 0 if match is None or unit is None else int(float(match.group(1)) * unit)
    if size < 1:
        raise SettingsError(f"{text!r} is not a size: write it as 16MiB, 500kB or 2GB")
    return size


def size_of(given: str | float) -> int:
    """Bytes of a size that is given as a text or as a number.

    Raises:
        SettingsError: If it is no size of at least one byte.
    """
    if isinstance(given, str):
        return parse_size(given)
    if isinstance(given, bool) or given < 1 or given != int(given):
        raise SettingsError(f"{given!r} is not a size: give a whole number of bytes, 1 or more")
    return int(given)
