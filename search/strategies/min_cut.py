"""DADS and QDMP: the best head of a network with branches, as a minimum cut of a flow network.

C. Hu, W. Bao, D. Wang and F. Liu, "Dynamic Adaptive DNN Surgery for Inference Acceleration on the
Edge", INFOCOM 2019. S. Zhang, Y. Li, X. Liu, S. Guo, W. Wang, J. Wang, B. Ding and D. Wu, "Towards
Real-time Cooperative Deep Inference over the Cloud and Edge End Devices", IMWUT 4(2), 2020.

What is on the source's side of the cut runs on the edge, the rest in the cloud. The arcs:

    edge --cloud time--> v          cut, so paid, if v is in the cloud
    v --edge time--> cloud          paid if v is on the edge
    u --transmission--> r           paid if u is on the edge and its one reader r in the cloud
    u --transmission--> t --inf--> r1, r2, ...   of several readers: t is an auxiliary node of the
                                    tensor, so one reader in the cloud or many, it is paid once
    u --transmission--> cloud       of an output: its reader is the application, in the cloud
    r --inf--> u                    never cut: an edge node reads nothing that the cloud makes

So a cut of finite capacity is a head closed under predecessors, and its capacity is the head's
latency less the round trip, which is the same for every head. Capacities are whole nanoseconds, so
the cut is exact. Only edge-only costs less than its cut: it has no round trip and sends no outputs.
So the minimum cut is compared with edge-only at its own price. If the cut *is* the whole network,
no head costs less than edge-only; otherwise the cut is the best of the other heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from search.prediction.candidates import Candidate
from search.strategies.base import StrategyInputs
from search.strategies.baselines import one_cut
from search.strategies.costs import CostGraph

_Vertex = tuple[str, str]
_EDGE: _Vertex = ("edge", "")
_CLOUD: _Vertex = ("cloud", "")


def dads(costs: CostGraph) -> tuple[str, ...]:
    """The head of least latency, in topological order, by one minimum cut of the whole network.

    Of equally fast ones edge-only wins, which needs no link.
    """
    body = costs.in_order(costs.graph.by_name.keys())
    head = _minimum_cut(costs, _Block(frozenset((costs.image,)), frozenset()))
    return min(body, head, key=costs.latency_ms)


def qdmp(costs: CostGraph) -> tuple[str, ...]:
    """The head of least latency, in topological order, by minimum cuts between cut vertices.

    A cut vertex is a node that every other node is an ancestor or a descendant of. Cut vertices
    come one after the other, so every head has a last one, c, and lacks the next one, d. It then
    holds all of c's ancestors and none of d's descendants: only the nodes between c and d are free.
    The best head is the best over these blocks. On a chain no block has free nodes, and no flow is
    computed at all.

    The original settles on one block beforehand. Here blocks are taken by a lower bound, in which
    each free node runs where it is faster and sending is free, until no other block's bound is
    below the best latency found: so the optimum is certain, and equal to that of `dads`. Again
    edge-only wins if nothing is faster.
    """
    best = costs.in_order(costs.graph.by_name.keys())
    least = costs.latency_ms(best)
    bounded = [(_lower_bound(costs, block), block) for block in _blocks(costs)]
    for bound, block in sorted(bounded, key=lambda pair: pair[0]):
        if bound >= least:
            break
        head = _minimum_cut(costs, block)
        latency = costs.latency_ms(head)
        if latency < least:
            best, least = head, latency
    return best


def dads_plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """The plan of DADS's head."""
    return one_cut(dads, inputs)


def qdmp_plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """The plan of QDMP's head."""
    return one_cut(qdmp, inputs)


@dataclass(frozen=True)
class _Block:
    """The heads that hold all of `held`, which has the image, and none of `left`."""

    held: frozenset[str]
    left: frozenset[str]

    def is_free(self, name: str) -> bool:
        return name not in self.held and name not in self.left

    def vertex(self, name: str) -> _Vertex:
        if name in self.held:
            return _EDGE
        return _CLOUD if name in self.left else ("node", name)


def _blocks(costs: CostGraph) -> list[_Block]:
    """The heads by their last cut vertex, the image being the first one."""
    above: dict[str, frozenset[str]] = {}
    for node in costs.graph.nodes:
        above[node.name] = frozenset({node.name}.union(*(above[i] for i in node.inputs)))
    below = {name: frozenset(n for n, needs in above.items() if name in needs) for name in above}
    vertices = [
        node.name
        for node in costs.body
        if len(above[node.name]) + len(below[node.name]) == len(costs.graph.nodes) + 1
    ]
    image = frozenset((costs.image,))
    held = [image, *(above[name] | image for name in vertices)]
    left = [*(below[name] for name in vertices), frozenset[str]()]
    return [_Block(*pair) for pair in zip(held, left, strict=True)]


def _lower_bound(costs: CostGraph, block: _Block) -> float:
    """A latency in ms that no head of the block is below."""
    edge, cloud = costs.edge_ms, costs.cloud_ms
    times = 0.0
    for node in costs.body:
        name = node.name
        if block.is_free(name):
            times += min(edge[name], cloud[name])
        else:
            times += edge[name] if name in block.held else cloud[name]
    return times


def _minimum_cut(costs: CostGraph, block: _Block) -> tuple[str, ...]:
    """The head of the block whose cut is least, in topological order."""
    free = [node.name for node in costs.body if block.is_free(node.name)]
    head = set(block.held)
    if free:
        (reached, _) = nx.minimum_cut(_network(costs, block), _EDGE, _CLOUD)[1]
        head |= {name for name in free if ("node", name) in reached}
    return costs.in_order(head)


def _network(costs: CostGraph, block: _Block) -> nx.DiGraph:
    """The flow network of a block: what is held is one with the source, what is left the sink.

    An arc without a capacity is infinite to networkx. Arcs within a terminal, from the source to
    the sink (a constant), into the source and out of the sink (never cut) are left out.
    """
    network = nx.DiGraph()
    network.add_nodes_from((_EDGE, _CLOUD))
    for node in costs.graph.nodes:
        own = block.vertex(node.name)
        if own == _CLOUD:
            continue
        readers = {block.vertex(name) for name in costs.graph.consumers[node.name]} - {own}
        if own != _EDGE:
            _pay(network, _EDGE, own, costs.cloud_ms[node.name])
            _pay(network, own, _CLOUD, costs.edge_ms[node.name])
            network.add_edges_from((reader, own) for reader in readers - {_CLOUD})
        sent_ms = costs.transmit_ms[node.name]
        if _CLOUD in readers or node.name in costs.graph.outputs:
            # The cloud reads it at all events: wherever else it goes, it is paid here.
            _pay(network, own, _CLOUD, sent_ms)
        elif len(readers) == 1:
            _pay(network, own, readers.pop(), sent_ms)
        elif readers:
            tensor = ("tensor", node.name)
            _pay(network, own, tensor, sent_ms)
            network.add_edges_from((tensor, reader) for reader in readers)
    return network


def _pay(network: nx.DiGraph, tail: _Vertex, head: _Vertex, cost_ms: float) -> None:
    """Add to the capacity of an arc."""
    if (tail, head) != (_EDGE, _CLOUD):
        already = network.get_edge_data(tail, head, {"capacity": 0})["capacity"]
        network.add_edge(tail, head, capacity=already + round(cost_ms * 1e6))
