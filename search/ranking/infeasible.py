"""Binding limits: if no plan is feasible, the limits that exclude all, and the least relaxation.

Every limit is relaxed on its own: memory to the smallest head that was too large, accuracy to what
the plan that loses least may lose at most. If a plan seems good and the pictures that judge are too
few to be sure, more of them are a way out, too. The cheapest relaxation is the one of the smallest
factor; letting pixels leave the edge comes last, since forbidding it is a matter of privacy.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.bundle.manifest import JudgedBy
from search.measure.held_out import JUDGING_SHARE
from search.measure.intervals import images_needed
from search.network.cuts import Cut
from search.prediction.candidates import RankedCandidate
from search.quantization.heads import Heads
from search.request import Request

_MIB = 2**20


@dataclass(frozen=True)
class Relaxation:
    """One limit, relaxed as far as necessary.

    Attributes:
        option: Option for the command line.
        factor: The new limit over the old one; infinite if it is to be dropped.
        because: Plan or head that becomes feasible.
    """

    option: str
    factor: float
    because: str


def no_head_fits(heads: Heads, cuts: Sequence[Cut], limit: int | None) -> str:
    """Message if no head keeps the memory limit and pixels may not leave the edge.

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
    """Memory that the smallest head needs, and advice to raise the limit."""
    smallest = min((c for c in cuts if c.head), key=lambda cut: sum(heads.memory_bytes(cut)))
    weights, activations = heads.memory_bytes(smallest)
    return (
        f"the smallest head, up to {smallest.name}, needs {(weights + activations) / _MIB:.2f} "
        f"MiB, {activations / _MIB:.2f} of it for activations, which no width saves; raise "
        f"--edge-memory to {_rounded_up(weights + activations)}"
    )


def nothing_fits(
    measured: Sequence[RankedCandidate],
    best: float,
    request: Request,
    heads: Heads,
    cuts: Sequence[Cut],
    judged_by: JudgedBy = "held-out",
) -> str:
    """Message if no measured plan keeps the limits, with the relaxations that admit one.

    Args:
        measured: The measured candidates, at least one.
        best: Accuracy of the floating-point network.
        request: The limits.
        heads: The integer networks.
        cuts: All of the network.
        judged_by: Where the pictures come from that judged.
    """
    closest = _closest(measured)
    drop = best - (closest.accuracy or 0.0)
    ways = sorted(
        _relaxations(measured, best, request, heads, cuts, judged_by), key=lambda way: way.factor
    )
    limits = f"--max-drop {request.max_drop:g}"
    if request.edge_memory_bytes is not None:
        limits += f" and --edge-memory {request.edge_memory_bytes / _MIB:g}MiB"
    advice = "; ".join(f"{way.option} ({way.because})" for way in ways)
    surely = ""
    if math.isfinite(closest.most_lost):
        surely = f" and at most {closest.most_lost:.2f} on {closest.judged_on} pictures (90 %)"
    few = drop <= request.max_drop < closest.most_lost and math.isfinite(closest.most_lost)
    return (
        f"no plan {'surely ' if few else ''}keeps {limits}: of {best:.1f} points "
        f"{closest.candidate.name} loses least, {drop:.2f}{surely}"
        f"{', too few to be sure' if few else ''}; the cheapest ways out: {advice}"
    )


def _closest(measured: Sequence[RankedCandidate]) -> RankedCandidate:
    """Candidate with the lowest upper bound of its loss."""
    return min(measured, key=lambda judged: (judged.most_lost, -(judged.accuracy or 0.0)))


def _relaxations(
    measured: Sequence[RankedCandidate],
    best: float,
    request: Request,
    heads: Heads,
    cuts: Sequence[Cut],
    judged_by: JudgedBy,
) -> Iterable[Relaxation]:
    limit = request.edge_memory_bytes
    memory = float("inf") if limit is None else limit
    fitting = [j for j in measured if j.candidate.edge_memory_bytes <= memory]
    if fitting:
        yield from _accuracy_relaxations(fitting, best, request.max_drop, judged_by)
    if limit is not None:
        accurate = [
            judged.candidate
            for judged in measured
            if judged.candidate.edge_memory_bytes > memory and judged.most_lost <= request.max_drop
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


def _accuracy_relaxations(
    fitting: Sequence[RankedCandidate], best: float, max_drop: float, judged_by: JudgedBy
) -> Iterable[Relaxation]:
    """A larger limit for the closest plan, or more pictures to show that a plan is within it."""
    closest = _closest(fitting)
    drop = best - (closest.accuracy or 0.0)
    bound = closest.most_lost if math.isfinite(closest.most_lost) else drop
    if bound > max_drop:
        factor = bound / max_drop if max_drop else float("inf")
        # Rounded up, so that the same search then finds it.
        option = f"--max-drop {math.ceil(100 * bound) / 100:.2f}"
        yield Relaxation(option, factor, f"{closest.candidate.name} is good enough then")
    for judged in sorted(fitting, key=lambda j: -(j.accuracy or 0.0)):
        if not math.isfinite(judged.most_lost) or judged.most_lost <= max_drop:
            continue
        drop = best - (judged.accuracy or 0.0)
        needed = images_needed(judged.judged_on, drop, judged.most_lost, max_drop)
        if needed is not None:
            because = f"if {judged.candidate.name} loses {drop:.2f} on them, too: an estimate"
            yield Relaxation(more_pictures(needed, judged_by), needed / judged.judged_on, because)
            return


def more_pictures(needed: int, judged_by: JudgedBy) -> str:
    """Advice on options that make about `needed` pictures judge plans."""
    if judged_by == "evaluation":
        return f"about {needed:,} pictures under --evaluation, with --max-images {needed}"
    total = JUDGING_SHARE * needed
    return (
        f"about {needed:,} pictures to judge on, by --evaluation or as a quarter of {total:,} "
        f"calibration pictures, with --max-images {total}"
    )


def _rounded_up(size: int) -> str:
    """Format a size for `--edge-memory`, rounded up to two decimals."""
    return f"{-(-size * 100 // _MIB) / 100:g}MiB"
