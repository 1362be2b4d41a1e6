"""What must be reached, and whether it was: one line each, by the worst case that was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """Something that must be reached.

    Attributes:
        what: In words.
        worst: The worst case that was measured.
        where: Which case that was.
        met: Whether it is good enough.
    """

    what: str
    worst: str
    where: str
    met: bool

    @property
    def line(self) -> str:
        """For people."""
        return f"{'met' if self.met else 'MISSED'}: {self.what}: {self.worst} ({self.where})"
