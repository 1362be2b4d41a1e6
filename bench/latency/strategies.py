"""Strategies to run the network that are compared, as plans of one bundle.

    our search (without and with a limit on memory) --+
    Neurosurgeon, DADS, Auto-Split, for each cell   --+--> one bundle, and each strategy's plans
    uploads of the image                            --+

A cell is a share of a core and a bandwidth. Published strategies choose for each cell anew, from
the same tables as our own search; what they choose is deployed and measured like everything else,
so only the decision differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.links.shaped import link_of
from common.codec.spec import CodecSpec
from common.progress import Reporter
from common.version import __version__
from search.cache import Cache
from search.constraints import constraints
from search.export import write_plans
from search.measure.accuracy_evaluator import open_evaluator
from search.measure.held_out import Judging
from search.measure.latency import MeasuredLatency
from search.network.cuts import cut_of_head, enumerate_cuts, prefix_cuts, undominated
from search.prediction.candidates import (
    Candidate,
    CostModel,
    RankedCandidate,
    named_apart,
    rank_candidates,
)
from search.prediction.devices import DeviceProfile
from search.prepare import prepare
from search.quantization.heads import Heads
from search.quantization.recipes import recipe
from search.ranking.search_run import Network, rank
from search.request import Request
from search.source import NetworkSource
from search.strategies.baselines import AutoSplit, cost_graph, in_eight_bits
from search.strategies.min_cut import dads
from search.strategies.neurosurgeon import neurosurgeon
from search.wire.formats import FormatTable
from search.wire.sampling import sample

UPLOADS = {
    "raw": CodecSpec(name="raw"),
    "PNG": CodecSpec(name="png"),
    "JPEG q95": CodecSpec(name="jpeg", quality=95),
    "JPEG q75": CodecSpec(name="jpeg", quality=75),
    "JPEG q50": CodecSpec(name="jpeg", quality=50),
    "WebP q75": CodecSpec(name="webp", quality=75),
}
ONE_CUT = {"neurosurgeon": neurosurgeon, "dads": dads}
"""Published strategies that choose one head."""
PUBLISHED = ("neurosurgeon", "dads", "auto-split")
"""QDMP cuts where DADS does: both find the same minimum, one of them faster."""

SHARES = (1.0, 0.25, 0.1)
"""Shares of a core that published strategies choose for."""
MBITS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0)

MAX_DROP = 1.0
"""Points of accuracy against floating point that plans may lose."""

MEMORY = {"A": None, "B": 4 << 20}
"""Memory limit on the edge in bytes, by setting; None for no limit."""


@dataclass(frozen=True)
class Cell:
    """A slow edge and its uplink."""

    share: float
    mbit: float


def cells_of(shares: Sequence[float], mbits: Sequence[float]) -> list[Cell]:
    """All cells of a grid."""
    return [Cell(share, mbit) for share in shares for mbit in mbits]


def build(
    out: Path,
    *,
    calibration: Path,
    evaluation: Path,
    annotations: Path,
    max_images: int,
    cache: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Search for the plans of all strategies and write one bundle.

    Returns:
        Plans by strategy: "splitpoint" by setting a list of plan names, "uploads" by name a plan,
        "published" by name, share and bandwidth a plan or why there is none.
    """
    first = Cell(0.25, 3.0)
    request = Request(
        source=NetworkSource("yolov3-tiny"),
        link=link_of(first.mbit),
        device=_device(first),
        calibration=calibration,
        evaluation=evaluation,
        annotations=annotations,
        constraints=constraints(max_drop=MAX_DROP),
        max_images=max_images,
        refined_cuts=2,
        format_trials=4,
        cache=cache,
    )
    prepared = prepare(
        request.source, calibration, Cache(cache, __version__), reporter, max_images=max_images
    )
    judging = prepared.judging(evaluation, reporter, max_images)
    cuts = undominated(prepared.graph, enumerate_cuts(prepared.graph))
    network = Network(prepared, Heads(prepared.rounder().nearest({})), cuts)
    ours = {
        setting: rank(
            replace(request, constraints=constraints(max_drop=MAX_DROP, edge_memory=memory)),
            network,
            judging,
            reporter,
        )
        for setting, memory in MEMORY.items()
    }
    found = next(iter(ours.values()))
    baselines = _Baselines(request, network, judging, found.cost_model, reporter)
    uploads = {name: baselines.upload(spec) for name, spec in UPLOADS.items()}
    published = {name: baselines.choices(name) for name in PUBLISHED}
    every: list[RankedCandidate | str] = [j for search in ours.values() for j in search.kept]
    every += uploads.values()
    every += (one for chosen in published.values() for one in chosen.values())
    kept = _named_apart(every)
    union = replace(found, kept=tuple(sorted(kept.values(), key=lambda j: j.latency_ms)))
    vector = prepared.calibration.pixels[:1]
    write_plans(out, network.heads, prepared.task, vector, prepared.weights_sha256, union)

    def name_of(judged: RankedCandidate) -> str:
        return kept[judged.digest].candidate.name

    return {
        "splitpoint": {s: [name_of(j) for j in search.kept] for s, search in ours.items()},
        "uploads": {name: name_of(judged) for name, judged in uploads.items()},
        "published": {
            name: {
                key: {"infeasible": one} if isinstance(one, str) else {"plan": name_of(one)}
                for key, one in chosen.items()
            }
            for name, chosen in published.items()
        },
    }


