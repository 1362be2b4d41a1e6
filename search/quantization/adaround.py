"""AdaRound: whether each weight goes up or down, learnt for a layer at a time.

Nagel et al., "Up or down? Adaptive rounding for post-training quantization", ICML 2020. Every
weight may be rounded up or down; h in [0, 1] says how far, a rectified sigmoid of a free variable
(equation 23). Minimised is the squared error of the layer's output behind its activation, its input
being that of the rounded network (equation 25), plus a term that pushes h to 0 or 1 with an
annealed exponent (equation 24).

Different from the paper: the squared error is in units of that of rounding to the nearest, so that
one weight of the second term suits all layers; biases are corrected; and the result is kept only if
it is better than rounding to the nearest on patches that were left out.
"""

from dataclasses import replace

import numpy as np
import torch

from search.network.quant_params import QuantizedConv
from search.quantization.layers import SampledLayer
from search.quantization.weights import limits

_HELD_OUT = 512
_BATCH = 256
_STEPS = 1000
_LEARNING_RATE = 3e-2
_REGULAR = 30.0
_WARM_UP = 0.2
_BETA = 20.0, 2.0
_GAMMA, _ZETA = -0.1, 1.1


def adaround(layer: SampledLayer, conv: QuantizedConv, steps: int = _STEPS) -> QuantizedConv:
    """Round the weights of a layer again, on the same scales.

    Args:
        layer: The layer on calibration images.
        conv: Rounded to the nearest.
        steps: Of Adam, on 256 positions each.
    """
    weight, scale = (
        torch.from_numpy(layer.weight),
        torch.from_numpy(conv.scale)[:, None, None, None],
    )
    low, high = limits(conv.bits)
    nearest = torch.from_numpy(conv.real)
    held_out, rest = slice(0, _HELD_OUT), slice(_HELD_OUT, None)
    unit = layer.error(nearest, rest).clamp(min=1e-12)

    floor = torch.floor(weight / scale)
    part = (weight / scale - floor).clamp(0.01, 0.99)
    free = torch.logit((part - _GAMMA) / (_ZETA - _GAMMA)).requires_grad_()
    optimizer = torch.optim.Adam([free], lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        batch = torch.randint(_HELD_OUT, len(layer.target), (_BATCH,), generator=generator)
        share = (torch.sigmoid(free) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
        rounded = (floor + share).clamp(low, high) * scale
        objective = layer.error(rounded, batch) / unit
        if step >= _WARM_UP * steps:
            left = (1 - step / steps) / (1 - _WARM_UP)
            beta = _BETA[1] + (_BETA[0] - _BETA[1]) * left
            objective = objective + _REGULAR * torch.mean(1 - (2 * share - 1).abs() ** beta)
        optimizer.zero_grad()
        torch.autograd.backward(objective)
        optimizer.step()
    with torch.no_grad():
        integers = (floor + (free > 0)).clamp(low, high)
        better = layer.error(integers * scale, held_out) < layer.error(nearest, held_out)
    if not better:
        return conv
    return replace(conv, weight=integers.numpy().astype(np.int8))
