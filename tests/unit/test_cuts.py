"""Cuts: all of them, none twice, and head after tail is the whole network."""

import itertools

import torch

from search.network import execute
from search.network.cuts import Cut, enumerate_cuts, find_cuts, undominated
from search.network.graph import Graph, Node
from tests.networks import SIZE, branched_graph


def test_head_then_tail_is_the_whole_network_exactly_for_every_cut() -> None:
    graph = branched_graph()
    image = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(2))
    whole = execute.run(graph, {"image": image}, graph.outputs)
    cuts = enumerate_cuts(graph, max_tensors=8)
    assert any(len(cut.tensors) > 1 for cut in cuts)
    for cut in cuts:
        sent = execute.run(graph, {"image": image}, cut.tensors)
        joined = execute.run(graph, sent, graph.outputs)
        for name in graph.outputs:
            assert (joined[name] - whole[name]).abs().max() == 0, cut.name


def test_the_ends_are_cloud_only_and_edge_only() -> None:
    graph = branched_graph()
    cuts = enumerate_cuts(graph, max_tensors=1)
    assert (cuts[0].kind, cuts[0].tensors) == ("cloud-only", ("image",))
    assert (cuts[-1].kind, cuts[-1].tensors) == ("edge-only", graph.outputs)
    assert all(len(cut.tensors) == 1 for cut in cuts[:-1])


def test_cuts_equal_a_brute_force_over_all_sets_of_nodes() -> None:
    graph = _diamond()
    body = [node for node in graph.nodes if node.op != "input"]
    heads = set()
    for size in range(len(body) + 1):
        for chosen in itertools.combinations(body, size):
            names = {node.name for node in chosen}
            if all(set(node.inputs) <= names | {"image"} for node in chosen):
                heads.add(frozenset(names))
    found = {frozenset(n.name for n in cut.head) for cut in enumerate_cuts(graph, max_tensors=9)}
    assert found == heads


def test_a_head_that_holds_an_output_sends_it() -> None:
    cuts = {frozenset(n.name for n in cut.head): cut for cut in enumerate_cuts(_diamond())}
    assert cuts[frozenset({"a", "b"})].tensors == ("a", "b")
    assert cuts[frozenset({"a", "c"})].tensors == ("a", "c")


def test_head_and_tail_divide_the_graph() -> None:
    graph = branched_graph()
    for cut in enumerate_cuts(graph):
        assert {n.name for n in cut.head}.isdisjoint(n.name for n in cut.tail)
        assert len(cut.head) + len(cut.tail) == len(graph.nodes) - 1


def test_of_a_graph_of_many_branches_the_heads_that_send_least_stay() -> None:
    image = Node("image", "input", (), (1, 1, 1))
    leaves = tuple(Node(f"n{k}", "activation", ("image",), (1, 1, 1)) for k in range(20))
    found = find_cuts(Graph((image, *leaves), tuple(n.name for n in leaves)), beam=50)
    assert not found.complete
    kinds = [cut.kind for cut in found.cuts]
    assert kinds[0] == "cloud-only"
    assert kinds[-1] == "edge-only"
    assert len(kinds) <= 50 * 21
    assert find_cuts(branched_graph()).complete


def _diamond() -> Graph:
    """image -> a -> {b (an output), c} -> d."""

    def node(name: str, *inputs: str) -> Node:
        return Node(name, "add" if inputs else "input", inputs, (1, 2, 2))

    nodes = (node("image"), node("a", "image"), node("b", "a"), node("c", "a"), node("d", "b", "c"))
    return Graph(nodes, ("d", "b"))


def test_a_dominated_cut_has_a_better_one_that_stays() -> None:
    graph = branched_graph()
    cuts = enumerate_cuts(graph)
    kept = undominated(graph, cuts)
    assert {"cloud-only", "edge-only"} <= {cut.kind for cut in kept}
    gone = [cut for cut in cuts if cut not in kept]
    assert gone

    def facts(cut: Cut) -> tuple[set[str], int, int]:
        names = {node.name for node in cut.head}
        sent = sum(graph[name].elements for name in cut.tensors)
        return names, sent, sum(node.macs for node in cut.head)

    for cut in gone:
        names, sent, macs = facts(cut)
        better = [facts(other) for other in kept]
        assert any(n < names and s <= sent and m == macs for n, s, m in better)
    for cut in kept:
        names, sent, macs = facts(cut)
        others = [facts(other) for other in kept if other is not cut]
        if cut.kind == "split":
            assert not any(n < names and s <= sent and m == macs for n, s, m in others)
