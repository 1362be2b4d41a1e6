"""What published strategies would deploy: costs of single layers, widths as allocated, limits."""

from collections.abc import Callable

import numpy as np
import pytest

from common.errors import SettingsError
from common.link.link import parse_link
from common.progress import Progress
from common.tables.timing import Timing
from search.network.cuts import cut_of_head, enumerate_cuts, prefix_cuts
from search.network.graph import Graph
from search.prediction.candidates import Candidate, CostModel, predict
from search.prediction.cut_times import CutTimes
from search.prediction.devices import device_profile
from search.quantization.calibration import observe
from search.quantization.heads import Heads
from search.quantization.recipes import RECIPES
from search.quantization.rounding import Rounder
from search.strategies import BASELINES, STRATEGIES, baseline, known_strategy
from search.strategies.base import StrategyInputs
from search.strategies.baselines import AutoSplit, cost_graph, edge_only, in_eight_bits
from search.strategies.min_cut import dads
from search.wire.formats import FormatTable
from search.wire.sampling import sample
from splitpoint.cli import main
from tests.networks import branched_graph, pictures

FRAMES = pictures(6)
COST_MODEL = CostModel(parse_link("1mbit/20ms"), device_profile("quarter-core"), 1.0, 1.0)


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


class Setting:
    """A small network, timed as if each node took 2 ms on the edge and 1 ms in the cloud."""

    def __init__(self) -> None:
        self.graph: Graph = branched_graph()
        statistics = observe(self.graph, FRAMES)
        self.rounder = Rounder(self.graph, statistics, FRAMES, how=RECIPES["nearest"])
        self.heads = Heads(self.rounder.nearest({}))
        names = [node.name for node in self.graph.nodes[1:]]
        samples = sample(self.heads.network, names, FRAMES, lambda _done, _total: None)
        cuts = [*prefix_cuts(self.graph), *enumerate_cuts(self.graph)]
        self.times = {
            cut.name: CutTimes(
                Timing(2.0 * len(cut.head), 3.0 * len(cut.head), 9),
                Timing(1.0 * len(cut.tail), 2.0 * len(cut.tail), 9),
            )
            for cut in cuts
        }
        self.table = FormatTable(self.heads, samples, self.times, COST_MODEL)
        self.auto_split = AutoSplit(self.heads, self.rounder, FRAMES, Silent())


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting()


def test_prefixes_are_heads_in_the_order_of_execution(setting: Setting) -> None:
    prefixes = prefix_cuts(setting.graph)
    assert [len(cut.head) for cut in prefixes] == list(range(len(setting.graph.nodes)))
    for cut in prefixes:
        again = cut_of_head(setting.graph, [node.name for node in cut.head])
        assert (again.tensors, again.head, again.tail) == (cut.tensors, cut.head, cut.tail)


def test_costs_of_single_layers_add_up_to_those_of_a_side(setting: Setting) -> None:
    costs = cost_graph(setting.graph, setting.times, setting.table, COST_MODEL)
    count = len(costs.body)
    assert sum(costs.edge_ms.values()) == pytest.approx(4.0 * 2.0 * count)
    assert sum(costs.cloud_ms.values()) == pytest.approx(count)
    assert all(costs.transmit_ms[node.name] > 0 for node in setting.graph.nodes)


def test_a_minimum_cut_becomes_a_candidate_of_eight_bits(setting: Setting) -> None:
    costs = cost_graph(setting.graph, setting.times, setting.table, COST_MODEL)
    cut = cut_of_head(setting.graph, dads(costs))
    candidate = in_eight_bits(cut, setting.table)
    assert candidate.cut is cut
    assert all(wire.bits == 8 for wire in candidate.wire)
    least = min(
        predict(in_eight_bits(each, setting.table), setting.times[each.name], COST_MODEL).latency_ms
        for each in enumerate_cuts(setting.graph)
    )
    chosen = predict(candidate, setting.times[cut.name], COST_MODEL).latency_ms
    # Its costs of tensors are sums, those of a cut's codec are of all tensors together.
    assert chosen <= 1.05 * least


def test_edge_only_comes_at_every_width(setting: Setting) -> None:
    found = edge_only(setting.heads, setting.rounder, setting.table, Silent())
    assert [c.name for c in found] == ["edge-only", *(f"edge-only W{bits}" for bits in (2, 4, 6))]
    memory = {c.name: c.weight_bytes for c in found}
    assert sorted(memory, key=lambda name: memory[name])[-1] == "edge-only"
    assert len({setting.heads.digest(c.cut) for c in found}) == 4


@pytest.mark.parametrize("version", [1, 2])
def test_auto_split_runs_its_own_widths_and_sends_them_packed(
    setting: Setting, version: int
) -> None:
    memory_bytes = 16_500
    found = list(
        setting.auto_split.candidates(
            1 if version == 1 else 2, memory_bytes, setting.table, setting.times, COST_MODEL
        )
    )
    assert found
    assert len({c.name for c in found}) == len(found)
    splits = [c for c in found if c.cut.tail]
    assert splits
    for candidate in splits:
        network = setting.heads.of(candidate.cut)
        sent = 0
        for wire in candidate.wire:
            assert wire.bits == network.grids[wire.name].bits
            sent += -(-int(np.prod(wire.shape)) * wire.bits // 8)
        assert candidate.payload_bytes == sent
    assert {c.wire[0].bits for c in splits} >= {2, 8}
    assert all(c.edge_memory_bytes <= memory_bytes for c in found)


def test_a_strategy_that_there_is_not_is_named_with_those_that_are() -> None:
    assert [known_strategy(name) for name in STRATEGIES] == list(STRATEGIES)
    with pytest.raises(SettingsError, match="unknown strategy 'best': choose one of splitpoint, "):
        known_strategy("best")


def test_every_baseline_loads_and_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(callable(baseline(name)) for name in BASELINES)
    with pytest.raises(SystemExit):
        main(["search", "--help"])
    text = "".join(capsys.readouterr().out.split())  # a long help is wrapped within names
    assert all(name in text for name in (*STRATEGIES, *RECIPES))


def test_auto_split_stops_at_the_first_feasible_configuration(setting: Setting) -> None:
    def plans(feasible: Callable[[Candidate], bool]) -> list[str]:
        inputs = StrategyInputs(
            heads=setting.heads,
            frames=FRAMES,
            times=setting.times,
            table=setting.table,
            cost_model=COST_MODEL,
            memory_bytes=16_500,
            rounder=lambda _recipe: setting.rounder,
            time_cut=lambda _cut: None,
            is_feasible=feasible,
            reporter=Silent(),
        )
        return [each.name for each in baseline("auto-split-v2")(inputs)]

    every = plans(lambda _candidate: False)
    assert len(every) > 2
    assert plans(lambda candidate: candidate.name == every[1]) == every[:2]
