"""Search of the wire formats of the most promising cuts.

    good candidates -> most promising cuts -> rate curve of each -> measured, cheapest first
        -> the first that is good as it is       -> candidates, one by each codec
        -> cheaper ones, their tails adapted     -> candidates

`search.refine.refine` describes the cost of refining; all results are cached.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.progress import Reporter
from search.measure.accuracy_evaluator import AccuracyEvaluator
from search.network.cuts import Cut, cut_of_head
from search.network.losses import distillation_loss
from search.prediction.candidates import Candidate
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.refine.cached_refiner import CachedRefiner
from search.refine.refine import Refiner, cheaper
from search.request import Request
from search.wire.rate_curve import RateCurve, RatePoint
from search.wire.tail_adaptation import ADAPTATION_GAIN, Wire
from search.wire.training_data import collect, collect_pairs, copies_of

_THREADS = 2


class FormatSearch:
    """Searches formats of cuts and has the meter measure them.

    Args:
        request: How many cuts and trials.
        prepared: The network and its statistics.
        heads: The integer networks.
        meter: Measures accuracies and collects the candidates.
        is_good: Whether a candidate keeps the limits.
        reporter: Receives progress.
        folder: For large intermediate files.
    """

    def __init__(
        self,
        request: Request,
        prepared: Prepared,
        heads: Heads,
        meter: AccuracyEvaluator,
        is_good: Callable[[Candidate], bool],
        reporter: Reporter,
        folder: Path,
    ) -> None:
        self._request = request
        self._prepared = prepared
        self._heads = heads
        self._meter = meter
        self._is_good = is_good
        self._reporter = reporter
        self._folder = folder

    def search(
        self, good: Sequence[Candidate], cuts: Sequence[Cut]
    ) -> dict[str, tuple[RatePoint, ...]]:
        """Search the first cuts; returns their rate curves by label.

        Args:
            good: Candidates to be better than, some of each cut.
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
            plain = [c for c in good if c.cut.label == cut.label]
            smallest = min(plain, key=lambda c: c.payload_bytes)
            progress = self._reporter.stage(f"measuring formats of {cut.label}")
            good_from = self._meter.first_good(cut, wires, progress)
            as_it_is = (wires[good_from:] or [smallest.wire])[0]
            for option in refiner.options(cut, curve, as_it_is):
                self._meter.measured(option)
            is_good_at = partial(self._is_good_adapted, refiner, curve, cut)
            trials = self._request.format_trials if self._request.adapt_steps else 0
            start = first_adapted(errors, good_from)
            cheaper(wires[:good_from], is_good_at, start=start, trials=trials)
            curves[cut.label] = curve.points
        return curves

    def _is_good_adapted(
        self, refiner: CachedRefiner, curve: RateCurve, cut: Cut, wire: Wire
    ) -> bool:
        """Whether a wire format is good with a tail adapted to it."""
        options = refiner.options(cut, curve, wire)
        tail = refiner.adapted(cut, wire, options[0].label)
        if tail is cut:
            return False
        # Which codec is the fastest depends on link and devices: all of them are measured.
        verdicts = [self._is_good(replace(option, cut=tail)) for option in options]
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
            distillation_loss(self._prepared.task),
            self._request.adapt_steps,
            self._reporter,
            pairs=pairs,
            context_steps=self._request.context_steps,
        )


def first_adapted(errors: Sequence[float], good_from: int) -> int:
    """Index of the wire format that the first tail is adapted to.

    Args:
        errors: Loss of the unadapted tail behind each format, cheapest first.
        good_from: Index of the cheapest that is good with the tail as it is, or their number.
    """
    if good_from == len(errors):
        return good_from - 1
    gained = ADAPTATION_GAIN * errors[good_from]
    return next((i for i, error in enumerate(errors[:good_from]) if error <= gained), good_from - 1)
