"""Narrow heads: fewer bits where memory is short, more again where too much is lost."""

import numpy as np
import pytest

from search.allocate.low_bit import LowBitAllocator
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Graph
from search.quantization.calibration import Statistics, observe
from search.quantization.heads import Heads
from search.quantization.recipe import rounded
from search.quantization.rounding import Rounder
from search.quantization.sensitivity import Sensitivity, fisher, measured, squared
from search.quantization.widths import WIDTHS
from tests.networks import branched_graph, pictures

FRAMES = pictures(6)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return branched_graph()


@pytest.fixture(scope="module")
def statistics(graph: Graph) -> Statistics:
    return observe(graph, FRAMES)


@pytest.fixture(scope="module")
def sensitivity(graph: Graph, statistics: Statistics) -> Sensitivity:
    return measured(graph, statistics, FRAMES)


@pytest.fixture
def heads(graph: Graph, statistics: Statistics) -> Heads:
    return Heads(rounded(graph, statistics))


@pytest.fixture
def rounder(graph: Graph, statistics: Statistics) -> Rounder:
    return Rounder(graph, statistics, FRAMES)


def silent(_done: int, _total: int, _note: str = "", /) -> None:
    pass


def test_a_head_that_does_not_fit_gets_the_widths_of_least_error(
    heads: Heads, sensitivity: Sensitivity, rounder: Rounder
) -> None:
    cuts = enumerate_cuts(heads.network.graph)
    needs = {cut.name: sum(heads.memory_bytes(cut)) for cut in cuts}
    limit = max(needs.values()) - 300
    low_bit = LowBitAllocator(heads, sensitivity.weights, limit, rounder).fitted(cuts)
    assert {cut.name for cut in low_bit} == {name for name, need in needs.items() if need > limit}
    for cut in low_bit:
        assert cut.label == f"{cut.name} {cut.widths}"
        assert sum(heads.memory_bytes(cut)) <= limit
        bits = {n.name: heads.of(cut).convs[n.name].bits for n in cut.head if n.op == "conv"}
        assert min(bits.values()) < 8
        # What was left alone matters more per byte saved than what was narrowed.
        assert max(bits.values()) == 8


def test_cuts_that_fit_or_never_will_are_left_alone(
    heads: Heads, sensitivity: Sensitivity, rounder: Rounder
) -> None:
    cuts = enumerate_cuts(heads.network.graph)
    assert LowBitAllocator(heads, sensitivity.weights, 1 << 30, rounder).fitted(cuts) == []
    assert LowBitAllocator(heads, sensitivity.weights, 10, rounder).fitted(cuts) == []


def test_rounding_together_keeps_widths_and_memory(
    heads: Heads, sensitivity: Sensitivity, rounder: Rounder
) -> None:
    whole = enumerate_cuts(heads.network.graph)[-1]
    limit = sum(heads.memory_bytes(whole)) - 1500
    allocator = LowBitAllocator(heads, sensitivity.weights, limit, rounder)
    (cut,) = allocator.fitted([whole])
    before = heads.of(cut)
    better = allocator.reconstructed(cut, silent)
    assert better.label == cut.label
    after = heads.of(better)
    assert [c.bits for c in after.convs.values()] == [c.bits for c in before.convs.values()]
    assert any(
        not np.array_equal(after.convs[name].weight, before.convs[name].weight)
        for name in after.convs
    )


def test_promotion_gives_the_most_harmful_layer_more_bits_until_memory_ends(
    heads: Heads, sensitivity: Sensitivity, rounder: Rounder
) -> None:
    whole = enumerate_cuts(heads.network.graph)[-1]
    limit = sum(heads.memory_bytes(whole)) - 1500
    allocator = LowBitAllocator(heads, sensitivity.weights, limit, rounder)
    cut: Cut | None = allocator.fitted([whole])[0]
    seen, labels = set(), set()
    while cut is not None:
        bits = {name: conv.bits for name, conv in heads.of(cut).convs.items()}
        assert tuple(bits.values()) not in seen
        assert cut.label not in labels
        labels.add(cut.label)
        seen.add(tuple(bits.values()))
        harm = max((n for n in bits if bits[n] < 8), key=lambda n: sensitivity.weights[n][bits[n]])
        cut = allocator.promoted(cut)
        if cut is not None:
            assert sum(heads.memory_bytes(cut)) <= limit
            now = heads.of(cut).convs
            assert any(now[n].bits > bits[n] for n in bits)
            assert now[harm].bits >= bits[harm]
    assert len(seen) > 1


@pytest.mark.parametrize("how", ["measured", "fisher", "squared"])
def test_errors_fall_with_every_bit(
    graph: Graph, statistics: Statistics, sensitivity: Sensitivity, how: str
) -> None:
    found = {
        "measured": lambda: sensitivity,
        "fisher": lambda: fisher(graph, statistics, FRAMES),
        "squared": lambda: squared(graph, statistics),
    }[how]()
    convs = {node.name for node in graph.nodes if node.op == "conv"}
    for table in (found.weights, found.activations):
        assert set(table) == convs
        sums = [sum(errors[bits] for errors in table.values()) for bits in WIDTHS]
        assert sums == sorted(sums, reverse=True)
        assert all(np.isfinite(list(errors.values())).all() for errors in table.values())
