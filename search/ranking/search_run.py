"""Ranking: candidates measured, and the plans worth keeping chosen.

    cuts -> latency table + wire sizes -> candidates -> shortlist -> measured accuracy
         -> more bits for narrow heads, image qualities, refined wire formats -> plans worth keeping

What is ranked is measured: prefix and suffix times, coded bytes, accuracy of the plan as deployed.
"""

import itertools
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from common.codec.spec import CodecSpec
from common.errors import NoFeasiblePlanError
from common.progress import Reporter
from common.tables.store_file import read_tables
from search.allocate.low_bit import LowBitAllocator
from search.measure.accuracy_evaluator import open_meter
from search.measure.held_out import Judging
from search.measure.latency import MeasuredLatency
from search.network.cuts import Cut, cut_of_head, prefix_cuts
from search.network.losses import distillation_loss
from search.prediction.candidates import (
    Candidate,
    CostModel,
    judge,
    named_apart,
    shortlist,
    with_coding,
    worth_keeping,
)
from search.prediction.cut_times import CutTimes
from search.prediction.table_calibration import cuts_of, learn, rows_of
from search.prepare import Prepared
from search.quantization.heads import Heads
from search.quantization.recipe import recipe
from search.quantization.rounding import Rounder
from search.ranking.infeasible import no_head_fits, nothing_fits, smallest_head
from search.refine.format_search import FormatSearch
from search.refine.refine import cheapest
from search.refine.screening import Screening, screened
from search.request import Request, SearchResult
from search.strategies.baselines import (
    BASELINES,
    ONE_CUT,
    AutoSplit,
    cost_graph,
    edge_only,
    in_eight_bits,
)
from search.wire.formats import FormatTable, fitting_cuts, promising_cuts, runnable_cuts
from search.wire.quantizers import LOSSY_IMAGE_CODECS, QUALITIES
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


