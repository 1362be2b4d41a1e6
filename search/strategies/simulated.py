"""Strategies on a simulated pair of accelerators, as in the original Auto-Split's experiment.

    graph, two accelerators, uplink -> CostGraph in 16 bits -> Neurosurgeon, DADS, QDMP
                                    -> latency of a head with widths -> edge-only at one width,
                                       Auto-Split's list, the fastest head and widths of all

A latency is the sum of the edge's layers at their widths, of all tensors that cross packed at their
widths (the raw image at 8 bits), and of the cloud's layers at 16 bits. In place of an accuracy,
which needs trained weights, a limit on Auto-Split's own error says what a plan may lose.
"""

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import NoFeasiblePlanError
from search.allocate.auto_split import Configuration
from search.allocate.exact import solve_exact
from search.allocate.problem import Problem, TensorChoice
from search.allocate.table import IMAGE_WIDTH, WIDTHS, FusedLayer, Table
from search.network.cuts import Cut, find_cuts, prefix_cuts
from search.network.graph import Graph
from search.prediction.accelerators import Accelerator, weight_volume
from search.strategies.costs import CostGraph

FLOAT_BITS = 16
"""Width of the cloud, and of strategies that know no other."""
_BEAM = 64
_SOLVER_S = 5.0
_MULTIPLIERS = np.concatenate(([0.0], np.geomspace(1e-4, 1e4, 65)))


@dataclass(frozen=True)
class SimulatedPair:
    """Two accelerators with a link from the first to the second."""

    edge: Accelerator
    cloud: Accelerator
    uplink_bps: float

    def sending_ms(self, bits: float) -> float:
        """Time to send a number of bits."""
        return 1e3 * bits / self.uplink_bps


@dataclass(frozen=True, eq=False)
class SimulatedPlan:
    """A head with its widths, and what it costs.

    Attributes:
        head: Names of the nodes on the edge, in topological order.
        sent: Names of the tensors that cross.
        weights: Width of each node's weights, by name.
        activations: Width of each node's output, by name.
        latency_ms: Of one image.
        sent_bits: Of one image.
        edge_bits: Weights, and the larger of the image and the largest output; 0 for cloud-only.
        error: Sum of the errors of its layers, in the unit of the table; 0 in 16 bits.
    """

    head: tuple[str, ...]
    sent: tuple[str, ...]
    weights: Mapping[str, int]
    activations: Mapping[str, int]
    latency_ms: float
    sent_bits: int
    edge_bits: int
    error: float


def cuts_of(graph: Graph) -> list[Cut]:
    """Cuts with a head: all prefixes, and heads that send at most four tensors."""
    cuts = (*prefix_cuts(graph)[1:], *find_cuts(graph, beam=_BEAM).cuts[1:])
    return list({tuple(node.name for node in cut.head): cut for cut in cuts}.values())


