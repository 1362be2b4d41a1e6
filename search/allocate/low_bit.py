"""Low-bit heads: cuts whose weights fit into the edge's memory only at fewer than 8 bits.

    cut + memory limit -> widths of least error (allocate/exact.py) -> weights rounded together
                       -> measured; if too much is lost, the most harmful layer gets more bits

Activations keep 8 bits: a CPU holds each code in a byte, whatever its width, and fewer bits would
save nothing there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from common.errors import NoFeasiblePlanError
from common.progress import Progress
from search.allocate.exact import solve_exact
from search.allocate.lagrangian import lagrangian
from search.allocate.problem import Problem, TensorChoice
from search.network.cuts import Cut
from search.network.graph import Node
from search.quantization.heads import Heads
from search.quantization.network import QuantizedGraph, integer_bias
from search.quantization.rounding import Rounder
from search.quantization.sensitivity import Errors
from search.quantization.weights import CLIPS, round_nearest, scale_of
from search.quantization.widths import WIDTHS

Solver = Callable[[Problem], Mapping[str, int]]
"""Function from a problem to the widths of its weights, by name."""


def exact(problem: Problem) -> Mapping[str, int]:
    """The widths of least error."""
    return solve_exact(problem).weights


def relaxed(problem: Problem) -> Mapping[str, int]:
    """Widths found by a Lagrange multiplier, as in the original Auto-Split."""
    chosen = lagrangian(problem.weights, problem.memory_bits or 0)
    return {choice.name: bits for choice, bits in zip(problem.weights, chosen, strict=True)}


class LowBitAllocator:
    """Allocator of weight widths with which heads fit into memory.

    Args:
        heads: Integer networks by cut; low-bit ones are added.
        errors: Of each convolution's weights, at every width.
        memory_bytes: Limit on weights and peak activations.
        rounder: Rounds the weights together.
    """

    def __init__(
        self,
        heads: Heads,
        errors: Errors,
        memory_bytes: int,
        rounder: Rounder,
    ) -> None:
        self._heads = heads
        self._errors = errors
        self._memory_bytes = memory_bytes
        self._rounder = rounder
        self._least: dict[str, dict[str, int]] = {}

    def fitted(self, cuts: Sequence[Cut]) -> list[Cut]:
        """The cuts that need fewer bits and then fit, their weights rounded to the nearest."""
        found = []
        for cut in cuts:
            if not cut.head or sum(self._heads.memory_bytes(cut)) <= self._memory_bytes:
                continue
            widths = self.allocated(cut)
            if widths is not None:
                found.append(self._heads.narrowed(cut, self._nearest(widths)))
        return found

    def reconstructed(self, cut: Cut, progress: Progress) -> Cut:
        """A low-bit cut with weights that make up for each other's errors."""
        better = self._rounder.reconstruct(self._heads.of(cut), cut.codes, progress)
        return self._heads.narrowed(cut, better, cut.widths)

    def promoted(self, cut: Cut) -> Cut | None:
        """The cut with more bits for the layer that harms most; None if memory has no room for it.

        The program is solved again, that layer's present width excluded: others may have to give.
        """
        network = self._heads.of(cut)
        now = {n.name: network.convs[n.name].bits for n in cut.head if n.name in network.convs}
        for name in sorted(now, key=lambda name: -self._errors[name][now[name]]):
            if now[name] == max(WIDTHS):
                continue
            least = self._least.setdefault(cut.name, {})
            before, least[name] = least.get(name), min(w for w in WIDTHS if w > now[name])
            widths = self.allocated(cut)
            if widths is not None:
                promoted, plain = self._nearest(widths), replace(cut, widths="")
                return self._heads.narrowed(plain, promoted, self._heads.fresh_name(cut, promoted))
            least.pop(name)
            if before is not None:
                least[name] = before
        return None

    def allocated(self, cut: Cut, solve: Solver = exact) -> dict[str, int] | None:
        """Widths by convolution; None if nothing fits.

        Room for context models is left if there is any.
        """
        convs = [node for node in cut.head if node.name in self._heads.network.convs]
        for reserve in (_context_bytes(self._heads.network, cut), 0):
            try:
                return dict(solve(self._problem(cut, convs, reserve)))
            except NoFeasiblePlanError:
                continue
        return None

    def _problem(self, cut: Cut, convs: Sequence[Node], reserve: int) -> Problem:
        network, least = self._heads.network, self._least.get(cut.name, {})
        fixed = sum(
            network.convs[n.name].stored_bytes - network.convs[n.name].weight.size for n in convs
        )
        _, activations = self._heads.memory_bytes(replace(cut, widths=""))
        choices = []
        for node in convs:
            widths = [w for w in WIDTHS if w >= least.get(node.name, 0)]
            choices.append(
                TensorChoice(
                    name=node.name,
                    elements=network.convs[node.name].weight.size,
                    widths=tuple(widths),
                    errors=tuple(self._errors[node.name][width] for width in widths),
                )
            )
        room = self._memory_bytes - activations - fixed - reserve
        return Problem(tuple(choices), (), (), memory_bits=max(0, 8 * room))

    def _nearest(self, widths: dict[str, int]) -> QuantizedGraph:
        network = self._heads.network
        convs = dict(network.convs)
        for name, bits in widths.items():
            if bits == 8:
                continue
            node, source = network.graph[name], network.grids[network.graph[name].inputs[0]]
            if node.weight is None:
                raise ValueError(f"{name} is no convolution")
            scale = scale_of(CLIPS["mse"](node.weight, bits), bits)
            convs[name] = replace(
                convs[name],
                weight=round_nearest(node.weight, scale, bits),
                scale=scale,
                bias=integer_bias(node.bias, source, scale),
                bits=bits,
            )
        return replace(network, convs=convs)


def _context_bytes(network: QuantizedGraph, cut: Cut) -> int:
    """Estimated edge memory of the context models of a cut's tensors."""
    return sum(6 * network.graph[name].shape[0] ** 2 + 8192 for name in cut.tensors)
