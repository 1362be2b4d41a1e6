"""Baselines: what other strategies would deploy, as candidates that are measured like our own.

    cloud-only                 every upload of the image
    edge-only                  the whole network on the edge, its weights at 2, 4, 6 and 8 bits
    neurosurgeon, dads, qdmp   one cut by times of single layers, in 8 bits
    auto-split-v1, -v2         the original's configurations: its widths, its nominal packing

The published strategies read times of single layers. These are differences here: of the measured
prefixes for the edge, of the suffixes for the cloud, so that they add up to what a whole side
takes. Each strategy sees the tensors as cheap as our codecs without contexts make them and the
image as the usual upload; only Auto-Split, which packs, sees and sends nominal widths.

Neurosurgeon, DADS and QDMP choose without regard to the memory limit, and their plan has to keep
it all the same. Auto-Split counts activations at their own widths where a CPU keeps each in a byte;
of its configurations only those stay that really fit.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from common.codec.spec import USUAL_UPLOAD
from common.link.link import transfer_ms
from common.progress import Reporter
from common.tables.rows import head_to, tail_from
from search.allocate.auto_split import Configuration, auto_split, below_uniform
from search.allocate.table import Table, fused_layers, random_errors, with_errors
from search.network.cuts import Cut, cut_of_head, prefix_cuts
from search.network.graph import Graph
from search.network.operators.registry import maker_of, makes_values
from search.prediction.candidates import Candidate, CostModel
from search.prediction.cut_times import CutTimes
from search.quantization.heads import Heads
from search.quantization.rounding import Rounder
from search.quantization.widths import WIDTHS, Widths
from search.strategies.base import StrategyInputs
from search.strategies.costs import CostGraph
from search.wire.formats import FormatTable
from search.wire.sampling import sample_values

_SEED = 0
_UNLIMITED_BITS = 1 << 50


def cost_graph(
    graph: Graph, times: Mapping[str, CutTimes], table: FormatTable, cost_model: CostModel
) -> CostGraph:
    """Cost of each node and each tensor on the device and link of `cost_model`.

    Args:
        graph: The network.
        times: Of its prefix cuts.
        table: Prices of tensors.
        cost_model: Device and link.
    """
    prefixes = prefix_cuts(graph)
    edge_ms, cloud_ms = {}, {}
    for before, after in pairwise(prefixes):
        name = after.head[-1].name
        early, late = _sides_ms(before, times, cost_model), _sides_ms(after, times, cost_model)
        edge_ms[name] = max(0.0, late[0] - early[0])
        cloud_ms[name] = max(0.0, early[1] - late[1])
    transmit_ms = {node.name: table.sending_ms(node.name) for node in graph.nodes}
    return CostGraph(graph, edge_ms, cloud_ms, transmit_ms, cost_model.link.rtt_ms)


def _sides_ms(
    cut: Cut, times: Mapping[str, CutTimes], cost_model: CostModel
) -> tuple[float, float]:
    """Time of a cut's head on the edge of `cost_model` and of its tail in the cloud."""
    own = times[cut.name]
    head_ms = cost_model.edge.ms(head_to(cut.name), own.head.median_ms)
    return head_ms, cost_model.cloud.ms(tail_from(cut.name), own.tail.median_ms)


def in_eight_bits(cut: Cut, table: FormatTable) -> Candidate:
    """A cut without any allocation of bits: 8-bit codes, or the usual upload."""
    if cut.kind == "cloud-only":
        return table.upload(cut, USUAL_UPLOAD)
    return table.candidates(cut)[-1]


def one_cut(
    choose: Callable[[CostGraph], tuple[str, ...]], inputs: StrategyInputs
) -> Iterator[Candidate]:
    """The one plan of a strategy that chooses a head by costs of single layers, in 8 bits.

    Args:
        choose: Names of the head's nodes.
        inputs: Inputs of the strategy.
    """
    graph = inputs.heads.network.graph
    costs = cost_graph(graph, inputs.times, inputs.table, inputs.cost_model)
    cut = cut_of_head(graph, choose(costs))
    inputs.time_cut(cut)
    yield in_eight_bits(cut, inputs.table)


def edge_only_plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """The whole network on the edge at every width."""
    rounder = inputs.rounder("default")
    yield from edge_only(inputs.heads, rounder, inputs.table, inputs.reporter)


def auto_split_v1_plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """Configurations of the original's first version, the fastest first, up to a feasible one."""
    return _auto_split_plans(1, inputs)


def auto_split_v2_plans(inputs: StrategyInputs) -> Iterator[Candidate]:
    """Configurations of the original's second version, the fastest first, up to a feasible one."""
    return _auto_split_plans(2, inputs)


def _auto_split_plans(version: Literal[1, 2], inputs: StrategyInputs) -> Iterator[Candidate]:
    rounder = inputs.rounder("nearest")
    original = AutoSplit(inputs.heads, rounder, inputs.frames, inputs.reporter)
    for each in original.candidates(
        version, inputs.memory_bytes, inputs.table, inputs.times, inputs.cost_model
    ):
        yield each
        if inputs.is_feasible(each):
            return


