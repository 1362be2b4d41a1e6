"""Cuts: every way to divide the graph between edge and cloud.

A head is a set of nodes closed under predecessors. Its cut is the set of tensors that must travel:
those made by the head (or the image itself) that the tail reads, and those outputs of the network
that the head already holds. The empty head is cloud-only, the whole graph is edge-only.

An edge by itself computes in integers as far as the last weights that have integers, and the rest,
such as a decoder of boxes that is part of the graph, in floating point.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from search.network.graph import Graph, Node
from search.network.operators.registry import may_be_in_head, operator_of

BEAM = 256
"""Heads of one size that are looked at; the networks of the zoo have fewer."""


@dataclass(frozen=True, eq=False)
class Cut:
    """One cut of a graph.

    Attributes:
        tensors: What travels, in topological order; of edge-only, the network's outputs in theirs.
        head: The nodes on the edge, in execution order; empty for cloud-only.
        tail: The nodes in the cloud, in execution order; empty for edge-only.
        rest: The nodes that an edge by itself runs in floating point behind the head.
        between: What the head makes for the rest; empty without one.
        widths: Name of the widths of the head's weights; empty for 8 bits.
        adapted_to: The wire format that the tail's weights were adapted to; empty for the network's
            own weights.
    """

    tensors: tuple[str, ...]
    head: tuple[Node, ...]
    tail: tuple[Node, ...]
    widths: str = ""
    adapted_to: str = ""
    rest: tuple[Node, ...] = ()
    between: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The tensors' names joined by "+"."""
        return "+".join(self.tensors)

    @property
    def codes(self) -> tuple[str, ...]:
        """Tensors that the head makes: those that travel, or that the rest reads."""
        return self.between or self.tensors

    @property
    def behind(self) -> tuple[Node, ...]:
        """The nodes behind the head, in floating point: the tail, or the rest."""
        return self.tail or self.rest

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


@dataclass(frozen=True)
class FoundCuts:
    """Cuts of a graph.

    Attributes:
        cuts: Cloud-only first, edge-only last.
        complete: Whether these are all there are; else heads that send much were left out.
    """

    cuts: tuple[Cut, ...]
    complete: bool


def enumerate_cuts(graph: Graph, *, max_tensors: int = 4) -> list[Cut]:
    """The cuts of `find_cuts`."""
    return list(find_cuts(graph, max_tensors=max_tensors).cuts)


def find_cuts(graph: Graph, *, max_tensors: int = 4, beam: int = BEAM) -> FoundCuts:
    """Cuts of at most `max_tensors` tensors, cloud-only first and edge-only last.

    Cloud-only and edge-only are always among them, however many outputs the network has. Heads are
    found by adding one ready node at a time; of those of one size, the `beam` that send the fewest
    elements go on, so that graphs of many branches stay in hand.

    Args:
        graph: The network.
        max_tensors: Most tensors that travel, but for edge-only.
        beam: Heads of one size.
    """
    body = [node for node in graph.nodes if node.op != "input"]
    heads = _Heads(graph, body)
    level, found, complete = [heads.empty()], [], True
    for _ in range(len(body) + 1):
        found += level
        grown = {head.mask: head for each in level for head in heads.grown(each)}
        level = sorted(grown.values(), key=lambda head: (head.elements, head.mask))
        complete = complete and len(level) <= beam
        level = sorted(level[:beam], key=lambda head: head.mask)
    cuts = []
    for head in found:
        cut = heads.cut(head, max_tensors)
        if cut is not None:
            cuts.append(cut)
    return FoundCuts(tuple(cuts), complete)


@dataclass(frozen=True)
class _Head:
    """A set of nodes as a bit mask, and what it sends.

    Attributes:
        mask: The nodes; the first of the body is the lowest bit.
        live: Tensors that later nodes read, or that the network makes, as a mask; the image is the
            bit above the body.
        elements: Number of elements of these.
    """

    mask: int
    live: int
    elements: int


class _Heads:
    """Heads of a graph, each grown from a smaller one."""

    def __init__(self, graph: Graph, body: list[Node]) -> None:
        self._graph = graph
        self._body = body
        index = {node.name: bit for bit, node in enumerate(body)}
        index[graph.nodes[0].name] = len(body)
        self._inputs = [{index[name] for name in node.inputs} for node in body]
        self._readers = [0] * (len(body) + 1)
        for bit, sources in enumerate(self._inputs):
            for source in sources:
                self._readers[source] |= 1 << bit
        self._needs = [sum(1 << s for s in sources if s < len(body)) for sources in self._inputs]
        self._kept = sum(1 << index[name] for name in set(graph.outputs))
        self._elements = [node.elements for node in (*body, graph.nodes[0])]
        self._sendable = sum(
            1 << bit for bit, node in enumerate((*body, graph.nodes[0])) if node.sendable
        )

    def empty(self) -> _Head:
        image = len(self._body)
        return _Head(0, 1 << image, self._elements[image])

    def grown(self, head: _Head) -> Iterator[_Head]:
        """Heads of one node more."""
        for bit, need in enumerate(self._needs):
            if head.mask >> bit & 1 or head.mask & need != need:
                continue
            mask = head.mask | 1 << bit
            live, elements = head.live, head.elements
            if self._readers[bit] or self._kept >> bit & 1:
                live |= 1 << bit
                elements += self._elements[bit]
            for source in self._inputs[bit]:
                done = not self._readers[source] & ~mask and not self._kept >> source & 1
                if done and live >> source & 1:
                    live &= ~(1 << source)
                    elements -= self._elements[source]
            yield _Head(mask, live, elements)

    def cut(self, head: _Head, max_tensors: int) -> Cut | None:
        """The cut behind a head; None if it has too many tensors, or some that cannot be sent."""
        whole = (1 << len(self._body)) - 1
        fits = head.live.bit_count() <= max_tensors and not head.live & ~self._sendable
        if fits or head.mask in (0, whole):
            return _cut_of(self._graph, self._body, head.mask)
        return None


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


def peak_bytes(graph: Graph, cut: Cut) -> int:
    """Largest activations of a head, a code taking one byte, or of the rest in floating point."""
    head = graph.peak_elements((graph.nodes[0], *cut.head), cut.codes)
    if not cut.rest:
        return head
    read = tuple(graph[name] for name in cut.codes)
    return max(head, 4 * graph.peak_elements((*read, *cut.rest), graph.outputs))


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
        return _edge_only(graph, head)
    tensors = _sent(graph, head, tail)
    return Cut(tensors, head, tail)


def _edge_only(graph: Graph, body: tuple[Node, ...]) -> Cut:
    """The whole network, in integers up to the last weights that have them."""
    able: set[str] = {graph.nodes[0].name}
    for node in body:
        if may_be_in_head(node) and able.issuperset(node.inputs):
            able.add(node.name)
    weighty = [n.name for n in body if n.name in able and operator_of(n).has_integer_weights]
    held = {node.name for node in graph.ancestors(weighty)}
    head = tuple(node for node in body if node.name in held)
    rest = tuple(node for node in body if node.name not in held)
    if not head or not rest:
        return Cut(graph.outputs, body, ())
    return Cut(graph.outputs, head, (), rest=rest, between=_sent(graph, head, rest))


def _sent(graph: Graph, head: tuple[Node, ...], tail: tuple[Node, ...]) -> tuple[str, ...]:
    """Tensors of a head, or the image, that a tail reads or the network makes."""
    read_later = {name for node in tail for name in node.inputs}
    return tuple(
        node.name
        for node in (graph.nodes[0], *head)
        if node.name in read_later or node.name in graph.outputs
    )
