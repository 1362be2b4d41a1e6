"""Scales of weights: symmetric, one per output channel."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from search.quantization.calibration import Distribution
from search.quantization.grids import Clipping, aciq_range

Floats = NDArray[np.float32]

_FACTORS = np.linspace(1.0, 0.3, 57)
_BINS = 512


def limits(bits: int) -> tuple[int, int]:
    """Smallest and largest integer of a weight; 8 bits keep to -127 as runtimes want it."""
    return (-127, 127) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)


def round_nearest(weight: Floats, scale: Floats, bits: int) -> NDArray[np.int8]:
    """Integers of weights (C_out, ...), saturating."""
    low, high = limits(bits)
    steps = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.asarray(np.clip(steps, low, high), np.int8)


def largest(weight: Floats, _bits: int) -> Floats:
    """The largest magnitude of each channel."""
    return np.asarray(np.abs(weight.reshape(len(weight), -1)).max(1), np.float32)


def least_error(weight: Floats, bits: int) -> Floats:
    """The clip point of least squared error of each channel, searched below the largest value."""
    flat = weight.reshape(len(weight), -1)
    most = largest(weight, bits)
    best, least = most.copy(), np.full(len(flat), np.inf)
    for factor in _FACTORS:
        clip = (most * np.float32(factor)).astype(np.float32)
        scale = scale_of(clip, bits)
        error = flat - round_nearest(flat, scale, bits) * scale[:, None]
        squared = np.square(error).sum(1)
        best = np.where(squared < least, clip, best)
        least = np.minimum(squared, least)
    return best


def aciq(weight: Floats, bits: int) -> Floats:
    """The analytic clip point of each channel, as `grids.aciq_range`."""
    return np.array([_aciq(channel, bits) for channel in weight.reshape(len(weight), -1)], "f4")


def _aciq(values: Floats, bits: int) -> float:
    most = float(np.abs(values).max())
    if values.min() == values.max():  # no spread to fit a prior to
        return most
    counts, _ = np.histogram(values, _BINS, (-most, most))
    low, high = aciq_range(Distribution(-most, most, counts.astype(np.float64)), bits)
    return max(-low, high)


def scale_of(clip: Floats, bits: int) -> Floats:
    """Scales that put the largest integer at the clip point; 1 where a channel is all zero."""
    return np.where(clip > 0, clip / limits(bits)[1], 1.0).astype(np.float32)


CLIPS: Mapping[Clipping, Callable[[Floats, int], Floats]] = MappingProxyType(
    {"minmax": largest, "percentile": largest, "mse": least_error, "aciq": aciq}
)
