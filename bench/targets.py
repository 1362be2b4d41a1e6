"""Targets and whether they are met: one line each, by the worst case that was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A target of a benchmark, and its worst measured case.

    Attributes:
        what: The target in words.
        worst: The worst value that was measured.
        where: The case of the worst value.
        met: Whether it is good enough.
    """

    what: str
    worst: str
    where: str
    met: bool

    @property
    def line(self) -> str:
        """The target as one line of text."""
        return f"{'met' if self.met else 'MISSED'}: {self.what}: {self.worst} ({self.where})"
