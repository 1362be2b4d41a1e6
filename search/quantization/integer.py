"""The head in integers, computed in torch: the reference for every runtime.

Sums of products are computed in float64, where they are exact; requantization repeats the
runtime's float32 arithmetic (scale, round half to even, saturate). An edge must reproduce these
codes before it serves (`common.runtime.parity.check_parity`).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from numpy.typing import NDArray

from common.errors import ModelError
from search.network import execute
from search.network.graph import IMAGE, Node
from search.quantization.grids import QuantParams
from search.quantization.network import QuantizedGraph

Codes = NDArray[np.uint8]


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


def activation_table(network: QuantizedGraph, node: Node) -> Codes:
    """(256,) codes after the activation, indexed by the code before it."""
    if node.activation is None:
        raise ModelError(f"{node.name}: no activation")
    linear = network.before[node.name].dequantize(np.arange(256, dtype=np.uint8))
    values = execute.activate(node.activation, torch.from_numpy(linear)).numpy()
    return network.grids[node.name].quantize(values)


def apply(network: QuantizedGraph, node: Node, inputs: list[Codes]) -> Codes:
    """Codes (N, C, H, W) that one node makes of the codes it reads."""
    if node.op == "conv":
        return _conv(network, node, inputs[0])
    grid = network.grids[node.name]
    if node.op in ("max_pool", "upsample", "slice"):
        moved = execute.apply(node, [torch.from_numpy(inputs[0]).float()])
        return moved.numpy().astype(np.uint8)
    grids = [network.grids[name] for name in node.inputs]
    if node.op == "add":
        return _add(inputs, grids, grid)
    if node.op == "concat" and all(g == grid for g in grids):
        return np.concatenate(inputs, 1)
    values = [torch.from_numpy(g.dequantize(q)) for g, q in zip(grids, inputs, strict=True)]
    return grid.quantize(execute.apply(node, values).numpy())


def _conv(network: QuantizedGraph, node: Node, codes: Codes) -> Codes:
    conv = network.convs[node.name]
    source = network.grids[node.inputs[0]]
    target = network.before.get(node.name, network.grids[node.name])
    sums = F.conv2d(
        torch.from_numpy(codes.astype(np.float64) - source.zero_point),
        torch.from_numpy(conv.weight.astype(np.float64)),
        torch.from_numpy(conv.bias.astype(np.float64)),
        node.attributes["stride"],
        node.attributes["pads"][:2],
        1,
        node.attributes["groups"],
    ).numpy()
    linear = _requantize(sums, source, conv.scale, target)
    if node.name in network.before:
        return activation_table(network, node)[linear]
    return linear


def _add(inputs: list[Codes], sources: list[QuantParams], target: QuantParams) -> Codes:
    """Add codes in units of the target's step, as the runtime's kernel does."""
    ratios = [np.float32(source.scale) / np.float32(target.scale) for source in sources]
    offset = np.float32(target.zero_point) - sum(
        np.float32(source.zero_point) * ratio for source, ratio in zip(sources, ratios, strict=True)
    )
    left, right = (q.astype(np.float32) * r for q, r in zip(inputs, ratios, strict=True))
    return np.asarray(np.clip(np.rint(left + (right + offset)), 0, target.top), np.uint8)


def _requantize(
    sums: NDArray[np.float64],
    source: QuantParams,
    weight_scale: NDArray[np.float32],
    target: QuantParams,
) -> Codes:
    multiplier = np.float32(source.scale) * weight_scale / np.float32(target.scale)
    scaled = sums.astype(np.float32) * multiplier[None, :, None, None]
    low, high = -target.zero_point, target.top - target.zero_point
    return np.asarray(np.rint(np.clip(scaled, low, high)) + target.zero_point, np.uint8)
