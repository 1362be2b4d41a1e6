"""Cuts: every way to divide the graph between edge and cloud.

A head is a set of nodes closed under predecessors. Its cut is the set of tensors that must travel:
those made by the head (or the image itself) that the tail reads, and those outputs of the network
that the head already holds. The empty head is cloud-only, the whole graph is edge-only.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from common.errors import ModelError
from search.network.graph import Graph, Node

MAX_HEADS = 200_000


@dataclass(frozen=True, eq=False)
class Cut:
    """One cut of a graph.

    Attributes:
        tensors: What travels, in topological order; of edge-only, the network's outputs in theirs.
        head: The nodes on the edge, in execution order; empty for cloud-only.
        tail: The nodes in the cloud, in execution order; empty for edge-only.
        widths: Name of the widths of the head's weights; empty for 8 bits.
        adapted_to: The wire format that the tail's weights were adapted to; empty for the network's
            own weights.
    """

    tensors: tuple[str, ...]
    head: tuple[Node, ...]
    tail: tuple[Node, ...]
    widths: str = ""
    adapted_to: str = ""

    @property
    def name(self) -> str:
        """The tensors' names joined by "+"."""
        return "+".join(self.tensors)

    @property
    def label(self) -> str:
        """Name of the cut, and the widths of its head where these are not 8 bits."""
        return f"{self.name} {self.widths}" if self.widths else self.name

    @property
    def kind(self) -> str:
        """Kind of the plan: "cloud-only", "split" or "edge-only"."""
        if not self.head:
            return "cloud-only"
        return "split" if self.tail else "edge-only"


def enumerate_cuts(graph: Graph, *, max_tensors: int = 4) -> list[Cut]:
    """All cuts of at most `max_tensors` tensors, cloud-only first and edge-only last.

    Cloud-only and edge-only are always among them, however many outputs the network has. Heads are
    found by adding one ready node at a time; a bit mask stands for a head.

    Raises:
        ModelError: If the graph is so wide that it has more than `MAX_HEADS` heads.
    """
    body = [node for node in graph.nodes if node.op != "input"]
    index = {node.name: bit for bit, node in enumerate(body)}
    needs = [sum(1 << index[i] for i in set(node.inputs) if i in index) for node in body]

    heads = {0}
    frontier = [0]
    while frontier:
        grown = {
            head | 1 << bit
            for head in frontier
            for bit, need in enumerate(needs)
            if not head >> bit & 1 and head & need == need
        }
        frontier = list(grown - heads)
        heads |= grown
        if len(heads) > MAX_HEADS:
            raise ModelError(
                f"the graph has over {MAX_HEADS} heads: its branches are too many to cut"
            )

    whole = (1 << len(body)) - 1
    cuts = []
    for head in sorted(heads, key=lambda mask: (mask.bit_count(), mask)):
        cut = _cut_of(graph, body, head)
        sendable = all(graph[name].sendable for name in cut.tensors)
        if head in (0, whole) or (sendable and len(cut.tensors) <= max_tensors):
            cuts.append(cut)
    return cuts


def undominated(graph: Graph, cuts: Sequence[Cut]) -> list[Cut]:
    """Drop cuts whose tensors the cloud can derive from another cut's without multiplications.

    Pooling, upsampling, slices and joins cost no multiplications. So of heads with the same
    convolutions one that holds more of these, and sends no fewer elements for it, spends time and
    memory on the edge and gains nothing. Cloud-only and edge-only always stay.
    """
    alike: dict[frozenset[str], list[tuple[frozenset[str], int]]] = {}
    facts = []
    for cut in cuts:
        working = frozenset(node.name for node in cut.head if node.macs)
        held = frozenset(node.name for node in cut.head)
        sent = sum(graph[name].elements for name in cut.tensors)
        facts.append((cut, working, held, sent))
        alike.setdefault(working, []).append((held, sent))
    return [
        cut
        for cut, working, held, sent in facts
        if cut.kind != "split"
        or not any(less < held and fewer <= sent for less, fewer in alike[working])
    ]


def prefix_cuts(graph: Graph) -> list[Cut]:
    """The cuts behind each node in the order of execution, cloud-only first and edge-only last."""
    body = [node for node in graph.nodes if node.op != "input"]
    return [_cut_of(graph, body, (1 << count) - 1) for count in range(len(body) + 1)]


def cut_of_head(graph: Graph, names: Collection[str]) -> Cut:
    """The cut whose head has these nodes; they must be closed under predecessors."""
    body = [node for node in graph.nodes if node.op != "input"]
    return _cut_of(graph, body, sum(1 << bit for bit, n in enumerate(body) if n.name in names))


def _cut_of(graph: Graph, body: list[Node], mask: int) -> Cut:
    head = tuple(node for bit, node in enumerate(body) if mask >> bit & 1)
    tail = tuple(node for bit, node in enumerate(body) if not mask >> bit & 1)
    if not tail:
        return Cut(graph.outputs, head, tail)
    read_later = {name for node in tail for name in node.inputs}
    tensors = tuple(
        node.name
        for node in (graph.nodes[0], *head)
        if node.name in read_later or node.name in graph.outputs
    )
    return Cut(tensors, head, tail)
