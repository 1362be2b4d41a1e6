"""Wire formats of cuts: every cut that the limits allow, with every format worth having.

Per tensor and width one quantizer; per cut and width the codec that is fastest on the device and
link at hand; for the cut at the input the image codecs, because they differ in accuracy.
"""

import copy
from collections.abc import Callable, Sequence

from common.codec import make_codec
from common.codec.spec import USUAL_UPLOAD, CodecSpec, WireTensor
from common.link.link import Link, transfer_ms
from search.network.cuts import Cut
from search.network.graph import IMAGE, Graph
from search.prediction.candidates import Candidate, CostModel, rank_candidates
from search.prediction.cut_times import CutTimes
from search.quantization.heads import Heads
from search.wire.quantizers import (
    IMAGE_CODECS,
    WIDTHS,
    code_tensor,
    image_tensor,
    tensor_codecs,
    wire_tensor,
)
from search.wire.sampling import Coded, Samples, code

MAX_TIMED_CUTS = 40
"""Cuts that are timed; of more, those with the best rough estimate."""
_FEWEST_TIMED = 12
_TIMED_MACS = 4e11
"""Multiplications of all cuts that are timed: a network of 33 GMACs has twelve of them."""


def most_timed(graph: Graph) -> int:
    """Number of cuts of a network that are timed at the most; fewer of a large one."""
    macs = max(sum(node.macs for node in graph.nodes), 1)
    return max(_FEWEST_TIMED, min(MAX_TIMED_CUTS, int(_TIMED_MACS / macs)))


def promising_cuts(graph: Graph, cuts: Sequence[Cut], link: Link) -> list[Cut]:
    """All cuts, or the most promising of them if they are too many to be timed."""
    ends = [cut for cut in cuts if cut.kind != "split"]
    splits = [cut for cut in cuts if cut.kind == "split"]
    splits.sort(key=lambda cut: _rough_ms(graph, cut, link))
    return ends + splits[: most_timed(graph) - len(ends)]


def runnable_cuts(heads: Heads, cuts: Sequence[Cut]) -> list[Cut]:
    """Cuts whose heads have an integer form."""
    refused = heads.network.refused
    return [cut for cut in cuts if not any(node.name in refused for node in cut.head)]


def _rough_ms(graph: Graph, cut: Cut, link: Link) -> float:
    """Rough latency to order cuts by before they are timed: 0.1 MACs per ps, 2 bits per element."""
    macs = sum(node.macs for node in cut.tail) + sum(node.macs for node in cut.head) / 3
    elements = sum(graph[name].elements for name in cut.tensors)
    return macs / 1e8 + 2e3 * elements / link.uplink_bps


class FormatTable:
    """Measures wire formats of cuts, each tensor once.

    Args:
        heads: The integer networks.
        samples: Codes of its tensors on calibration images.
        times: Latency table of the cuts.
        cost_model: The device and link for which a codec is chosen.
        is_affordable: Whether a candidate keeps the limits that need no accuracy: a codec is
            chosen among those that do, if there are any.
        widths: Bits of the symbols of tensors that travel.
    """

    def __init__(
        self,
        heads: Heads,
        samples: Samples,
        times: dict[str, CutTimes],
        cost_model: CostModel,
        is_affordable: Callable[[Candidate], bool] = lambda _candidate: True,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        self._heads = heads
        self._network = heads.network
        self.samples = samples
        self._times = times
        self._cost_model = cost_model
        self._is_affordable = is_affordable
        self._widths = widths
        self._coded: dict[tuple[WireTensor, CodecSpec], Coded] = {}

    def at(self, cost_model: CostModel) -> "FormatTable":
        """Copy of this table for another device and link; it shares the tensors coded so far."""
        other = copy.copy(self)
        other._cost_model = cost_model
        return other

    def candidates(self, cut: Cut) -> list[Candidate]:
        """The wire formats of one cut."""
        if cut.kind == "edge-only":
            return [self._candidate(cut, (), None)]
        if cut.kind == "cloud-only":
            return [self.upload(cut, spec) for spec in IMAGE_CODECS]
        found = []
        for bits in self._widths:
            wires = tuple(self._quantizer(name, bits) for name in cut.tensors)
            options = [self._candidate(cut, wires, spec) for spec in tensor_codecs(wires)]
            fastest = [j.candidate for j in rank_candidates(options, self._times, self._cost_model)]
            found.append(next(filter(self._is_affordable, fastest), fastest[0]))
        return found

    def packed(self, cut: Cut) -> Candidate:
        """Candidate that sends the codes of the cut's head packed at b bits each, uncoded."""
        if not cut.tail:
            return self._candidate(cut, (), None)
        network = self._heads.of(cut)
        wires = tuple(code_tensor(network.graph[n], network.grids[n]) for n in cut.tensors)
        return self._candidate(cut, wires, CodecSpec(name="packed"))

    def sending_ms(self, name: str) -> float:
        """Time to code and send one tensor at 8 bits, or the image as the usual upload."""
        if name == IMAGE:
            wire, specs = image_tensor(self._network.graph[IMAGE]), [USUAL_UPLOAD]
        else:
            wire = self._quantizer(name, 8)
            specs = tensor_codecs([wire])
        edge, cloud, bps = (
            self._cost_model.edge,
            self._cost_model.cloud,
            self._cost_model.link.uplink_bps,
        )
        return min(
            cost.encode_ms * edge.coding_slowdown(spec.name)
            + transfer_ms(cost.payload_bytes, bps)
            + cost.decode_ms * cloud.coding_slowdown(spec.name)
            for spec in specs
            for cost in [self._cost(wire, spec)]
        )

    def upload(self, cloud_only: Cut, spec: CodecSpec) -> Candidate:
        """Candidate that uploads the image with an image codec."""
        image = image_tensor(self._network.graph[IMAGE])
        return self._candidate(cloud_only, (image,), spec)

    def _quantizer(self, name: str, bits: int) -> WireTensor:
        grid = self._network.grids[name]
        return wire_tensor(self._network.graph[name], grid, bits, self.samples.counts[name])

    def _candidate(
        self, cut: Cut, wires: tuple[WireTensor, ...], spec: CodecSpec | None
    ) -> Candidate:
        costs = [] if spec is None else [self._cost(wire, spec) for wire in wires]
        weight_bytes, activation_bytes = self._heads.memory_bytes(cut)
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
        key = (wire, spec)
        if key not in self._coded:
            self._coded[key] = code(self.samples.codes[wire.name], wire, make_codec(spec))
        return self._coded[key]
