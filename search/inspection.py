"""Inspection: what a network is made of, and what that means for a split.

integer head    an edge computes it on codes, in integers
float head      an edge computes it in floating point, between codes and codes
tail only       the cloud computes it
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from common.errors import SettingsError
from common.tasks.decoders.base import Decoder
from common.tasks.decoders.registry import presets
from common.tasks.registry import AnyTask
from search.network.cuts import Cut, find_cuts, peak_bytes, undominated
from search.network.graph import IMAGE, Graph, Node
from search.network.operators.opaque import OPAQUE, OPAQUE_OUTPUT
from search.network.operators.registry import may_be_in_head, operator_of
from search.quantization.network import is_depthwise
from search.source import NetworkSource, SourceNetwork, open_network

Place = Literal["integer head", "float head", "tail only"]

_SCALE_AND_BIAS_BYTES = 8


@dataclass(frozen=True)
class OperatorUse:
    """All uses of one operator at one place.

    Attributes:
        name: Of the operator, with its activation.
        place: Where it can run.
        count: How many there are.
        macs: Multiply-accumulates of one frame, of all of them.
        reason: Why it is for tails only; empty if it is not.
    """

    name: str
    place: Place
    count: int
    macs: int
    reason: str = ""


@dataclass(frozen=True)
class CutFacts:
    """Costs of a cut whose head has 8 bits.

    Attributes:
        name: The tensors that travel.
        bytes: Of their codes, before they are coded.
        macs: Multiply-accumulates of the head.
        memory_bytes: Weights and largest activations of the head.
    """

    name: str
    bytes: int
    macs: int
    memory_bytes: int


@dataclass(frozen=True, eq=False)
class Inspection:
    """A network as a search would see it.

    Attributes:
        network: The network.
        task: What it is for; None if that is not known.
        problem: Why the task is not known.
        near: Decoders that its outputs may be of, with the usual parameters.
        operators: In the order in which they first occur.
        cuts: How many there are.
        complete: Whether these are all; else heads that send much were left out.
        thinnest: Cuts that send fewer bytes than all with a smaller head.
        whole: The whole network as a head.
    """

    network: SourceNetwork
    task: AnyTask | None
    problem: str
    near: tuple[Decoder, ...]
    operators: tuple[OperatorUse, ...]
    cuts: int
    complete: bool
    thinnest: tuple[CutFacts, ...]
    whole: CutFacts

    @cached_property
    def decoder(self) -> Decoder | None:
        """The decoder: the task's, or else the only one that the outputs may be of."""
        if self.task is not None:
            return self.task.decoder if self.task.kind == "detection" else None
        return self.near[0] if len(self.near) == 1 else None


def inspect_network(source: NetworkSource) -> Inspection:
    """Look at a network, also at one whose task is not known yet.

    Raises:
        SplitpointError: A model, card or weights that cannot be worked with.
    """
    try:
        network, problem = open_network(source), ""
    except SettingsError as error:
        network, problem = open_network(source, raw=True), str(error)
    graph = network.graph
    task = None if problem else network.task
    found = find_cuts(graph)
    splits = [cut for cut in undominated(graph, found.cuts) if _may_be_head(cut)]
    body = graph.nodes[1:]
    return Inspection(
        network,
        task,
        problem,
        tuple(presets(network.output_shapes, network.outputs, network.task.image.size)),
        tuple(_operators(body)),
        sum(cut.kind == "split" for cut in found.cuts),
        found.complete,
        tuple(_thinnest(graph, splits)),
        _facts(graph, found.cuts[-1]),
    )


def place_of(node: Node) -> Place:
    """Place that a node can run at."""
    if not may_be_in_head(node):
        return "tail only"
    return "integer head" if operator_of(node).has_integer_kernel(node) else "float head"


def _operators(body: Sequence[Node]) -> Iterable[OperatorUse]:
    alike: dict[tuple[str, Place, str], list[Node]] = {}
    for node in body:
        if node.op == OPAQUE_OUTPUT:
            continue
        place = place_of(node)
        reason = operator_of(node).refusal(node) if place == "tail only" else None
        alike.setdefault((_name(node), place, _kind_of(reason or "")), []).append(node)
    for (name, place, reason), nodes in alike.items():
        yield OperatorUse(name, place, len(nodes), sum(node.macs for node in nodes), reason)


def _name(node: Node) -> str:
    if node.op == OPAQUE:
        return str(node.attributes["reason"]).split(" ", 1)[0]
    name = node.op
    if node.op == "conv":
        groups = node.attributes["groups"]
        name = "conv" if groups == 1 else "depthwise conv" if is_depthwise(node) else "group conv"
    return name if node.activation is None else f"{name} + {node.activation.name}"


def _kind_of(reason: str) -> str:
    """A reason without the place that it is of."""
    return reason.rsplit(": ", 1)[-1]


def _may_be_head(cut: Cut) -> bool:
    return cut.kind == "split" and all(map(may_be_in_head, cut.head))


def _thinnest(graph: Graph, cuts: Sequence[Cut]) -> Iterable[CutFacts]:
    least = math.prod(graph[IMAGE].shape)
    for facts in sorted((_facts(graph, cut) for cut in cuts), key=lambda f: (f.macs, f.bytes)):
        if facts.bytes < least:
            least = facts.bytes
            yield facts


def _facts(graph: Graph, cut: Cut) -> CutFacts:
    return CutFacts(
        cut.name,
        sum(graph[name].elements for name in cut.tensors),
        sum(node.macs for node in (*cut.head, *cut.rest)),
        sum(map(_stored_bytes, cut.head))
        + sum(4 * node.parameters for node in cut.rest)
        + peak_bytes(graph, cut),
    )


def _stored_bytes(node: Node) -> int:
    if not operator_of(node).has_integer_weights or node.weight is None:
        return 4 * node.parameters
    return node.weight.size + _SCALE_AND_BIAS_BYTES * len(node.weight)