class Simulation:
    """One network on a simulated pair.

    Args:
        graph: The network.
        table: Its layers, with their errors at `WIDTHS`.
        pair: The accelerators and the link.
    """

    def __init__(self, graph: Graph, table: Table, pair: SimulatedPair) -> None:
        self._graph = graph
        self._table = table
        self._pair = pair
        self._layers = {layer.name: layer for layer in table.layers}
        self._image = graph.nodes[0].name

    @cached_property
    def costs(self) -> CostGraph:
        """Costs of single layers and tensors in 16 bits, for strategies that know no widths."""
        graph, pair, body = self._graph, self._pair, self._graph.nodes[1:]
        floats = dict.fromkeys(graph.by_name, FLOAT_BITS)
        captured = floats | {self._image: IMAGE_WIDTH}
        return CostGraph(
            graph,
            edge_ms={n.name: pair.edge.layer_ms(graph, n, FLOAT_BITS, captured) for n in body},
            cloud_ms={n.name: pair.cloud.layer_ms(graph, n, FLOAT_BITS, floats) for n in body},
            transmit_ms={n: pair.sending_ms(graph[n].elements * b) for n, b in captured.items()},
        )

    def plan(
        self, head: Collection[str], weights: Mapping[str, int], activations: Mapping[str, int]
    ) -> SimulatedPlan:
        """Simulate a head with its widths.

        Args:
            head: Names of its nodes; none for cloud-only, all for edge-only.
            weights: Width of the weights of each node that has any, by name.
            activations: Width of the output of each node of the head, by name.
        """
        names, sent = self.costs.in_order(head), self.costs.crossing(head)
        widths = {self._image: IMAGE_WIDTH} | {name: activations[name] for name in names}
        sent_bits = sum(self._graph[name].elements * widths[name] for name in sent)
        edge_ms = sum(
            self._pair.edge.layer_ms(self._graph, self._graph[n], weights.get(n, 0), widths)
            for n in names
        )
        tail_ms = sum(ms for name, ms in self.costs.cloud_ms.items() if name not in widths)
        stored = sum(weight_volume(self._graph[n]) * weights.get(n, 0) for n in names)
        peak = self._table.peak_bits({n: activations[n] for n in names}) if names else 0
        return SimulatedPlan(
            head=names,
            sent=sent,
            weights={n: weights[n] for n in names if n in weights},
            activations={n: activations[n] for n in names},
            latency_ms=edge_ms + self._pair.sending_ms(sent_bits) + tail_ms,
            sent_bits=sent_bits,
            edge_bits=stored + peak,
            error=sum(_error(self._layers[n], weights.get(n), activations[n]) for n in names),
        )

    def cloud_only(self) -> SimulatedPlan:
        """Upload of the raw image, everything in the cloud."""
        return self.plan((), {}, {})

    def at_one_width(self, head: Collection[str], bits: int) -> SimulatedPlan:
        """A head whose weights and outputs all have one width."""
        uniform = dict.fromkeys(head, bits)
        return self.plan(head, {n: bits for n in head if self._layers[n].weight_volume}, uniform)

    def edge_only(self, bits: int) -> SimulatedPlan:
        """The whole network on the edge at one width."""
        return self.at_one_width(self._layers, bits)

    def one_cut(self, choose: Callable[[CostGraph], tuple[str, ...]]) -> SimulatedPlan:
        """The plan of a strategy that chooses a head by costs of single layers, in 16 bits."""
        return self.at_one_width(choose(self.costs), FLOAT_BITS)

    def auto_split(
        self, configurations: Sequence[Configuration], error_limit: float
    ) -> SimulatedPlan:
        """The fastest of Auto-Split's configurations within the device's memory and an error.

        Args:
            configurations: All of them; see `search.allocate.auto_split.auto_split`.
            error_limit: Largest error allowed.
        """
        plans = (
            self.plan(each.activations, each.weights, each.activations)
            for each in configurations
            if each.error <= error_limit and "over-memory" not in each.flags
        )
        return min(plans, key=lambda plan: (plan.latency_ms, plan.error))

    def fastest(self, cuts: Iterable[Cut], memory_bits: int, error_limit: float) -> SimulatedPlan:
        """The fastest of some cuts, at any widths within a memory and an error, or cloud-only.

        Best first: a cut is taken up by its latency at the least widths, then by a closer bound of
        it, then solved, until no other one's bound is below the best latency found.

        Args:
            cuts: With heads, such as `cuts_of` lists them.
            memory_bits: Limit on `SimulatedPlan.edge_bits`.
            error_limit: Largest error allowed.
        """
        best = self.cloud_only()
        queue: list[tuple[float, int, Cut | _Choices]]
        queue = [(self._narrowest_ms(cut), rank, cut) for rank, cut in enumerate(cuts)]
        heapq.heapify(queue)
        while queue and queue[0][0] < best.latency_ms:
            _, rank, found = heapq.heappop(queue)
            if isinstance(found, Cut):
                choices = self._choices(tuple(node.name for node in found.head))
                heapq.heappush(queue, (choices.bound_ms(error_limit), rank, choices))
            elif (widths := found.fastest(memory_bits, error_limit)) is not None:
                plan = self.plan(found.head, *widths)
                best = min(best, plan, key=lambda plan: plan.latency_ms)
        return best

    def _narrowest_ms(self, cut: Cut) -> float:
        """Latency of a cut with every tensor of its head at the least width."""
        edge_ms = sum(self._least_ms[node.name] for node in cut.head)
        cloud_ms = sum(self.costs.cloud_ms[node.name] for node in cut.tail)
        sent = [name for name in cut.tensors if cut.tail]
        bits = sum(
            self._graph[name].elements * (IMAGE_WIDTH if name == self._image else min(WIDTHS))
            for name in sent
        )
        return edge_ms + self._pair.sending_ms(bits) + cloud_ms

    @cached_property
    def _least_ms(self) -> dict[str, float]:
        """Time of each node on the edge at the least width, by name."""
        edge, graph, least = self._pair.edge, self._graph, min(WIDTHS)
        widths = dict.fromkeys(graph.by_name, least) | {self._image: IMAGE_WIDTH}
        return {n.name: edge.layer_ms(graph, n, least, widths) for n in graph.nodes[1:]}

    def _choices(self, head: tuple[str, ...]) -> "_Choices":
        """Widths that are free in a head, one for each of its tensors."""
        graph, pair, inside = self._graph, self._pair, set(head)
        moves = dict.fromkeys((self._image, *head), 0)
        for name in head:
            for tensor in pair.edge.moved(graph[name]):
                moves[tensor] += 1
        crossing = set(self.costs.crossing(head))

        def tensor_ms(name: str) -> float:
            """Time of one bit of each element of a tensor."""
            elements = graph[name].elements
            sent_ms = pair.sending_ms(elements) if name in crossing else 0.0
            return pair.edge.moving_ms(elements * moves[name]) + sent_ms

        layers = [self._layers[name] for name in head]
        return _Choices(
            head=head,
            fixed_ms=sum(pair.edge.array_ms(graph[name]) for name in head)
            + sum(ms for name, ms in self.costs.cloud_ms.items() if name not in inside)
            + IMAGE_WIDTH * tensor_ms(self._image),
            image_elements=graph[self._image].elements,
            weights=tuple(
                _choice(
                    c.name, c.weight_volume, pair.edge.moving_ms(c.weight_volume), c.weight_errors
                )
                for c in layers
                if c.weight_volume
            ),
            activations=tuple(
                _choice(c.name, c.volume_out, tensor_ms(c.name), c.activation_errors)
                for c in layers
            ),
        )


