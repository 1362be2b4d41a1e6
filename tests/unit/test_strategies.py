"""Strategies: min-cuts against a brute force over all heads, Neurosurgeon within its limits."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ModelError, SettingsError
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Graph, Node
from search.strategies.costs import CostGraph
from search.strategies.min_cut import dads, qdmp
from search.strategies.neurosurgeon import neurosurgeon

Strategy = Callable[[CostGraph], tuple[str, ...]]
BOTH = pytest.mark.parametrize("strategy", [dads, qdmp])
ALL = pytest.mark.parametrize("strategy", [dads, qdmp, neurosurgeon])
# Quarters of a millisecond: sums are exact, so optima can be compared for equality.
QUARTERS = st.integers(0, 40).map(lambda quarters: quarters / 4)


def graph_of(edges: dict[str, tuple[str, ...]], outputs: Iterable[str]) -> Graph:
    """A graph of nodes that read the tensors given, after an image."""
    body = (Node(name, "add", inputs, (1, 2, 2)) for name, inputs in edges.items())
    return Graph((Node("image", "input", (), (1, 2, 2)), *body), tuple(outputs))


def chain_of(length: int) -> Graph:
    names = ["image", *(f"n{rank}" for rank in range(length))]
    return graph_of({name: (names[rank],) for rank, name in enumerate(names[1:])}, names[-1:])


@st.composite
def dags(draw: st.DrawFn) -> Graph:
    names = ["image"]
    edges: dict[str, tuple[str, ...]] = {}
    for rank in range(draw(st.integers(1, 8))):
        # Mostly reads what was made last: else few graphs would have cut vertices.
        recent = st.sampled_from(names[-3:])
        read = draw(st.sets(st.sampled_from(names) | recent | st.just(names[-1]), min_size=1))
        edges[f"n{rank}"] = tuple(sorted(read))
        names.append(f"n{rank}")
    outputs = draw(st.sets(st.sampled_from(names[1:]), max_size=3))
    return graph_of(edges, sorted({*outputs, names[-1]}))


@st.composite
def cost_graphs(draw: st.DrawFn, graphs: st.SearchStrategy[Graph]) -> CostGraph:
    graph = draw(graphs)
    edge, cloud, sent = ({node.name: draw(QUARTERS) for node in graph.nodes} for _ in range(3))
    return CostGraph(graph, edge, cloud, sent, draw(QUARTERS))


def chains() -> st.SearchStrategy[Graph]:
    return st.integers(1, 8).map(chain_of)


def cost_of(costs: CostGraph, cut: Cut) -> float:
    edge = sum(costs.edge_ms[node.name] for node in cut.head)
    if not cut.tail:
        return edge
    cloud = sum(costs.cloud_ms[node.name] for node in cut.tail)
    return edge + sum(costs.transmit_ms[name] for name in cut.tensors) + costs.rtt_ms + cloud


def every_cut(costs: CostGraph) -> list[Cut]:
    return enumerate_cuts(costs.graph, max_tensors=99)


@given(cost_graphs(dags()))
def test_a_head_costs_what_its_cut_costs(costs: CostGraph) -> None:
    for cut in every_cut(costs):
        assert costs.latency_ms([node.name for node in cut.head]) == cost_of(costs, cut)


@BOTH
@given(costs=cost_graphs(dags()))
def test_a_minimum_cut_is_the_best_of_all_heads(strategy: Strategy, costs: CostGraph) -> None:
    least = min(cost_of(costs, cut) for cut in every_cut(costs))
    assert costs.latency_ms(strategy(costs)) == least


@given(cost_graphs(chains()))
def test_neurosurgeon_is_optimal_on_chains(costs: CostGraph) -> None:
    least = min(cost_of(costs, cut) for cut in every_cut(costs))
    assert costs.latency_ms(neurosurgeon(costs)) == least


@given(cost_graphs(dags()))
def test_neurosurgeon_never_beats_a_minimum_cut(costs: CostGraph) -> None:
    assert costs.latency_ms(neurosurgeon(costs)) >= costs.latency_ms(dads(costs))


@ALL
@given(costs=cost_graphs(dags()))
def test_heads_are_in_topological_order(strategy: Strategy, costs: CostGraph) -> None:
    head = strategy(costs)
    assert head == tuple(node.name for node in costs.graph.nodes if node.name in head)


@ALL
def test_a_slow_link_keeps_the_network_on_the_edge(strategy: Strategy) -> None:
    costs = diamond(edge=10.0, cloud=1.0, sent=1000.0, rtt=20.0)
    assert strategy(costs) == ("a", "b", "c", "d")


@ALL
def test_a_fast_link_moves_the_network_to_the_cloud(strategy: Strategy) -> None:
    assert strategy(diamond(edge=10.0, cloud=1.0, sent=0.001, rtt=0.5)) == ()


@ALL
def test_a_long_round_trip_alone_keeps_the_network_on_the_edge(strategy: Strategy) -> None:
    assert strategy(diamond(edge=10.0, cloud=1.0, sent=0.001, rtt=50.0)) == ("a", "b", "c", "d")


@BOTH
def test_a_tensor_with_several_readers_is_paid_once(strategy: Strategy) -> None:
    # Sending a twice would cost 6 ms more, and the image or the whole network would win.
    costs = CostGraph(
        graph_of({"a": ("image",), "b": ("a",), "c": ("a",), "d": ("b", "c")}, ["d"]),
        edge_ms={"a": 1.0, "b": 4.0, "c": 4.0, "d": 4.0},
        cloud_ms=dict.fromkeys("abcd", 0.0),
        transmit_ms={"image": 9.0, "a": 6.0, "b": 9.0, "c": 9.0, "d": 9.0},
    )
    assert strategy(costs) == ("a",)
    assert costs.latency_ms(("a",)) == 7.0


@BOTH
@pytest.mark.parametrize(
    ("sent", "head", "latency"),
    [
        (0.5, ("a",), 6.5),
        (3.0, (), 7.0),  # a is faster on the edge, but not by as much as sending it takes
    ],
)
def test_an_output_that_the_head_holds_is_sent(
    strategy: Strategy, sent: float, head: tuple[str, ...], latency: float
) -> None:
    costs = CostGraph(
        graph_of({"a": ("image",), "b": ("image",)}, ["a", "b"]),
        edge_ms={"a": 1.0, "b": 50.0},
        cloud_ms={"a": 2.0, "b": 1.0},
        transmit_ms={"image": 4.0, "a": sent, "b": 0.0},
    )
    assert strategy(costs) == head
    assert costs.latency_ms(head) == latency


def test_neurosurgeon_does_not_see_a_skip_connection() -> None:
    costs = CostGraph(
        graph_of({"a": ("image",), "b": ("a",), "c": ("a", "b")}, ["c"]),
        edge_ms={"a": 1.0, "b": 1.0, "c": 50.0},
        cloud_ms=dict.fromkeys("abc", 1.0),
        transmit_ms={"image": 20.0, "a": 10.0, "b": 1.0, "c": 1.0},
    )
    assert neurosurgeon(costs) == ("a", "b")
    assert costs.crossing(("a", "b")) == ("a", "b")
    assert costs.latency_ms(("a", "b")) == 14.0
    assert dads(costs) == qdmp(costs) == ("a",)
    assert costs.latency_ms(("a",)) == 13.0


def test_what_is_no_head_is_refused() -> None:
    costs = diamond(edge=1.0, cloud=1.0, sent=1.0, rtt=1.0)
    with pytest.raises(ModelError, match=r"read \['a'\]"):
        costs.latency_ms(["b"])
    with pytest.raises(ModelError, match=r"no nodes \['x'\]"):
        costs.latency_ms(["x"])


@pytest.mark.parametrize("bad", [-1.0, float("inf"), float("nan")])
def test_impossible_costs_are_refused(bad: float) -> None:
    with pytest.raises(SettingsError, match="expected 0 or more ms"):
        diamond(edge=bad, cloud=1.0, sent=1.0, rtt=1.0)
    with pytest.raises(SettingsError, match="round trip"):
        diamond(edge=1.0, cloud=1.0, sent=1.0, rtt=bad)


def test_a_missing_cost_is_refused() -> None:
    with pytest.raises(SettingsError, match="transmission time of image"):
        CostGraph(chain_of(1), {"n0": 1.0}, {"n0": 1.0}, {"n0": 1.0})


def diamond(*, edge: float, cloud: float, sent: float, rtt: float) -> CostGraph:
    """Equal costs on image -> a -> {b, c} -> d."""
    graph = graph_of({"a": ("image",), "b": ("a",), "c": ("a",), "d": ("b", "c")}, ["d"])
    names = [node.name for node in graph.nodes]
    return CostGraph(
        graph,
        dict.fromkeys(names[1:], edge),
        dict.fromkeys(names[1:], cloud),
        dict.fromkeys(names, sent),
        rtt,
    )
