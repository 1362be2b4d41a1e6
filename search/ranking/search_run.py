"""Ranking: candidates measured, and the plans worth keeping chosen.

    cuts -> latency table + wire sizes -> candidates -> shortlist -> measured accuracy
         -> more bits for low-bit heads, image qualities, refined formats -> plans worth keeping

What is ranked is measured: prefix and suffix times, coded bytes, accuracy of the plan as deployed.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.codec.spec import CodecSpec
from common.errors import NoFeasiblePlanError
from common.progress import Reporter
from common.tables.store_file import read_tables
from search.allocate.low_bit import LowBitAllocator
from search.constraints import find
from search.constraints.base import SearchFacts
from search.constraints.edge_memory import EdgeMemory, smallest_head
from search.constraints.feasibility import Feasibility, admits
from search.measure.accuracy_evaluator import (
    AccuracyEvaluator,
    UnmeasuredCandidates,
    note_candidates,
    open_evaluator,
)
from search.measure.held_out import Judging
from search.measure.latency import MeasuredLatency
from search.network.cuts import Cut, prefix_cuts
from search.prediction.candidates import (
    Candidate,
    CostModel,
    RankedCandidate,
    named_apart,
    rank_candidates,
    shortlist,
    with_coding,
    worth_keeping,
)
from search.prediction.cut_times import CutTimes
from search.prediction.table_calibration import calibrate, cuts_of, rows_of
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.quantization.recipes import recipe
from search.quantization.rounding import Rounder
from search.ranking.infeasible import no_cut_left, nothing_fits
from search.refine.format_search import FormatSearch
from search.refine.refine import cheapest
from search.refine.screening import Screening, screened
from search.request import Request, SearchResult
from search.strategies import BASELINES, baseline
from search.strategies.base import StrategyInputs
from search.wire.formats import FormatTable, promising_cuts, runnable_cuts
from search.wire.quantizers import LOSSLESS, LOSSY_IMAGE_CODECS, QUALITIES, WIDTHS
from search.wire.rate_curve import RatePoint
from search.wire.sampling import sample

_PROMOTIONS = 2


@dataclass(frozen=True, eq=False)
class Network:
    """A prepared network with its heads and cuts, shared by all rankings.

    Attributes:
        prepared: The network and its statistics.
        heads: Its integer networks.
        cuts: All of them, cloud-only first.
    """

    prepared: Prepared
    heads: Heads
    cuts: Sequence[Cut]


def rank(
    request: Request, network: Network, judging: Judging | None, reporter: Reporter
) -> SearchResult:
    """Measure what the limits allow and keep the plans worth it.

    Args:
        request: The limits.
        network: The network.
        judging: The pictures that accuracy is measured on; None if it is not measured.
        reporter: Receives progress.

    Raises:
        NoFeasiblePlanError: If nothing fits the limits.
    """
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        return _Ranking(request, network, judging, reporter, Path(scratch)).run()


class _Ranking:
    """One search: what was measured so far, step by step."""

    def __init__(
        self,
        request: Request,
        network: Network,
        judging: Judging | None,
        reporter: Reporter,
        folder: Path,
    ) -> None:
        self._request = request
        self._prepared = prepared = network.prepared
        self._heads = network.heads
        self._every_cut = network.cuts
        self._judging = judging
        self._reporter = reporter
        self._folder = folder
        self._low_bit: LowBitAllocator | None = None
        self._times: dict[str, CutTimes] = {}
        self._rows = None
        if request.tables is not None:
            rows = read_tables(request.tables)
            self._rows = rows_of(prepared.network, rows, request.device, request.runtime)
        self._cuts, self._low_bit_cuts = self._allowed()
        self._evaluator, postprocess_ms = self._judge(network.heads)
        self._feasibility = Feasibility(request.constraints, self._evaluator, self._predict)
        self._latency = MeasuredLatency(
            network.heads.network,
            folder,
            cache=prepared.cache,
            origin=prepared.origin,
            tail_threads=request.cloud_threads,
            runtime=request.runtime,
        )
        self._cost_model = CostModel(
            request.link, request.device, prepared.calibration.letterbox_ms, postprocess_ms
        )

    def _judge(self, heads: Heads) -> tuple[AccuracyEvaluator | UnmeasuredCandidates, float]:
        """Open what judges candidates; returns it with the postprocessing time in ms."""
        request, prepared, judging = self._request, self._prepared, self._judging
        if judging is None:
            return note_candidates(heads, prepared.task, prepared.calibration, self._folder)
        return open_evaluator(
            heads,
            prepared.task,
            judging.frames,
            request.annotations,
            self._folder,
            max_drop=request.max_drop,
            cache=prepared.cache,
            origin=prepared.origin,
            settings=request.settings(prepared.task),
            top=request.top,
        )

    def run(self) -> SearchResult:
        """Run all steps of our own search, or the baseline that was asked for."""
        if self._request.strategy in BASELINES:
            return self._run_baseline()
        reporter = self._reporter
        cuts = self._cuts + self._low_bit_cuts
        splits = [cut for cut in cuts if cut.kind == "split"]
        tensors = list(dict.fromkeys(name for cut in splits for name in cut.tensors))
        table = self._tables(cuts, tensors)
        progress = reporter.stage("coding tensors")
        candidates: list[Candidate] = []
        for done, cut in enumerate(cuts, 1):
            candidates += table.candidates(cut)
            progress(done, len(cuts))
        # A cut's codecs were chosen by the slowdown of the whole edge: this needs candidates.
        self._cost_model = with_coding(self._cost_model, candidates)
        candidates = self._competitive(candidates)
        self._evaluator.measure(
            self._shortlist(candidates), reporter.stage("measuring accuracy as deployed")
        )
        self._promote(table)
        sends_images = not all(cut.head for cut in cuts)
        if sends_images and self._request.accuracy:
            self._search_qualities(table, self._feasibility.is_affordable)
        measured = self._evaluator.candidates
        promising = [c for c in measured if self._feasibility.is_promising(c)] or measured
        curves = self._refine(promising, table)
        if (
            sends_images
            and self._request.accuracy
            and not any(map(self._feasibility.is_feasible, self._evaluator.candidates))
        ):
            self._search_qualities(table, lambda _upload: True)  # to say what the least would take
        return self._result([*candidates, *self._evaluator.candidates], curves)

    def _predict(self, candidate: Candidate) -> RankedCandidate:
        (ranked,) = rank_candidates([candidate], self._times, self._cost_model)
        return ranked

    def _shortlist(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Candidates to measure: the fastest, whose cuts may be refined, and the affordable."""
        affordable = [c for c in candidates if self._feasibility.is_affordable(c)]
        lists = (
            shortlist(each, self._times, self._cost_model) for each in (candidates, affordable)
        )
        return list(dict.fromkeys(candidate for each in lists for candidate in each))

    def _refine(
        self, promising: Sequence[Candidate], table: FormatTable
    ) -> dict[str, tuple[RatePoint, ...]]:
        """Search wire formats of the most promising cuts; returns their rate curves by label."""
        if not self._request.refines or isinstance(self._evaluator, UnmeasuredCandidates):
            return {}
        prepared, reporter = self._prepared, self._reporter
        progress = reporter.stage("screening cuts")
        screening = Screening(
            self._heads,
            table.samples.codes,
            prepared.loss,
            prepared.cache,
            prepared.origin,
        )
        affordable = self._feasibility.is_affordable
        cuts = screened(promising, self._times, self._cost_model, screening, affordable)
        progress(1, 1)
        formats = FormatSearch(
            self._request,
            prepared,
            self._heads,
            self._evaluator,
            self._feasibility,
            reporter,
            self._folder,
        )
        return formats.search(promising, cuts)

    def _run_baseline(self) -> SearchResult:
        """Measure the plans of a baseline strategy by the same method as our own."""
        graph = self._heads.network.graph
        table = self._tables(prefix_cuts(graph), [node.name for node in graph.nodes[1:]])
        inputs = StrategyInputs(
            heads=self._heads,
            frames=self._prepared.calibration.pixels,
            times=self._times,
            table=table,
            cost_model=self._cost_model,
            memory_bytes=self._request.edge_memory_bytes,
            rounder=self._rounder,
            time_cut=self._time_cut,
            is_feasible=self._feasibility.is_feasible,
            reporter=self._reporter,
        )
        candidates = list(baseline(self._request.strategy)(inputs))
        self._evaluator.measure(candidates, self._reporter.stage("measuring accuracy as deployed"))
        return self._result(candidates, {})

    def _time_cut(self, cut: Cut) -> None:
        self._times |= self._latency.times([cut], self._reporter.stage(f"timing {cut.name}"))

    def _rounder(self, usual: str) -> Rounder:
        how = recipe(self._request.quantizer or usual)
        return self._prepared.rounder(how, reduced_range=self._request.device.reduced_range)

    def _tables(self, cuts: Sequence[Cut], tensors: Sequence[str]) -> FormatTable:
        """Time cuts; returns the format table of their tensors."""
        samples = sample(
            self._heads.network,
            tensors,
            self._prepared.calibration.pixels,
            self._reporter.stage("sampling the wire"),
        )
        self._times = self._latency.times(cuts, self._reporter.stage("timing heads and tails"))
        self._calibrate(self._times)
        affordable = self._feasibility.is_affordable
        widths = WIDTHS if self._request.accuracy else LOSSLESS
        return FormatTable(self._heads, samples, self._times, self._cost_model, affordable, widths)

    def _calibrate(self, times: dict[str, CutTimes]) -> None:
        """Calibrate the latency tables against this machine's times, for each cut they name."""
        if self._rows is None:
            return
        runnable = runnable_cuts(self._heads, self._every_cut)
        named = [cut for cut in cuts_of(self._rows, runnable) if cut.name not in times]
        if named:
            progress = self._reporter.stage("timing what the tables know")
            times |= self._latency.times(named, progress)
        calibration = calibrate(
            self._rows,
            self._request.device,
            times,
            preprocess_ms=self._cost_model.preprocess_ms,
            postprocess_ms=self._cost_model.postprocess_ms,
        )
        self._cost_model = replace(self._cost_model, calibration=calibration)

    def _allowed(self) -> tuple[list[Cut], list[Cut]]:
        """Cuts that keep the limits at 8 bits, and cuts that keep them at lower bit widths."""
        request, heads = self._request, self._heads
        if request.strategy in BASELINES:
            return [], []  # they choose among all
        runnable = runnable_cuts(heads, self._every_cut)
        if request.strategy == "cloud-only":
            runnable = [cut for cut in runnable if not cut.head]
        fitting = self._admitted(runnable)
        low_bit: list[Cut] = []
        memory = find(EdgeMemory, request.constraints)
        if memory is not None and not all(memory.admits_cut(cut, heads) for cut in runnable):
            low_bit = self._admitted(self._allocate_low_bit(runnable, memory.limit))
        if not fitting and not low_bit:
            raise NoFeasiblePlanError(no_cut_left(request.constraints, heads, runnable))
        graph = heads.network.graph
        return (
            promising_cuts(graph, fitting, request.link),
            promising_cuts(graph, low_bit, request.link),
        )

    def _allocate_low_bit(self, cuts: Sequence[Cut], memory_bytes: int) -> list[Cut]:
        """Cuts that need fewer than 8 bits to fit, with the widths that make them fit."""
        if not self._request.narrow_cuts:
            return []
        errors = self._prepared.sensitivity("measured", self._reporter).weights
        rounder = self._rounder("default")
        self._low_bit = LowBitAllocator(self._heads, errors, memory_bytes, rounder)
        return self._low_bit.fitted(cuts)

    def _admitted(self, cuts: Sequence[Cut]) -> list[Cut]:
        limits = self._request.constraints
        return [cut for cut in cuts if all(c.admits_cut(cut, self._heads) for c in limits)]

    def _competitive(self, candidates: list[Candidate]) -> list[Candidate]:
        """Drop low-bit heads that are the fastest on no link; round the others thoroughly."""
        if self._low_bit is None:
            return candidates
        competitive: dict[str, Cut] = {}
        for factor in (1.0, 0.25, 4.0):
            link = replace(
                self._cost_model.link, uplink_bps=self._cost_model.link.uplink_bps * factor
            )
            ranked = rank_candidates(candidates, self._times, replace(self._cost_model, link=link))
            ranked.sort(key=lambda j: not self._feasibility.is_affordable(j.candidate))
            for each in itertools.takewhile(lambda j: j.candidate.cut.widths, ranked):
                competitive.setdefault(each.candidate.cut.label, each.candidate.cut)
        chosen = list(competitive.values())[: self._request.narrow_cuts]
        for cut in chosen:
            self._low_bit.reconstructed(cut, self._reporter.stage(f"rounding {cut.label}"))
        kept = {cut.label for cut in chosen}
        return [c for c in candidates if not c.cut.widths or c.cut.label in kept]

    def _promote(self, table: FormatTable) -> None:
        """Raise the bit widths of low-bit heads that lose too much in every wire format."""
        if self._low_bit is None:
            return
        for first in {
            c.cut.label: c.cut for c in self._evaluator.candidates if c.cut.widths
        }.values():
            cut: Cut | None = first
            for _ in range(_PROMOTIONS):
                if cut is None or any(map(self._feasibility.is_promising, self._evaluator.of(cut))):
                    break
                cut = self._low_bit.promoted(cut)
                if cut is not None:
                    progress = self._reporter.stage(f"rounding {cut.label}")
                    cut = self._low_bit.reconstructed(cut, progress)
                    progress = self._reporter.stage(f"measuring {cut.label}")
                    self._evaluator.measure(table.candidates(cut), progress)

    def _search_qualities(
        self, table: FormatTable, is_affordable: Callable[[Candidate], bool]
    ) -> None:
        """Measure lossy uploads on the way to the lowest quality that is accurate enough.

        Args:
            table: Codes uploads.
            is_affordable: Whether an upload may be measured at all: higher qualities than one that
                may not are not tried.
        """
        progress = self._reporter.stage("searching image qualities")
        trials = len(QUALITIES).bit_length()
        for done, name in enumerate(LOSSY_IMAGE_CODECS, 1):

            def upload(quality: int, name: str = name) -> Candidate:
                return table.upload(self._every_cut[0], CodecSpec(name=name, quality=quality))

            cheapest(
                QUALITIES,
                lambda quality: self._feasibility.is_promising(upload(quality)),
                trials=trials,
                is_affordable=lambda quality: is_affordable(upload(quality)),
            )
            progress(done, len(LOSSY_IMAGE_CODECS))

    def _result(
        self,
        candidates: Sequence[Candidate],
        curves: dict[str, tuple[RatePoint, ...]],
    ) -> SearchResult:
        judging = self._judging
        digests = {each: self._evaluator.digest(each) for each in candidates}
        alone: dict[str, Candidate] = {}
        for each in candidates:
            alone.setdefault(digests[each], each)
        candidates = named_apart(list(alone.values()), digests)
        self._cost_model = with_coding(self._cost_model, candidates)
        ranked = rank_candidates(candidates, self._times, self._cost_model)
        with_accuracy = [
            self._evaluator.with_accuracy(each)
            for each in ranked
            if each.candidate in self._evaluator
        ]
        if not with_accuracy:
            need = smallest_head(self._heads, self._every_cut)
            strategy = self._request.strategy
            raise NoFeasiblePlanError(f"{strategy} finds no head that fits: {need}")
        limits = self._request.constraints
        kept = worth_keeping([each for each in with_accuracy if admits(limits, each)])
        if not kept:
            facts = SearchFacts(
                self._evaluator.best or 0.0,
                self._heads,
                self._every_cut,
                self._request.strategy,
                judging.judged_by if judging else "held-out",
            )
            raise NoFeasiblePlanError(nothing_fits(with_accuracy, limits, facts))
        return SearchResult(
            request=self._request,
            metric=self._evaluator.metric,
            reference_accuracy=self._evaluator.best,
            cuts=len(self._every_cut),
            calibration_images=len(self._prepared.calibration.names),
            evaluation_images=judging.frames.names if judging else (),
            judged_by=judging.judged_by if judging else None,
            also_fitted=judging.also_fitted if judging else (),
            cost_model=self._cost_model,
            ranked=tuple(ranked),
            measured=tuple(with_accuracy),
            kept=tuple(kept),
            curves=curves,
            times=self._times,
            sees_nothing=self._evaluator.sees_nothing,
        )
