"""Names that a user chooses from."""

from collections.abc import Iterable
from typing import TypeVar

from common.errors import SettingsError

Name = TypeVar("Name", bound=str)


def one_of(name: str, known: Iterable[Name], what: str) -> Name:
    """Return the valid name that a user gave.

    Args:
        name: What a user wrote.
        known: All valid names.
        what: What the names stand for, in the singular, for the error.

    Raises:
        SettingsError: If it is none of them.
    """
    names = tuple(known)
    for each in names:
        if each == name:
            return each
    raise SettingsError(f"unknown {what} {name!r}: choose one of {', '.join(names)}")


def in_words(names: Iterable[str]) -> str:
    """Names as a list in a sentence, such as "a, b or c"."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