def edge_only(
    heads: Heads, rounder: Rounder, table: FormatTable, reporter: Reporter
) -> list[Candidate]:
    """The whole network on the edge, its weights at each width and activations at 8 bits."""
    graph = heads.network.graph
    whole = prefix_cuts(graph)[-1]
    found = table.candidates(whole)
    for bits in WIDTHS[:-1]:
        widths = {node.name: Widths(weight=bits) for node in graph.nodes if node.op == "conv"}
        network = rounder.nearest(widths)
        network = rounder.reconstruct(network, whole.codes, reporter.stage(f"rounding W{bits}"))
        found += table.candidates(heads.narrowed(whole, network, f"W{bits}"))
    return found


def head_widths(
    graph: Graph, cut: Cut, weights: Mapping[str, int], activations: Mapping[str, int]
) -> dict[str, Widths]:
    """Widths of the layers that make values; nodes that only move values have their input's.

    Args:
        graph: The network.
        cut: Where it is divided.
        weights: Width of each layer's weights, by name.
        activations: Width of each node's output, by name.
    """
    made = dict(activations)
    for name in cut.codes:
        maker = maker_of(graph, name)
        if maker in made:
            made[maker] = min(made[maker], made[name])
    return {
        node.name: Widths(weight=weights.get(node.name, 8), activation=made[node.name])
        for node in cut.head
        if makes_values(node)
    }


class AutoSplit:
    """The original Auto-Split's search on this network.

    Args:
        heads: The integer networks.
        rounder: Quantizes configurations.
        frames: (N, 3, H, W) calibration images, which version 2 samples tensors of.
        reporter: Says which configuration is being quantized.
    """

    def __init__(
        self, heads: Heads, rounder: Rounder, frames: NDArray[np.uint8], reporter: Reporter
    ) -> None:
        self._heads = heads
        self._graph = heads.network.graph
        self._rounder = rounder
        self._frames = frames
        self._reporter = reporter

    def candidates(
        self,
        version: Literal[1, 2],
        memory_bytes: int | None,
        table: FormatTable,
        times: Mapping[str, CutTimes],
        cost_model: CostModel,
    ) -> Iterator[Candidate]:
        """Configurations not beaten in both latency and error, fastest first.

        Each is quantized when it is asked for.

        Args:
            version: 1 takes errors from random tensors, 2 from real ones.
            memory_bytes: Limit on the edge.
            table: Prices of tensors.
            times: Of the prefix cuts.
            cost_model: Device and link.
        """
        best: dict[tuple[float, float], tuple[Cut, Configuration, dict[str, Widths]]] = {}
        for cut, each, widths in self.configurations(version, memory_bytes):
            sent_ms = transfer_ms(each.transmitted_bits / 8, cost_model.link.uplink_bps)
            head_ms, tail_ms = _sides_ms(cut, times, cost_model)
            latency = head_ms + sent_ms + tail_ms + (cost_model.link.rtt_ms if cut.tail else 0.0)
            best.setdefault((latency, each.error), (cut, each, widths))
        least = np.inf
        for (_, error), (cut, each, widths) in sorted(best.items(), key=lambda item: item[0]):
            if error < least:
                least = error
                yield self._candidate(cut, each.name, widths, table)

    def configurations(
        self, version: Literal[1, 2], memory_bytes: int | None
    ) -> list[tuple[Cut, Configuration, dict[str, Widths]]]:
        """Every configuration that fits, but cloud-only, with the widths of its layers.

        Configurations of as much error as the whole network at 2 bits are left out.
        """
        layers = self._layers(version)
        limit = _UNLIMITED_BITS if memory_bytes is None else 8 * memory_bytes
        prefixes = {cut.head[-1].name: cut for cut in prefix_cuts(self._graph)[1:]}
        return [
            (prefixes[each.cut], each, self._widths(prefixes[each.cut], each))
            for each in below_uniform(auto_split(layers, limit), layers)
            if each.cut and 8 * self._memory_bytes(prefixes[each.cut], each) <= limit
        ]

    def _memory_bytes(self, cut: Cut, configuration: Configuration) -> int:
        """Memory of the head as deployed: weights packed, a byte for each activation."""
        eight_bits, activations = self._heads.memory_bytes(cut)
        saved = sum(
            node.weight.size * (8 - configuration.weights[node.name]) // 8
            for node in cut.head
            if node.weight is not None
        )
        return eight_bits - saved + activations

    def _candidate(
        self, cut: Cut, configured: str, widths: dict[str, Widths], table: FormatTable
    ) -> Candidate:
        name = configured.replace(f"-{cut.head[-1].name}-", "-")
        progress = self._reporter.stage(f"rounding {cut.name} {name}")
        network = self._rounder.nearest(widths)
        network = self._rounder.reconstruct(network, cut.codes, progress)
        narrowed = self._heads.narrowed(cut, network, name)
        return table.packed(narrowed)

    def _widths(self, cut: Cut, each: Configuration) -> dict[str, Widths]:
        return head_widths(self._graph, cut, each.weights, each.activations)

    def _layers(self, version: Literal[1, 2]) -> Table:
        layers = fused_layers(self._graph)
        image = self._graph.nodes[0].elements
        if version == 1:
            return Table(random_errors(layers, _SEED), image)
        weights = {n.name: n.weight for n in self._graph.nodes if n.weight is not None}
        return Table(with_errors(layers, weights, sample_values(self._graph, self._frames)), image)
