"""Search of the wire formats of the most promising cuts.

    good candidates -> most promising cuts -> rate curve of each -> measured, cheapest first
        -> the first that is good as it is       -> candidates, one by each codec
        -> cheaper ones, their tails adapted     -> candidates

`search.refine.refine` describes the cost of refining; all results are cached.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.progress import Reporter
from search.constraints.feasibility import Feasibility
from search.measure.accuracy_evaluator import AccuracyEvaluator
from search.network.cuts import Cut, cut_of_head
from search.prediction.candidates import Candidate
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.refine.cached_refiner import CachedRefiner
from search.refine.refine import CONTEXT, Refiner, cheaper
from search.request import Request
from search.wire.rate_curve import RateCurve, RatePoint
from search.wire.tail_adaptation import ADAPTATION_GAIN, Wire
from search.wire.training_data import collect, collect_pairs, copies_of

_THREADS = 2


class FormatSearch:
    """Searches formats of cuts and has the evaluator measure them.

    Args:
        request: How many cuts and trials.
        prepared: The network and its statistics.
        heads: The integer networks.
        evaluator: Measures accuracies and collects the candidates.
        feasibility: Checks candidates against the limits.
        reporter: Receives progress.
        folder: For large intermediate files.
    """

    def __init__(
        self,
        request: Request,
        prepared: Prepared,
        heads: Heads,
        evaluator: AccuracyEvaluator,
        feasibility: Feasibility,
        reporter: Reporter,
        folder: Path,
    ) -> None:
        self._request = request
        self._prepared = prepared
        self._heads = heads
        self._evaluator = evaluator
        self._feasibility = feasibility
        self._reporter = reporter
        self._folder = folder

    def search(
        self, promising: Sequence[Candidate], cuts: Sequence[Cut]
    ) -> dict[str, tuple[RatePoint, ...]]:
        """Search the first cuts; returns their rate curves by label.

        Args:
            promising: Candidates to be better than, some of each cut.
            cuts: The most promising first.
        """
        curves = {}
        for cut in cuts[: self._request.refined_cuts]:
            refiner = CachedRefiner(
                partial(self._refiner, cut),
                self._heads,
                self._prepared.cache,
                [
                    self._prepared.origin,
                    self._request.adapt_steps,
                    self._request.context_steps,
                    self._request.video,
                ],
            )
            curve = refiner.curve(cut)
            wires, errors = zip(*((p.wire, p.error) for p in curve.points), strict=True)
            plain = [c for c in promising if c.cut.label == cut.label]
            smallest = min(plain, key=lambda c: c.payload_bytes)
            progress = self._reporter.stage(f"measuring formats of {cut.label}")
            accurate_from = self._evaluator.first_accurate(cut, wires, progress)
            as_it_is = (wires[accurate_from:] or [smallest.wire])[0]
            for option in refiner.options(cut, curve, as_it_is):
                self._evaluator.measured(option)
            is_feasible_at = partial(self._is_feasible_adapted, refiner, curve, cut)
            trials = self._request.format_trials if self._request.adapt_steps else 0
            tried = min(accurate_from, self._affordable(curve, smallest))
            start = min(first_adapted(errors, accurate_from), tried - 1)
            cheaper(wires[:tried], is_feasible_at, start=start, trials=trials)
            curves[cut.label] = curve.points
        return curves

    def _affordable(self, curve: RateCurve, like: Candidate) -> int:
        """Number of points of a curve, cheapest first, before one breaks a limit on costs.

        More bytes only cost more, so finer formats than these need no tails.
        """
        for index, point in enumerate(curve.points):
            coded = replace(like, wire=point.wire, codec=CONTEXT, payload_bytes=point.payload_bytes)
            if not self._feasibility.is_affordable(coded):
                return index
        return len(curve.points)

    def _is_feasible_adapted(
        self, refiner: CachedRefiner, curve: RateCurve, cut: Cut, wire: Wire
    ) -> bool:
        """Whether a wire format is feasible with a tail adapted to it."""
        options = refiner.options(cut, curve, wire)
        if not any(self._feasibility.is_affordable(option) for option in options):
            return False
        tail = refiner.adapted(cut, wire, options[0].label)
        if tail is cut:
            return False
        # Which codec is the fastest depends on link and devices: all of them are measured.
        verdicts = [self._feasibility.is_feasible(replace(option, cut=tail)) for option in options]
        return any(verdicts)

    def _refiner(self, cut: Cut) -> Refiner:
        """Make a refiner for a cut, with examples and, for video, pairs of frames to fit to."""
        network, calibration = self._heads.of(cut), self._prepared.calibration
        pixels, pairs = calibration.pixels, None
        examples = collect(
            network,
            cut_of_head(network.graph, ()),
            cut.tensors,
            pixels,
            self._folder,
            copies=copies_of(len(pixels)),
            threads=_THREADS,
            progress=self._reporter.stage("collecting examples"),
        )
        if self._request.video:
            progress = self._reporter.stage("collecting sequences")
            pairs = collect_pairs(network, cut.tensors, pixels, threads=_THREADS, progress=progress)
        return Refiner(
            self._heads,
            examples,
            self._prepared.loss,
            self._request.adapt_steps,
            self._reporter,
            pairs=pairs,
            context_steps=self._request.context_steps,
        )


def first_adapted(errors: Sequence[float], accurate_from: int) -> int:
    """Index of the wire format that the first tail is adapted to.

    Args:
        errors: Loss of the unadapted tail behind each format, cheapest first.
        accurate_from: Index of the cheapest that is good with the tail as it is, or their number.
    """
    if accurate_from == len(errors):
        return accurate_from - 1
    gained = ADAPTATION_GAIN * errors[accurate_from]
    return next(
        (i for i, error in enumerate(errors[:accurate_from]) if error <= gained), accurate_from - 1
    )
