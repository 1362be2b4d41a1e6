"""Reconstruction: integers of convolutions chosen by their error on calibration images.

Layer by layer in the order of execution, each on what the rounded layers before it really give:
weights of few bits are rounded together, and the mean error is taken out of every bias.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from search.network.quant_params import QuantizedConv
from search.quantization.adaround import adaround
from search.quantization.descent import coordinate_descent
from search.quantization.layers import SampledLayer, layers_of
from search.quantization.network import QuantizedGraph, Rounding, integer_bias

Progress = Callable[[int, int, str], None]

_ROUNDED_TOGETHER_BITS = 6
"""Weights of more bits are rounded to the nearest: nothing is left to gain."""

_ROUNDINGS: Mapping[Rounding, Callable[[SampledLayer, QuantizedConv], QuantizedConv]] = (
    MappingProxyType(
        {
            "nearest": lambda _layer, conv: conv,
            "adaround": adaround,
            "descent": coordinate_descent,
        }
    )
)


def reconstruct(
    network: QuantizedGraph,
    fetch: Sequence[str],
    frames: NDArray[np.uint8],
    *,
    rounding: Rounding,
    correct_bias: bool,
    progress: Progress = lambda _done, _total, _note: None,
) -> QuantizedGraph:
    """Better integers for the convolutions that make the tensors `fetch`.

    Args:
        network: Rounded to the nearest.
        fetch: The tensors of a cut.
        frames: (N, 3, H, W) calibration images.
        rounding: How weights of 6 bits and less are rounded.
        correct_bias: Whether the mean error of each channel is taken out of its bias.
        progress: Called with layers done, in all, and the name of the last one.
    """
    convs = dict(network.convs)
    improved = replace(network, convs=convs)  # later layers see what earlier ones became
    total = sum(node.op == "conv" for node in network.graph.ancestors(fetch))
    for done, layer in enumerate(layers_of(improved, fetch, frames), 1):
        name = layer.node.name
        conv = convs[name]
        if conv.bits <= _ROUNDED_TOGETHER_BITS:
            conv = _ROUNDINGS[rounding](layer, conv)
        bias = layer.corrected_bias(conv) if correct_bias else layer.bias
        source = network.grids[layer.node.inputs[0]]
        convs[name] = replace(conv, bias=integer_bias(bias.numpy(), source, conv.scale))
        progress(done, total, name)
    return improved
