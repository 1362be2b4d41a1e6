"""Strategies on a simulated pair of accelerators: each answer against all heads and widths."""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import product

import numpy as np
import pytest

from search.allocate.auto_split import auto_split
from search.allocate.table import WIDTHS, Table, fused_layers, random_errors, uniform_error
from search.network.cuts import enumerate_cuts
from search.network.graph import Graph, Node, Shape
from search.prediction.accelerators import Accelerator
from search.strategies.costs import CostGraph
from search.strategies.min_cut import dads, qdmp
from search.strategies.neurosurgeon import neurosurgeon
from search.strategies.simulated import SimulatedPair, SimulatedPlan, Simulation, cuts_of

EDGE = Accelerator("edge", 4, 4, 1e6, 0.5)
CLOUD = Accelerator("cloud", 16, 16, 1e8, 0.1)
UPLINKS = pytest.mark.parametrize("uplink_bps", [2e5, 1e6, 1e7])


def conv(name: str, source: str, shape: Shape, taken: int) -> Node:
    weight = np.zeros((shape[0], taken, 3, 3), np.float32)
    return Node(name, "conv", (source,), shape, {"groups": 1}, weight)


GRAPH = Graph(
    (
        Node("image", "input", (), (3, 16, 16)),
        conv("a", "image", (4, 8, 8), 3),
        conv("b", "a", (4, 8, 8), 4),
        conv("c", "a", (4, 8, 8), 4),
        Node("d", "add", ("b", "c"), (4, 8, 8)),
    ),
    ("d",),
)
TABLE = Table(random_errors(fused_layers(GRAPH), seed=1), image_elements=768)
WHOLE = ("a", "b", "c", "d")


def simulation(uplink_bps: float) -> Simulation:
    return Simulation(GRAPH, TABLE, SimulatedPair(EDGE, CLOUD, uplink_bps))


@cache
def every_plan(uplink_bps: float) -> list[SimulatedPlan]:
    """Every head at all widths."""
    return list(plans_at(simulation(uplink_bps)))


def plans_at(simulated: Simulation) -> Iterator[SimulatedPlan]:
    for cut in enumerate_cuts(GRAPH):
        head = [node.name for node in cut.head]
        weighted = [name for name in head if name != "d"]
        for widths in product(WIDTHS, repeat=len(head) + len(weighted)):
            activations = dict(zip(head, widths, strict=False))
            weights = dict(zip(weighted, widths[len(head) :], strict=True))
            yield simulated.plan(head, weights, activations)


def test_a_plan_costs_what_its_layers_and_its_tensors_cost() -> None:
    plan = simulation(1e6).plan(("a", "b"), {"a": 4, "b": 2}, {"a": 6, "b": 8})

    a_ms = (7 * 1 * (10 + 64) + 0.5 * (108 * 4 + 768 * 8 + 256 * 6) / 8) / 1e3
    b_ms = (9 * 1 * (10 + 64) + 0.5 * (144 * 2 + 256 * 6 + 256 * 8) / 8) / 1e3
    c_ms = (3 * 1 * (46 + 64) + 0.1 * (144 + 2 * 256) * 2) / 1e5
    d_ms = 0.1 * 3 * 256 * 2 / 1e5
    assert plan.sent == ("a", "b")
    assert plan.sent_bits == 256 * 6 + 256 * 8
    assert plan.latency_ms == pytest.approx(a_ms + b_ms + plan.sent_bits / 1e3 + c_ms + d_ms)
    assert plan.edge_bits == 108 * 4 + 144 * 2 + 768 * 8  # no output is larger than the image
    a, b, *_ = TABLE.layers
    parts = (a.weight_errors[4], b.weight_errors[2], a.activation_errors[6], b.activation_errors[8])
    assert plan.error == pytest.approx(sum(parts))


def test_the_ends_send_the_image_or_nothing() -> None:
    cloud, edge = simulation(1e6).cloud_only(), simulation(1e6).edge_only(8)
    assert (cloud.sent, cloud.sent_bits, cloud.edge_bits, cloud.error) == (("image",), 6144, 0, 0)
    assert (edge.sent, edge.sent_bits, edge.head) == ((), 0, WHOLE)
    assert edge.error == pytest.approx(uniform_error(TABLE, 8))


def test_fewer_bits_are_faster_on_the_edge() -> None:
    times = [simulation(1e6).edge_only(bits).latency_ms for bits in (2, 4, 6, 8, 16)]
    assert times == sorted(times)
    assert len(set(times)) == len(times)


@UPLINKS
@pytest.mark.parametrize("choose", [dads, qdmp])
def test_a_minimum_cut_is_the_best_of_all_heads_in_16_bits(
    choose: Callable[[CostGraph], tuple[str, ...]], uplink_bps: float
) -> None:
    simulated = simulation(uplink_bps)
    heads = [[node.name for node in (*c.head, *c.rest)] for c in enumerate_cuts(GRAPH)]
    least = min(simulated.at_one_width(head, 16).latency_ms for head in heads)
    assert simulated.one_cut(choose).latency_ms == pytest.approx(least)


@UPLINKS
def test_neurosurgeon_pays_for_all_that_crosses(uplink_bps: float) -> None:
    simulated = simulation(uplink_bps)
    plan = simulated.one_cut(neurosurgeon)
    assert plan.head in [WHOLE[:count] for count in range(5)]
    assert plan.sent == simulated.costs.crossing(plan.head)
    assert plan.latency_ms == pytest.approx(simulated.costs.latency_ms(plan.head))


@UPLINKS
def test_auto_split_takes_the_fastest_of_its_list_that_is_allowed(uplink_bps: float) -> None:
    simulated, limit = simulation(uplink_bps), uniform_error(TABLE, 4)
    listed = auto_split(TABLE, memory_bits=7500)
    allowed = [c for c in listed if c.error <= limit and c.edge_bits <= 7500]
    plans = [simulated.plan(c.activations, c.weights, c.activations) for c in allowed]
    assert 0 < len(allowed) < len(listed)
    chosen = simulated.auto_split(listed, limit)
    assert chosen.latency_ms == min(plan.latency_ms for plan in plans)
    assert any(plan.sent_bits == c.transmitted_bits for plan, c in zip(plans, allowed, strict=True))


@UPLINKS
@pytest.mark.parametrize("memory_bits", [6144 + 400, 6144 + 1000, 10**6])
@pytest.mark.parametrize("error_bits", [2, 4, 6])
def test_the_fastest_head_and_widths_are_the_best_of_all(
    uplink_bps: float, memory_bits: int, error_bits: int
) -> None:
    simulated, limit = simulation(uplink_bps), uniform_error(TABLE, error_bits)
    allowed = [
        plan
        for plan in every_plan(uplink_bps)
        if plan.error <= limit * (1 + 1e-9) and plan.edge_bits <= memory_bits
    ]
    found = simulated.fastest(cuts_of(GRAPH), memory_bits, limit)
    assert found.latency_ms == pytest.approx(min(plan.latency_ms for plan in allowed), rel=1e-6)
    assert found.error <= limit * (1 + 1e-6)
    assert found.edge_bits <= memory_bits


def test_nothing_within_the_limits_leaves_cloud_only() -> None:
    assert simulation(1e3).fastest(cuts_of(GRAPH), memory_bits=1, error_limit=1e9).head == ()
    assert simulation(1e3).fastest(cuts_of(GRAPH), 10**6, error_limit=1e-12).head == ()
