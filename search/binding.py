"""Binding limits: when no plan is left, which limits leave none, and the cheapest way out.

Every limit is relaxed on its own: memory to the smallest head that was too large, accuracy to the
plan that loses least. The cheapest relaxation is the one of the smallest factor; letting pixels
leave the edge comes last, for whoever forbids it has a reason.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.candidates import Judged
from search.cuts import Cut
from search.heads import Heads
from search.request import Request

_MIB = 2**20


@dataclass(frozen=True)
class Relaxation:
    """One limit, as it would have to be.

    Attributes:
        option: What to write on the command line.
        factor: The new limit over the old one; infinite if it is to be dropped.
        because: Which plan or head it lets in.
    """

    option: str
    factor: float
    because: str


def no_head_fits(heads: Heads, cuts: Sequence[Cut], limit: int | None) -> str:
    """What to do if no head keeps the memory limit and pixels may not leave the edge.

    Args:
        heads: The integer networks.
        cuts: Those that may be used.
        limit: On weights and peak activations, in bytes.
    """
    split = [cut for cut in cuts if cut.head]
    if not split:
        return "no head has an integer form and pixels may not leave the edge: drop --no-raw-image"
    asked = "" if limit is None else f" of {limit / _MIB:g} MiB"
    return (
        f"no head fits into the edge's memory{asked}, and pixels may not leave it: "
        f"{smallest_head(heads, split)}, or drop --no-raw-image"
    )


def smallest_head(heads: Heads, cuts: Sequence[Cut]) -> str:
    """What the smallest head needs, and what to do about it."""
    smallest = min((c for c in cuts if c.head), key=lambda cut: sum(heads.memory_bytes(cut)))
    weights, activations = heads.memory_bytes(smallest)
    return (
        f"the smallest head, up to {smallest.name}, needs {(weights + activations) / _MIB:.2f} "
        f"MiB, {activations / _MIB:.2f} of it for activations, which no width saves; raise "
        f"--edge-memory to {_rounded_up(weights + activations)}"
    )


def nothing_fits(
    measured: Sequence[Judged], best: float, request: Request, heads: Heads, cuts: Sequence[Cut]
) -> str:
    """Why no measured plan keeps the limits, and what would let one in.

    Args:
        measured: What was measured, at least one.
        best: Accuracy of the floating-point network.
        request: The limits.
        heads: The integer networks.
        cuts: All of the network.
    """
    closest = max(measured, key=lambda judged: judged.accuracy or 0.0)
    drop = best - (closest.accuracy or 0.0)
    ways = sorted(_relaxations(measured, best, request, heads, cuts), key=lambda way: way.factor)
    limits = f"--max-drop {request.max_drop:g}"
    if request.edge_memory_bytes is not None:
        limits += f" and --edge-memory {request.edge_memory_bytes / _MIB:g}MiB"
    advice = "; ".join(f"{way.option} ({way.because})" for way in ways)
    return (
        f"no plan keeps {limits}: of {best:.1f} points {closest.candidate.name} loses least, "
        f"{drop:.2f}; the cheapest ways out: {advice}"
    )


def _relaxations(
    measured: Sequence[Judged], best: float, request: Request, heads: Heads, cuts: Sequence[Cut]
) -> Iterable[Relaxation]:
    limit = request.edge_memory_bytes
    memory = float("inf") if limit is None else limit
    fitting = [j for j in measured if j.candidate.edge_memory_bytes <= memory]
    if fitting:
        closest = max(fitting, key=lambda judged: judged.accuracy or 0.0)
        drop = best - (closest.accuracy or 0.0)
        factor = drop / request.max_drop if request.max_drop else float("inf")
        # Rounded up, so that the same search then finds it.
        option = f"--max-drop {drop + 0.005:.2f}"
        yield Relaxation(option, factor, f"{closest.candidate.name} is good enough then")
    if limit is not None:
        accurate = [
            judged.candidate
            for judged in measured
            if judged.candidate.edge_memory_bytes > memory
            and best - (judged.accuracy or 0.0) <= request.max_drop
        ]
        needs = [(candidate.edge_memory_bytes, candidate.name) for candidate in accurate]
        needs += [
            (need, f"the head up to {cut.name} fits in 8 bits then")
            for cut in cuts
            if request.strategy == "splitpoint"  # others would choose the same again
            and cut.head
            and (need := sum(heads.memory_bytes(cut))) > memory
        ]
        if needs:
            need, what = min(needs)
            because = what if what.endswith(" then") else f"{what} fits then"
            yield Relaxation(f"--edge-memory {_rounded_up(need)}", need / limit, because)
    if request.no_raw_image:
        yield Relaxation("no --no-raw-image", float("inf"), "uploads lose nothing")


def _rounded_up(size: int) -> str:
    """A size as `--edge-memory` takes it, to two digits and not less."""
    return f"{-(-size * 100 // _MIB) / 100:g}MiB"
