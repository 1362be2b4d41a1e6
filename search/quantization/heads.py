"""Heads: the integer networks that they are prefixes of.

All heads are prefixes of one network of 8 bits, but where memory is short: a cut whose weights do
not fit at 8 bits gets a network of its own, the same but for the integers of some convolutions. The
grids of its tensors are those of the others, so their samples and wire formats hold for it, too.
"""

from dataclasses import replace

from search.cache import digest
from search.network.cuts import Cut, peak_bytes
from search.quantization.network import QuantizedGraph


class Heads:
    """Networks by the widths of a cut's head.

    Args:
        network: The one of 8 bits.
    """

    def __init__(self, network: QuantizedGraph) -> None:
        self.network = network
        self._narrow: dict[tuple[str, str], QuantizedGraph] = {}
        self._digests: dict[QuantizedGraph, str] = {}

    def of(self, cut: Cut) -> QuantizedGraph:
        """The network that a cut's head is a prefix of."""
        return self._narrow[cut.name, cut.widths] if cut.widths else self.network

    def narrowed(self, cut: Cut, network: QuantizedGraph, name: str = "") -> Cut:
        """Register a network for a cut's head; return the cut with the name of its widths.

        Args:
            cut: Where the network is divided.
            network: The network.
            name: Of its widths; without, the mean width of the head's weights names them.
        """
        named = replace(cut, widths=name or _mean_width(cut, network))
        self._narrow[named.name, named.widths] = network
        return named

    def fresh_name(self, cut: Cut, network: QuantizedGraph) -> str:
        """Mean width of a cut's weights, with a "+" for each network that has the name already."""
        name = _mean_width(cut, network)
        while (cut.name, name) in self._narrow:
            name += "+"
        return name

    def digest(self, cut: Cut) -> str:
        """Digest of a cut's head: grids and integer weights of its network, and its tensors."""
        network = self.of(cut)
        if network not in self._digests:
            self._digests[network] = digest(network.grids, network.before, network.convs)
        return digest(self._digests[network], cut.codes)

    def memory_bytes(self, cut: Cut) -> tuple[int, int]:
        """(weights as stored, peak activations) of what an edge runs, in bytes."""
        if not cut.head:
            return 0, 0
        network = self.of(cut)
        floats = sum(4 * node.parameters for node in cut.rest)
        return network.weight_bytes(cut.head) + floats, peak_bytes(network.graph, cut)


def _mean_width(cut: Cut, network: QuantizedGraph) -> str:
    convs = [network.convs[node.name] for node in cut.head if node.name in network.convs]
    elements = sum(conv.weight.size for conv in convs)
    return f"W{sum(conv.weight.size * conv.bits for conv in convs) / elements:.2f}"