@dataclass(frozen=True)
class _Choices:
    """The widths that are free in a head.

    The integer program of an allocation minimises a sum of errors and limits a sum of times. Here
    times are minimised and errors limited, so the two change places in every `TensorChoice`.

    Attributes:
        head: Names of its nodes.
        fixed_ms: Time that depends on no width.
        image_elements: Of the image, which lies in memory at 8 bits.
        weights: Of the head's weights.
        activations: Of the head's outputs.
    """

    head: tuple[str, ...]
    fixed_ms: float
    image_elements: int
    weights: tuple[TensorChoice, ...]
    activations: tuple[TensorChoice, ...]

    def bound_ms(self, error_limit: float) -> float:
        """A latency that no widths within the error are below: the best of Lagrangian bounds."""
        choices = (*self.weights, *self.activations)
        times = np.array([choice.errors for choice in choices])
        errors = np.array([choice.times_ms for choice in choices])
        if errors.min(axis=1).sum() > error_limit:
            return np.inf
        values = _MULTIPLIERS * times.sum() / max(float(errors.sum()), np.finfo(float).tiny)
        priced = times[:, None, :] + values[None, :, None] * errors[:, None, :]
        return self.fixed_ms + float((priced.min(axis=2).sum(axis=0) - values * error_limit).max())

    def fastest(
        self, memory_bits: int, error_limit: float
    ) -> tuple[dict[str, int], dict[str, int]] | None:
        """The fastest widths of weights and activations, by name; None if none are allowed.

        Memory is the original's: weights, and the larger of the image and the largest output.
        """
        image = TensorChoice(" image", self.image_elements, (IMAGE_WIDTH,), (0.0,), (0.0,))
        activations = (image, *self.activations)
        problem = Problem(
            self.weights,
            activations,
            live=tuple((index,) for index in range(len(activations))),
            memory_bits=memory_bits,
            time_limit_ms=error_limit,
        )
        try:
            found = solve_exact(problem, time_limit_s=_SOLVER_S)
        except NoFeasiblePlanError:
            return None
        return found.weights, found.activations


def _choice(name: str, elements: int, bit_ms: float, errors: Mapping[int, float]) -> TensorChoice:
    times = tuple(width * bit_ms for width in WIDTHS)
    return TensorChoice(name, elements, WIDTHS, times, tuple(errors[width] for width in WIDTHS))


def _error(layer: FusedLayer, weight_bits: int | None, activation_bits: int) -> float:
    """Error of a layer; widths that have none in the table are exact."""
    weights = 0.0 if weight_bits is None else layer.weight_errors.get(weight_bits, 0.0)
    return layer.activation_errors.get(activation_bits, 0.0) + weights