def key_of(setting: str, cell: Cell) -> str:
    """Key of a cell in JSON."""
    return f"{setting} {cell.share:g} {cell.mbit:g}"


class _Baselines:
    """Plans that published strategies would deploy, from tables that are measured once."""

    def __init__(
        self,
        request: Request,
        network: Network,
        judging: Judging,
        model: CostModel,
        reporter: Reporter,
    ) -> None:
        self._model, self._reporter, self._network = model, reporter, network
        prepared, heads = network.prepared, network.heads
        self._graph = heads.network.graph
        scratch = (request.cache or Path()) / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        kept: dict[str, Any] = {"cache": prepared.cache, "origin": prepared.origin}
        self._latency = MeasuredLatency(heads.network, scratch, **kept)
        cuts = prefix_cuts(self._graph)
        self._times = self._latency.times(cuts, reporter.stage("timing heads and tails"))
        pixels = prepared.calibration.pixels
        tensors = [node.name for node in self._graph.nodes[1:]]
        progress = reporter.stage("sampling the wire")
        samples = sample(heads.network, tensors, pixels, progress)
        self._table = FormatTable(heads, samples, self._times, model)
        self._evaluator, _ = open_evaluator(
            heads,
            prepared.task,
            judging.frames,
            request.annotations,
            scratch,
            max_drop=MAX_DROP,
            **kept,
        )
        rounder = prepared.rounder(recipe("nearest"))
        self._auto_split = AutoSplit(heads, rounder, pixels, reporter)

    def upload(self, spec: CodecSpec) -> RankedCandidate:
        """Upload of the image by an image codec."""
        return self._judged(self._table.upload(self._network.cuts[0], spec), self._model)

    def choices(self, name: str) -> dict[str, RankedCandidate | str]:
        """Plan that a published strategy deploys in every cell, or the reason why it has none."""
        cells = [(setting, cell) for setting in MEMORY for cell in cells_of(SHARES, MBITS)]
        chosen: dict[str, RankedCandidate | str] = {}
        progress = self._reporter.stage(f"choosing as {name}")
        for done, (setting, cell) in enumerate(cells, 1):
            model = replace(self._model, link=link_of(cell.mbit), device=_device(cell))
            if name in ONE_CUT:
                found = self._one_cut(name, MEMORY[setting], model)
            else:
                found = self._as_auto_split(MEMORY[setting], model)
            chosen[key_of(setting, cell)] = found
            progress(done, len(cells))
        return chosen

    def _one_cut(self, name: str, memory: int | None, model: CostModel) -> RankedCandidate | str:
        table = self._table.at(model)
        head = ONE_CUT[name](cost_graph(self._graph, self._times, table, model))
        cut = cut_of_head(self._graph, head)
        if cut.name not in self._times:
            progress = self._reporter.stage(f"timing {cut.name}")
            self._times |= self._latency.times([cut], progress)
        candidate = in_eight_bits(cut, table)
        if memory is not None and candidate.edge_memory_bytes > memory:
            needed = candidate.edge_memory_bytes / 2**20
            return f"chooses {candidate.name}, which takes {needed:.1f} MiB on the edge"
        return self._judged(candidate, model)

    def _as_auto_split(self, memory: int | None, model: CostModel) -> RankedCandidate | str:
        """Fastest configuration within our accuracy limit; Auto-Split has such a limit, too."""
        table = self._table.at(model)
        for each in self._auto_split.candidates(2, memory, table, self._times, model):
            if self._evaluator.is_accurate(each):
                return self._judged(each, model)
        return "no configuration that fits keeps the accuracy"

    def _judged(self, candidate: Candidate, model: CostModel) -> RankedCandidate:
        """Candidate with its accuracy, measured on first use."""
        known = self._evaluator.measured(candidate)
        (predicted,) = rank_candidates([candidate], self._times, model)
        return replace(
            predicted,
            accuracy=known.accuracy,
            judged_on=known.images,
            most_lost=known.most_lost,
            digest=self._evaluator.digest(candidate),
        )


def _named_apart(every: Sequence[RankedCandidate | str]) -> dict[str, RankedCandidate]:
    """Plans by digest, each once, with names made unique; reasons for none are left out."""
    kept: dict[str, RankedCandidate] = {}
    for each in every:
        if isinstance(each, RankedCandidate):
            kept.setdefault(each.digest, each)
    digests = {judged.candidate: digest for digest, judged in kept.items()}
    named = named_apart(list(digests), digests)
    return {
        digest: replace(judged, candidate=candidate)
        for (digest, judged), candidate in zip(kept.items(), named, strict=True)
    }


def _device(cell: Cell) -> DeviceProfile:
    return DeviceProfile(f"{cell.share:g} of a core", 1 / cell.share)
