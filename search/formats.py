"""Wire formats of cuts: every cut that the limits allow, with every format worth having.

Per tensor and width one quantizer; per cut and width the codec that is fastest on the device and
link at hand; for the cut at the input the image codecs, all of them, because they differ in
accuracy.
"""

from collections.abc import Sequence

from common.errors import NoFeasiblePlanError
from common.link import Link
from common.manifest import CodecSpec, WireTensor
from search.candidates import Candidate, World, judge
from search.cuts import Cut
from search.graph import IMAGE, Graph
from search.latency import CutTimes
from search.quantize import QuantizedGraph
from search.sampling import Coded, Samples, code
from search.wire import IMAGE_CODECS, TENSOR_CODECS, WIDTHS, image_tensor, wire_tensor

# Cuts that are timed; of more, those with the best rough estimate.
MAX_TIMED_CUTS = 40


def edge_memory(network: QuantizedGraph, cut: Cut) -> tuple[int, int]:
    """(weights, peak activations) of a head in bytes; a code takes one byte."""
    if not cut.head:
        return 0, 0
    nodes = (network.graph[IMAGE], *cut.head)
    return network.weight_bytes(cut.head), network.graph.peak_elements(nodes, cut.tensors)


def allowed_cuts(
    network: QuantizedGraph,
    cuts: Sequence[Cut],
    link: Link,
    *,
    edge_memory_bytes: int | None,
    no_raw_image: bool,
) -> list[Cut]:
    """Cuts that run in 8 bits and keep the limits, the most promising of them if they are many.

    Raises:
        NoFeasiblePlanError: If there is none.
    """
    runnable = [c for c in cuts if not any(node.name in network.refused for node in c.head)]
    if no_raw_image:
        runnable = [c for c in runnable if c.head]
    needs = {c.name: sum(edge_memory(network, c)) for c in runnable}
    limit = float("inf") if edge_memory_bytes is None else edge_memory_bytes
    fitting = [c for c in runnable if needs[c.name] <= limit]
    if not fitting:
        least = min(needs.values(), default=0)
        raise NoFeasiblePlanError(
            "no head fits into the edge's memory and pixels may not leave it: the smallest head "
            f"needs {least / 2**20:.2f} MiB; raise --edge-memory or drop --no-raw-image"
        )
    ends = [c for c in fitting if c.kind != "split"]
    splits = sorted(
        (c for c in fitting if c.kind == "split"), key=lambda c: _rough_ms(network.graph, c, link)
    )
    return ends + splits[: MAX_TIMED_CUTS - len(ends)]


def _rough_ms(graph: Graph, cut: Cut, link: Link) -> float:
    """An order for cuts before anything is timed: 0.1 MACs per ps, 2 coded bits per element."""
    macs = sum(node.macs for node in cut.tail) + sum(node.macs for node in cut.head) / 3
    elements = sum(graph[name].elements for name in cut.tensors)
    return macs / 1e8 + 2e3 * elements / link.uplink_bps


class FormatTable:
    """Measures wire formats of cuts, each tensor once.

    Args:
        network: The quantized network.
        samples: Codes of its tensors on calibration images.
        times: Latency table of the cuts.
        world: The device and link for which a codec is chosen.
    """

    def __init__(
        self,
        network: QuantizedGraph,
        samples: Samples,
        times: dict[str, CutTimes],
        world: World,
    ) -> None:
        self._network = network
        self._samples = samples
        self._times = times
        self._world = world
        self._coded: dict[tuple[str, int, CodecSpec], Coded] = {}

    def candidates(self, cut: Cut) -> list[Candidate]:
        """The wire formats of one cut."""
        if cut.kind == "edge-only":
            return [self._candidate(cut, (), None)]
        if cut.kind == "cloud-only":
            image = image_tensor(self._network.graph[IMAGE])
            return [self._candidate(cut, (image,), spec) for spec in IMAGE_CODECS]
        found = []
        for bits in WIDTHS:
            wires = tuple(self._quantizer(name, bits) for name in cut.tensors)
            options = [self._candidate(cut, wires, spec) for spec in TENSOR_CODECS]
            found.append(judge(options, self._times, self._world)[0].candidate)
        return found

    def _quantizer(self, name: str, bits: int) -> WireTensor:
        grid = self._network.grids[name]
        return wire_tensor(self._network.graph[name], grid, bits, self._samples.counts[name])

    def _candidate(
        self, cut: Cut, wires: tuple[WireTensor, ...], spec: CodecSpec | None
    ) -> Candidate:
        costs = [] if spec is None else [self._cost(wire, spec) for wire in wires]
        weight_bytes, activation_bytes = edge_memory(self._network, cut)
        return Candidate(
            cut=cut,
            wire=wires,
            codec=spec,
            payload_bytes=sum(cost.payload_bytes for cost in costs),
            encode_ms=sum(cost.encode_ms for cost in costs),
            decode_ms=sum(cost.decode_ms for cost in costs),
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
        )

    def _cost(self, wire: WireTensor, spec: CodecSpec) -> Coded:
        key = (wire.name, wire.bits, spec)
        if key not in self._coded:
            self._coded[key] = code(self._samples, wire, spec)
        return self._coded[key]
