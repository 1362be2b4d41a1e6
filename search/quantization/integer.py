"""The head in integers, computed in torch: the reference for every runtime.

Each operator repeats the arithmetic of the runtime's integer kernel. An edge must reproduce these
codes before it serves (`common.runtime.parity.check_parity`).
"""

from collections.abc import Sequence

from common.errors import ModelError
from search.network.graph import IMAGE, Node
from search.network.operators.registry import operator_of
from search.network.quant_params import Codes
from search.quantization.network import QuantizedGraph


def run(network: QuantizedGraph, image: Codes, fetch: Sequence[str]) -> list[Codes]:
    """Compute the codes of the tensors `fetch`.

    Args:
        network: The quantized network.
        image: (N, 3, H, W) pixels.
        fetch: Names of tensors.

    Raises:
        ModelError: If a node on the way has no integer form.
    """
    codes: dict[str, Codes] = {IMAGE: image}
    for node in network.graph.ancestors(fetch):
        if node.name in network.refused:
            raise ModelError(network.refused[node.name])
        if node.op != "input":
            codes[node.name] = apply(network, node, [codes[name] for name in node.inputs])
    return [codes[name] for name in fetch]


def apply(network: QuantizedGraph, node: Node, inputs: Sequence[Codes]) -> Codes:
    """Codes (N, C, H, W) that one node makes of the codes it reads."""
    return operator_of(node).run_codes(network, node, inputs)