def rank(request: Request, network: Network, judging: Judging, reporter: Reporter) -> SearchResult:
    """Measure what the limits allow and keep the plans worth it.

    Args:
        request: The limits.
        network: The network.
        judging: The pictures that accuracy is measured on.
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
        judging: Judging,
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
        self._rows = None
        if request.tables is not None:
            rows = read_tables(request.tables)
            self._rows = rows_of(prepared.network, rows, request.device, request.runtime)
        self._cuts, self._narrow = self._allowed()
        self._meter, postprocess_ms = open_meter(
            network.heads,
            prepared.task,
            judging.frames,
            request.annotations,
            folder,
            max_drop=request.max_drop,
            cache=prepared.cache,
            origin=prepared.origin,
            settings=request.settings(prepared.task),
        )
        self._latency = MeasuredLatency(
            network.heads.network,
            folder,
            cache=prepared.cache,
            origin=prepared.origin,
            tail_threads=request.cloud_threads,
            runtime=request.runtime,
        )
        self._world = CostModel(
            request.link, request.device, prepared.calibration.letterbox_ms, postprocess_ms
        )

    def run(self) -> SearchResult:
        """Run all steps of our own search, or the baseline that was asked for."""
        if self._request.strategy in BASELINES:
            return self._run_baseline()
        request, reporter = self._request, self._reporter
        cuts = self._cuts + self._narrow
        tensors = list(dict.fromkeys(name for cut in cuts if cut.head for name in cut.tensors))
        times, table = self._tables(cuts, tensors)
        progress = reporter.stage("coding tensors")
        candidates: list[Candidate] = []
        for done, cut in enumerate(cuts, 1):
            candidates += table.candidates(cut)
            progress(done, len(cuts))
        # A cut's codecs were chosen by the slowdown of the whole edge: this needs candidates.
        self._world = with_coding(self._world, candidates)
        candidates = self._without_hopeless(candidates, times)
        self._meter.measure(
            shortlist(candidates, times, self._world),
            reporter.stage("measuring accuracy as deployed"),
        )
        self._promote(table)
        if not request.no_raw_image:
            self._search_qualities(table)
        good = [c for c in self._meter.candidates if self._is_good(c)] or self._meter.candidates
        curves = self._refine(good, times, table)
        return self._found([*candidates, *self._meter.candidates], times, curves)

    def _refine(
        self, good: Sequence[Candidate], times: dict[str, CutTimes], table: FormatTable
    ) -> dict[str, tuple[RatePoint, ...]]:
        """Search wire formats of the most promising cuts; returns their rate curves by label."""
        if not self._request.refined_cuts:
            return {}
        prepared, reporter = self._prepared, self._reporter
        progress = reporter.stage("screening cuts")
        screening = Screening(
            self._heads,
            table.samples.codes,
            distillation_loss(prepared.task),
            prepared.cache,
            prepared.origin,
        )
        cuts = screened(good, times, self._world, screening)
        progress(1, 1)
        formats = FormatSearch(
            self._request,
            prepared,
            self._heads,
            self._meter,
            self._is_good,
            reporter,
            self._folder,
        )
        return formats.search(good, cuts)

    def _run_baseline(self) -> SearchResult:
        """Measure the plans of a baseline strategy by the same method as our own."""
        name, graph = self._request.strategy, self._heads.network.graph
        whole = [node.name for node in graph.nodes[1:]]
        times, table = self._tables(prefix_cuts(graph), whole)
        candidates: list[Candidate] = []
        if name in ONE_CUT:
            cut = cut_of_head(graph, ONE_CUT[name](cost_graph(graph, times, table, self._world)))
            times |= self._latency.times([cut], self._reporter.stage(f"timing {cut.name}"))
            candidates.append(in_eight_bits(cut, table))
        elif name == "edge-only":
            rounder = self._rounder("default")
            candidates += edge_only(self._heads, rounder, table, self._reporter)
        else:
            rounder, frames = self._rounder("nearest"), self._prepared.calibration.pixels
            original = AutoSplit(self._heads, rounder, frames, self._reporter)
            version: Literal[1, 2] = 1 if name == "auto-split-v1" else 2
            limit = self._request.edge_memory_bytes
            for each in original.candidates(version, limit, table, times, self._world):
                candidates.append(each)
                if self._is_good(each):
                    break
        self._meter.measure(candidates, self._reporter.stage("measuring accuracy as deployed"))
        return self._found(candidates, times, {})

    def _rounder(self, usual: str) -> Rounder:
        how = recipe(self._request.quantizer or usual)
        return self._prepared.rounder(how, reduced_range=self._request.device.reduced_range)

    def _tables(
        self, cuts: Sequence[Cut], tensors: Sequence[str]
    ) -> tuple[dict[str, CutTimes], FormatTable]:
        """Latency table of cuts, and the format table of their tensors."""
        samples = sample(
            self._heads.network,
            tensors,
            self._prepared.calibration.pixels,
            self._reporter.stage("sampling the wire"),
        )
        times = self._latency.times(cuts, self._reporter.stage("timing heads and tails"))
        self._learn(times)
        return times, FormatTable(self._heads, samples, times, self._world)

    def _learn(self, times: dict[str, CutTimes]) -> None:
        """Calibrate the latency tables against this machine's times, for each cut they name."""
        if self._rows is None:
            return
        runnable = runnable_cuts(self._heads, self._every_cut, no_raw_image=False)
        told = [cut for cut in cuts_of(self._rows, runnable) if cut.name not in times]
        if told:
            progress = self._reporter.stage("timing what the tables know")
            times |= self._latency.times(told, progress)
        learned = learn(
            self._rows,
            self._request.device,
            times,
            preprocess_ms=self._world.preprocess_ms,
            postprocess_ms=self._world.postprocess_ms,
        )
        self._world = replace(self._world, learned=learned)

    def _allowed(self) -> tuple[list[Cut], list[Cut]]:
        """Cuts that keep the limits at 8 bits, and cuts that keep them at lower bit widths."""
        request, heads = self._request, self._heads
        if request.strategy in BASELINES:
            return [], []  # they choose among all
        runnable = runnable_cuts(heads, self._every_cut, no_raw_image=request.no_raw_image)
        if request.strategy == "cloud-only":
            runnable = [cut for cut in runnable if not cut.head]
        limit = request.edge_memory_bytes
        fitting = fitting_cuts(heads, runnable, limit)
        narrow: list[Cut] = []
        if limit is not None and len(fitting) < len(runnable) and request.narrow_cuts:
            errors = self._prepared.sensitivity("measured", self._reporter).weights
            self._low_bit = LowBitAllocator(heads, errors, limit, self._rounder("default"))
            narrow = self._low_bit.narrowed(runnable)
        if not fitting and not narrow:
            raise NoFeasiblePlanError(no_head_fits(heads, runnable, limit))
        graph = heads.network.graph
        return (
            promising_cuts(graph, fitting, request.link),
            promising_cuts(graph, narrow, request.link),
        )

    def _without_hopeless(
        self, candidates: list[Candidate], times: dict[str, CutTimes]
    ) -> list[Candidate]:
        """Drop low-bit heads that are the fastest on no link; round the others thoroughly."""
        if self._low_bit is None:
            return candidates
        hopeful: dict[str, Cut] = {}
        for factor in (1.0, 0.25, 4.0):
            link = replace(self._world.link, uplink_bps=self._world.link.uplink_bps * factor)
            ranked = judge(candidates, times, replace(self._world, link=link))
            for judged in itertools.takewhile(lambda j: j.candidate.cut.widths, ranked):
                hopeful.setdefault(judged.candidate.cut.label, judged.candidate.cut)
        chosen = list(hopeful.values())[: self._request.narrow_cuts]
        for cut in chosen:
            self._low_bit.reconstructed(cut, self._reporter.stage(f"rounding {cut.label}"))
        kept = {cut.label for cut in chosen}
        return [c for c in candidates if not c.cut.widths or c.cut.label in kept]

    def _promote(self, table: FormatTable) -> None:
        """Raise the bit widths of low-bit heads that lose too much in every wire format."""
        if self._low_bit is None:
            return
        for first in {c.cut.label: c.cut for c in self._meter.candidates if c.cut.widths}.values():
            cut: Cut | None = first
            for _ in range(_PROMOTIONS):
                if cut is None or any(self._is_good(c) for c in self._meter.of(cut)):
                    break
                cut = self._low_bit.promoted(cut)
                if cut is not None:
                    progress = self._reporter.stage(f"rounding {cut.label}")
                    cut = self._low_bit.reconstructed(cut, progress)
                    progress = self._reporter.stage(f"measuring {cut.label}")
                    self._meter.measure(table.candidates(cut), progress)

    def _is_good(self, candidate: Candidate) -> bool:
        # Context models take memory on the edge that no cut was charged for.
        fits = candidate.edge_memory_bytes <= (self._request.edge_memory_bytes or math.inf)
        # A baseline does not know that pixels may not leave.
        fits = fits and bool(candidate.cut.head or not self._request.no_raw_image)
        return fits and self._meter.is_good(candidate)

    def _search_qualities(self, table: FormatTable) -> None:
        """Measure lossy uploads on the way to the lowest quality that is good."""
        progress = self._reporter.stage("searching image qualities")
        trials = len(QUALITIES).bit_length()
        for done, name in enumerate(LOSSY_IMAGE_CODECS, 1):

            def is_good_at(quality: int, name: str = name) -> bool:
                spec = CodecSpec(name=name, quality=quality)
                return self._is_good(table.upload(self._every_cut[0], spec))

            cheapest(QUALITIES, is_good_at, trials=trials)
            progress(done, len(LOSSY_IMAGE_CODECS))

    def _found(
        self,
        candidates: Sequence[Candidate],
        times: dict[str, CutTimes],
        curves: dict[str, tuple[RatePoint, ...]],
    ) -> SearchResult:
        digests = {each: self._meter.digest(each) for each in candidates}
        alone: dict[str, Candidate] = {}
        for each in candidates:
            alone.setdefault(digests[each], each)
        candidates = named_apart(list(alone.values()), digests)
        self._world = with_coding(self._world, candidates)
        judged = judge(candidates, times, self._world)
        with_accuracy = [
            replace(
                j,
                accuracy=known.accuracy,
                judged_on=known.images,
                most_lost=known.most_lost,
                digest=self._meter.digest(j.candidate),
            )
            for j in judged
            if j.candidate in self._meter
            for known in [self._meter.measured(j.candidate)]
        ]
        if not with_accuracy:
            need = smallest_head(self._heads, self._every_cut)
            strategy = self._request.strategy
            raise NoFeasiblePlanError(f"{strategy} finds no head that fits: {need}")
        kept = worth_keeping([j for j in with_accuracy if self._is_good(j.candidate)])
        if not kept:
            raise NoFeasiblePlanError(
                nothing_fits(
                    with_accuracy,
                    self._meter.best,
                    self._request,
                    self._heads,
                    self._every_cut,
                    self._judging.judged_by,
                )
            )
        return SearchResult(
            request=self._request,
            metric=self._meter.metric,
            reference_accuracy=self._meter.best,
            cuts=len(self._every_cut),
            calibration_images=len(self._prepared.calibration.names),
            evaluation_images=self._judging.frames.names,
            judged_by=self._judging.judged_by,
            also_fitted=self._judging.also_fitted,
            world=self._world,
            judged=tuple(judged),
            measured=tuple(with_accuracy),
            kept=tuple(kept),
            curves=curves,
            times=times,
        )
