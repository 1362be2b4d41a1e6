"""Contenders: every way to run the network that is compared, as plans of one bundle.

    our search (without and with a limit on memory) --+
    Neurosurgeon, DADS, Auto-Split, for each cell   --+--> one bundle, and who uses which plan where
    uploads of the image                            --+

A cell is a share of a core and a bandwidth. Published strategies choose for each cell anew, from
the same tables as our own search; what they choose is deployed and measured like everything else,
so only the decision differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.bundle.manifest import Manifest
from common.codec.spec import CodecSpec
from common.errors import NoFeasiblePlanError
from common.link.link import Link
from common.progress import Reporter
from search.cache import Cache
from search.export import write_plans
from search.measure.accuracy_evaluator import open_meter
from search.measure.held_out import Judging
from search.measure.latency import MeasuredLatency
from search.network.cuts import cut_of_head, enumerate_cuts, prefix_cuts, undominated
from search.prediction.candidates import Candidate, CostModel, RankedCandidate, judge, named_apart
from search.prediction.devices import DeviceProfile
from search.prepare import prepare
from search.quantization.heads import Heads
from search.quantization.recipe import recipe
from search.ranking.search_run import Network, rank
from search.request import Request
from search.strategies.baselines import ONE_CUT, AutoSplit, cost_graph, in_eight_bits
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
PUBLISHED = ("neurosurgeon", "dads", "auto-split")
"""QDMP cuts where DADS does: both find the same minimum, one of them faster."""

SHARES = (1.0, 0.25, 0.1)
"""Shares of a core that published strategies choose for."""
MBITS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0)

MEMORY = {"A": None, "B": 4 << 20}
"""Memory limit on the edge in bytes, by setting; None for no limit."""


@dataclass(frozen=True)
class Cell:
    """A slow edge and its uplink."""

    share: float
    mbit: float


@dataclass(frozen=True)
class LatencyGrid:
    """Grid of the comparison: shares of a core and bandwidths, with common limits.

    Attributes:
        shares: Shares of a core, on the edge.
        mbits: Bandwidths in Mbit/s.
        rtt_ms: Round trip.
        max_drop: Accuracy that our own search may lose, in points.
    """

    shares: Sequence[float]
    mbits: Sequence[float]
    rtt_ms: float
    max_drop: float

    def cells(self) -> list[Cell]:
        """All cells of the grid."""
        return [Cell(share, mbit) for share in self.shares for mbit in self.mbits]


def build(
    out: Path,
    *,
    calibration: Path,
    evaluation: Path,
    annotations: Path,
    grid: LatencyGrid,
    cache: Path,
    version: str,
    reporter: Reporter,
    max_images: int = 1000,
) -> tuple[Manifest, dict[str, Any]]:
    """Search for all contenders and write one bundle.

    Returns:
        The manifest; and who uses what: "splitpoint" by setting a list of plan names, "uploads" by
        name a plan, "published" by name, share and bandwidth a plan or why there is none.
    """
    first = Cell(grid.shares[-1] if 0.25 not in grid.shares else 0.25, 3.0)
    request = Request(
        model="yolov3-tiny",
        link=_link(first, grid),
        device=_device(first),
        calibration=calibration,
        evaluation=evaluation,
        annotations=annotations,
        max_drop=grid.max_drop,
        max_images=max_images,
        refined_cuts=2,
        format_trials=4,
        cache=cache,
        software_version=version,
    )
    prepared = prepare(
        request.model, calibration, Cache(cache, version), reporter, max_images=max_images
    )
    judging = prepared.judging(evaluation, reporter, max_images)
    cuts = undominated(prepared.graph, enumerate_cuts(prepared.graph))
    network = Network(prepared, Heads(prepared.rounder().nearest({})), cuts)
    ours = {
        setting: rank(replace(request, edge_memory_bytes=memory), network, judging, reporter)
        for setting, memory in MEMORY.items()
    }
    found = next(iter(ours.values()), None)
    if found is None:
        raise NoFeasiblePlanError("no setting was searched")
    others = _Others(request, grid, network, judging, found.world, reporter)
    uploads = {
        name: others.judged(others.table.upload(network.cuts[0], spec), found.world)
        for name, spec in UPLOADS.items()
    }
    published = {name: others.choices(name) for name in PUBLISHED}
    kept: dict[str, RankedCandidate] = {}
    for each in (
        *(judged for search in ours.values() for judged in search.kept),
        *uploads.values(),
        *(one for chosen in published.values() for one in chosen.values()),
    ):
        if isinstance(each, RankedCandidate):
            kept.setdefault(each.digest, each)
    kept = _named_apart(kept)
    who = {
        "splitpoint": {
            setting: [kept[j.digest].candidate.name for j in search.kept]
            for setting, search in ours.items()
        },
        "uploads": {name: kept[j.digest].candidate.name for name, j in uploads.items()},
        "published": {
            name: {key: _told(each, kept) for key, each in chosen.items()}
            for name, chosen in published.items()
        },
    }
    union = replace(found, kept=tuple(sorted(kept.values(), key=lambda j: j.latency_ms)))
    vector = prepared.calibration.pixels[:1]
    manifest = write_plans(
        out, network.heads, prepared.task, vector, prepared.weights_sha256, union
    )
    return manifest, who


def key_of(setting: str, cell: Cell) -> str:
    """Key of a cell in JSON."""
    return f"{setting} {cell.share:g} {cell.mbit:g}"


class _Others:
    """Plans that published strategies would deploy, from tables that are measured once.

    Args:
        request: Request of our own search.
        grid: The cells.
        network: The network.
        judging: The pictures that accuracy is measured on.
        world: Times that all plans share.
        reporter: Receives progress.
    """

    def __init__(
        self,
        request: Request,
        grid: LatencyGrid,
        network: Network,
        judging: Judging,
        world: CostModel,
        reporter: Reporter,
    ) -> None:
        self._request, self._grid, self._world = request, grid, world
        self._network, self._reporter = network, reporter
        self._prepared = prepared = network.prepared
        self._graph = network.heads.network.graph
        self._scratch = (request.cache or Path()) / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._latency = MeasuredLatency(
            network.heads.network, self._scratch, cache=prepared.cache, origin=prepared.origin
        )
        cuts = prefix_cuts(self._graph)
        self._times = self._latency.times(cuts, reporter.stage("timing heads and tails"))
        pixels = prepared.calibration.pixels
        tensors = [node.name for node in self._graph.nodes[1:]]
        progress = reporter.stage("sampling the wire")
        samples = sample(network.heads.network, tensors, pixels, progress)
        self.table = FormatTable(network.heads, samples, self._times, world)
        self._meter, _ = open_meter(
            network.heads,
            prepared.task,
            judging.frames,
            request.annotations,
            self._scratch,
            max_drop=grid.max_drop,
            cache=prepared.cache,
            origin=prepared.origin,
        )
        rounder = prepared.rounder(recipe("nearest"))
        self._auto_split = AutoSplit(network.heads, rounder, pixels, reporter)

    def choices(self, name: str) -> dict[str, RankedCandidate | str]:
        """Plan that a published strategy deploys in every cell, or the reason why it has none."""
        cells = [(setting, cell) for setting in MEMORY for cell in self._grid.cells()]
        chosen: dict[str, RankedCandidate | str] = {}
        progress = self._reporter.stage(f"choosing as {name}")
        for done, (setting, cell) in enumerate(cells, 1):
            world = replace(self._world, link=_link(cell, self._grid), device=_device(cell))
            memory = MEMORY[setting]
            if name in ONE_CUT:
                chosen[key_of(setting, cell)] = self._one_cut(name, memory, world)
            else:
                chosen[key_of(setting, cell)] = self._as_auto_split(memory, world)
            progress(done, len(cells))
        return chosen

    def judged(self, candidate: Candidate, world: CostModel) -> RankedCandidate:
        """Candidate with its accuracy, measured on first use."""
        known = self._meter.measured(candidate)
        (predicted,) = judge([candidate], self._times, world)
        return replace(
            predicted,
            accuracy=known.accuracy,
            judged_on=known.images,
            most_lost=known.most_lost,
            digest=self._meter.digest(candidate),
        )

    def _one_cut(self, name: str, memory: int | None, world: CostModel) -> RankedCandidate | str:
        table = self.table.at(world)
        head = ONE_CUT[name](cost_graph(self._graph, self._times, table, world))
        cut = cut_of_head(self._graph, head)
        if cut.name not in self._times:
            progress = self._reporter.stage(f"timing {cut.name}")
            self._times |= self._latency.times([cut], progress)
        candidate = in_eight_bits(cut, table)
        if memory is not None and candidate.edge_memory_bytes > memory:
            needed = candidate.edge_memory_bytes / 2**20
            return f"chooses {candidate.name}, which takes {needed:.1f} MiB on the edge"
        return self.judged(candidate, world)

    def _as_auto_split(self, memory: int | None, world: CostModel) -> RankedCandidate | str:
        """Fastest configuration within our accuracy limit; Auto-Split has such a limit, too."""
        table = self.table.at(world)
        for each in self._auto_split.candidates(2, memory, table, self._times, world):
            if self._meter.is_good(each):
                return self.judged(each, world)
        return "no configuration that fits keeps the accuracy"


def _named_apart(kept: dict[str, RankedCandidate]) -> dict[str, RankedCandidate]:
    """Plans by digest, with names made unique."""
    digests = {judged.candidate: digest for digest, judged in kept.items()}
    named = named_apart(list(digests), digests)
    return {
        digest: replace(judged, candidate=candidate)
        for (digest, judged), candidate in zip(kept.items(), named, strict=True)
    }


def _told(chosen: RankedCandidate | str, kept: dict[str, RankedCandidate]) -> dict[str, str]:
    if isinstance(chosen, str):
        return {"infeasible": chosen}
    return {"plan": kept[chosen.digest].candidate.name}


def _link(cell: Cell, grid: LatencyGrid) -> Link:
    return Link(cell.mbit * 1e6, cell.mbit * 1e6, grid.rtt_ms)


def _device(cell: Cell) -> DeviceProfile:
    return DeviceProfile(f"{cell.share:g} of a core", 1 / cell.share)
