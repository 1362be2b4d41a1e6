"""Grids: where the codes of a tensor lie on the axis of its values.

Unsigned, uniform, and zero is always a point, so that padding and what a ReLU cuts off are exact.
The range of a grid trades rounding errors (a wide range has wide steps) for clipping errors; the
functions here choose it from a histogram, by the methods of the literature.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from search.network.activations import IDENTITY, Activation
from search.network.quant_params import QuantParams
from search.quantization.calibration import Distribution

Range = tuple[float, float]
Clipping = Literal["minmax", "percentile", "mse", "aciq"]
RangeChooser = Callable[[Distribution, int], Range]

_PERCENTILE = 99.99


def whole_range(distribution: Distribution, _bits: int) -> Range:
    """Smallest and largest value observed."""
    return distribution.low, distribution.high


def percentile_range(distribution: Distribution, _bits: int) -> Range:
    """Range that clips one value in 10,000, half of them at each end."""
    total = np.cumsum(distribution.counts) / distribution.counts.sum()
    cut = (1 - _PERCENTILE / 100) / 2
    low = distribution.centres[int(np.searchsorted(total, cut))]
    high = distribution.centres[min(int(np.searchsorted(total, 1 - cut)), len(total) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def least_error_range(
    distribution: Distribution, bits: int, behind: Activation = IDENTITY
) -> Range:
    """The range of least squared error on the histogram.

    Both ends are searched, each from the range seen down to a small part of it: the fewer bits, the
    smaller.

    Args:
        distribution: Of the values.
        bits: Of the grid.
        behind: Function of the values whose error counts; much of a SiLU's argument lies where it
            is next to zero, and needs no points of the grid.
    """
    values, counts = distribution.centres.astype(np.float32), distribution.counts
    exact = _applied(behind, values)
    least = 0.3 if bits >= 8 and behind == IDENTITY else 0.04
    best, least_squared = (distribution.low, distribution.high), np.inf
    lows = distribution.low * np.linspace(1.0, least, 17) if distribution.low < 0 else [0.0]
    highs = distribution.high * np.linspace(1.0, least, 33) if distribution.high > 0 else [0.0]
    for low in lows:
        for high in highs:
            grid = QuantParams.over(float(low), float(high), bits)
            error = _applied(behind, grid.dequantize(grid.quantize(values))) - exact
            squared = float(np.dot(counts, error * error))
            if squared < least_squared:
                best, least_squared = (float(low), float(high)), squared
    return best


def _applied(function: Activation, values: NDArray[np.float32]) -> NDArray[np.float32]:
    if function == IDENTITY:
        return values
    return np.asarray(function.run(torch.from_numpy(values)).numpy(), np.float32)


def aciq_range(distribution: Distribution, bits: int) -> Range:
    """The analytic optimum under a Laplace or a Gaussian prior, whichever fits better.

    Banner et al., "Post training 4-bit quantization of convolutional networks", NeurIPS 2019,
    equations 5 and 6: with b the mean absolute and sigma the standard deviation, the clip point
    alpha around the mean minimises

        Laplace    2 b^2 exp(-alpha / b) + alpha^2 / (3 * 4^bits)
        Gaussian   (sigma^2 + alpha^2) erfc(alpha / (sqrt(2) sigma))
                   - alpha sigma sqrt(2 / pi) exp(-alpha^2 / (2 sigma^2)) + alpha^2 / (3 * 4^bits)

    Behind a ReLU only the positive half is left: the step, over half the range, is half as wide,
    and its noise a quarter. Of values in one single bin the whole range is kept.
    """
    if np.count_nonzero(distribution.counts) < 2:
        return distribution.low, distribution.high
    centres, counts = distribution.centres, distribution.counts
    one_sided = distribution.low >= 0
    if one_sided:  # the folded half, mirrored
        centres, counts = np.concatenate([-centres, centres]), np.concatenate([counts, counts])
    share = counts / counts.sum()
    mean = float(np.dot(share, centres))
    b = float(np.dot(share, np.abs(centres - mean)))
    sigma = math.sqrt(float(np.dot(share, (centres - mean) ** 2)))
    # Log-likelihood per sample of each prior at its maximum.
    laplace = -math.log(2 * b * math.e) > -math.log(sigma * math.sqrt(2 * math.pi * math.e))
    alpha = _optimal_clip(b if laplace else sigma, bits, laplace=laplace, one_sided=one_sided)
    low = 0.0 if one_sided else max(distribution.low, mean - alpha)
    return low, min(distribution.high, mean + alpha)


def _optimal_clip(spread: float, bits: int, *, laplace: bool, one_sided: bool) -> float:
    rounding = (1 / 12 if one_sided else 1 / 3) / 4.0**bits

    def noise(alpha: float) -> float:  # clip point and noise in units of the spread
        if laplace:
            lost = 2 * math.exp(-alpha)
        else:
            lost = (1 + alpha**2) * math.erfc(alpha / math.sqrt(2))
            lost -= alpha * math.sqrt(2 / math.pi) * math.exp(-(alpha**2) / 2)
        return float(lost + rounding * alpha**2)

    found = minimize_scalar(noise, bounds=(0.1, 30.0), method="bounded")
    return spread * float(found.x)


RANGES: Mapping[Clipping, RangeChooser] = MappingProxyType(
    {
        "minmax": whole_range,
        "percentile": percentile_range,
        "mse": least_error_range,
        "aciq": aciq_range,
    }
)
