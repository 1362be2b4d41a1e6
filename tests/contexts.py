"""Context models for tests: made of noise, but shaped like fitted ones.

The noise is SHAKE-256 of the seed and everything after it whole numbers, so that golden vectors
stay what they are whatever NumPy does.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from common.codec.base import Shape, Symbols
from common.codec.context_model import BEFORE, CLASSES, NEIGHBOURS, PRECISION, ContextModel


def random_model(
    channels: int, levels: int, seed: int = 0, *, looks_back: bool = False
) -> ContextModel:
    """A model whose activities spread over all classes, and whose tables are skewed to zero."""
    weights = _noise((len(NEIGHBOURS), channels, channels), f"weights {seed}") // 5 - 25
    weights[0] = np.triu(weights[0], 1)
    shares = _noise((CLASSES, levels), f"tables {seed}") ** 3 + 1000
    shares[:, 0] += 12 * shares[:, 1:].sum(1)
    frequencies = 1 + shares * ((1 << PRECISION) - levels) // shares.sum(1, keepdims=True)
    frequencies[:, 0] += (1 << PRECISION) - frequencies.sum(1)
    cumulative = np.zeros((CLASSES, levels + 1), np.uint16)
    cumulative[:, 1:] = np.cumsum(frequencies, 1)
    return ContextModel(
        weights.astype(np.int8),
        (_noise((len(BEFORE) if looks_back else 0, channels), f"before {seed}") // 4 - 8).astype(
            np.int8
        ),
        (_noise((channels,), f"bias {seed}") - 200).astype(np.int16),
        np.minimum(np.arange(levels), 3).astype(np.uint8),
        cumulative,
    )


def sparse_symbols(shape: Shape, levels: int, seed: int = 0) -> Symbols:
    """Mostly zero, few large."""
    return (_noise(shape, f"symbols {seed}") ** 6 * levels >> 48).astype(np.uint8)


def _noise(shape: tuple[int, ...], name: str) -> NDArray[np.int64]:
    """0 to 255, all as likely."""
    data = hashlib.shake_256(name.encode()).digest(math.prod(shape))
    return np.frombuffer(data, np.uint8).reshape(shape).astype(np.int64)
