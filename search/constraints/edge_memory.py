"""Limit on edge memory: weights as stored, and the peak of activations, of the head."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from common.bundle.manifest import EDGE_MEMORY, Limit
from common.sizes import size_of
from search.constraints.base import Constraint, Relaxation, SearchFacts
from search.network.cuts import Cut
from search.prediction.candidates import RankedCandidate
from search.quantization.heads import Heads

_MIB = 2**20


@dataclass(frozen=True)
class EdgeMemory(Constraint):
    """Most bytes that a head's weights and activations may take together."""

    name: ClassVar[str] = EDGE_MEMORY

    limit: int

    @classmethod
    def parse(cls, given: str | Limit) -> Self | None:
        """Read a size, such as "16MiB" or a number of bytes."""
        return cls(size_of(given))

    @property
    def option(self) -> str:
        """Option on the command line."""
        return f"--edge-memory {self.limit / _MIB:g}MiB"

    @property
    def words(self) -> str:
        """Description for reports."""
        return f"edge memory {self.limit / _MIB:g} MiB"

    def admits(self, candidate: RankedCandidate) -> bool:
        """Whether a head fits, with context models, which no cut was charged for."""
        return candidate.candidate.edge_memory_bytes <= self.limit

    def admits_cut(self, cut: Cut, heads: Heads) -> bool:
        """Whether a head fits with the widths that it has."""
        return sum(heads.memory_bytes(cut)) <= self.limit

    def cut_advice(self, cuts: Sequence[Cut], heads: Heads) -> str:
        """Memory that the smallest head needs, and advice to raise the limit."""
        return smallest_head(heads, cuts)

    def relaxed_for(self, candidate: RankedCandidate, facts: SearchFacts) -> Relaxation:
        """Limit raised to what a candidate needs."""
        del facts
        plan = candidate.candidate
        return self._raised(plan.edge_memory_bytes, f"{plan.name} fits then")

    def relaxations(
        self, others: Sequence[RankedCandidate], facts: SearchFacts
    ) -> Iterable[Relaxation]:
        """The least of the limits at which a measured plan, or one more head at 8 bits, fits."""
        ways = [self.relaxed_for(each, facts) for each in others]
        if facts.strategy == "splitpoint":  # others would choose the same again
            ways += [
                self._raised(need, f"the head up to {cut.name} fits in 8 bits then")
                for cut in facts.cuts
                if cut.head and (need := sum(facts.heads.memory_bytes(cut))) > self.limit
            ]
        if ways:
            yield min(ways, key=lambda way: (way.factor, way.because))

    def _raised(self, need: int, because: str) -> Relaxation:
        return Relaxation(f"--edge-memory {_rounded_up(need)}", need / self.limit, because)


def smallest_head(heads: Heads, cuts: Sequence[Cut]) -> str:
    """Memory that the smallest head needs, and advice to raise the limit."""
    smallest = min((c for c in cuts if c.head), key=lambda cut: sum(heads.memory_bytes(cut)))
    weights, activations = heads.memory_bytes(smallest)
    return (
        f"the smallest head, up to {smallest.name}, needs {(weights + activations) / _MIB:.2f} "
        f"MiB, {activations / _MIB:.2f} of it for activations, which no width saves; raise "
        f"--edge-memory to {_rounded_up(weights + activations)}"
    )


def _rounded_up(size: int) -> str:
    """Format a size for `--edge-memory`, rounded up to two decimals."""
    return f"{-(-size * 100 // _MIB) / 100:g}MiB"
