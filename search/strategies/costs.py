"""The cost graph, input of all strategies: a network with the cost of each node and tensor.

    latency = edge time of the head + sending what crosses + round trip + cloud time of the tail

Published strategies add per-layer times up, so this does too. A fused runtime is faster than the
sum of its layers: compare strategies by what they choose, not by what they predict.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from common.errors import ModelError, SettingsError
from search.network.graph import Graph, Node


@dataclass(frozen=True, eq=False)
class CostGraph:
    """A graph with its costs in milliseconds, all finite and not negative.

    Attributes:
        graph: The network; its input costs no time on either side.
        edge_ms: Time of each node on the edge, by name; the input's may be left out.
        cloud_ms: Time of each node in the cloud, by name; the input's may be left out.
        transmit_ms: Time to send each tensor once, by name, the image among them.
        rtt_ms: Round trip, paid by everything but edge-only.

    Raises:
        SettingsError: If a cost is missing, negative or not finite.
    """

    graph: Graph
    edge_ms: Mapping[str, float]
    cloud_ms: Mapping[str, float]
    transmit_ms: Mapping[str, float]
    rtt_ms: float = 0.0

    def __post_init__(self) -> None:
        names = [node.name for node in self.body]
        for what, costs, needed in (
            ("edge time", self.edge_ms, names),
            ("cloud time", self.cloud_ms, names),
            ("transmission time", self.transmit_ms, [self.image, *names]),
        ):
            for name in needed:
                cost = costs.get(name, math.nan)
                if not 0 <= cost < math.inf:
                    raise SettingsError(f"{what} of {name}: expected 0 or more ms, got {cost}")
        if not 0 <= self.rtt_ms < math.inf:
            raise SettingsError(f"round trip: expected 0 or more ms, got {self.rtt_ms}")

    @property
    def image(self) -> str:
        """Name of the network's input."""
        return self.graph.nodes[0].name

    @property
    def body(self) -> tuple[Node, ...]:
        """The nodes that take time: all but the input, in topological order."""
        return self.graph.nodes[1:]

    def in_order(self, names: Collection[str]) -> tuple[str, ...]:
        """Nodes of the body that are in `names`, in topological order."""
        return tuple(node.name for node in self.body if node.name in names)

    def crossing(self, head_names: Collection[str]) -> tuple[str, ...]:
        """The tensors that a head sends, each once, like `search.network.cuts.Cut.tensors`.

        They are the image and the head's tensors that the tail reads, and the network's outputs
        that the head holds. Edge-only sends nothing.
        """
        head = set(head_names)
        tail = [node for node in self.body if node.name not in head]
        wanted = {name for node in tail for name in node.inputs} | set(self.graph.outputs)
        return tuple(n for n in (self.image, *self.in_order(head)) if n in wanted) if tail else ()

    def latency_ms(self, head_names: Collection[str]) -> float:
        """Latency of a head: none of its nodes for cloud-only, all of them for edge-only.

        Raises:
            ModelError: If it names unknown nodes, or lacks a node that one of its nodes reads.
        """
        head = set(head_names) - {self.image}
        unknown = head - self.graph.by_name.keys()
        if unknown:
            raise ModelError(f"the graph has no nodes {sorted(unknown)}")
        missing = {i for name in head for i in self.graph[name].inputs} - head - {self.image}
        if missing:
            raise ModelError(f"not a head: its nodes read {sorted(missing)}, which it lacks")
        edge = sum(self.edge_ms[name] for name in self.in_order(head))
        if len(head) == len(self.body):
            return edge
        cloud = sum(self.cloud_ms[node.name] for node in self.body if node.name not in head)
        return edge + sum(self.transmit_ms[n] for n in self.crossing(head)) + self.rtt_ms + cloud
