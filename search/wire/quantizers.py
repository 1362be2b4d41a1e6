"""Wire formats: how the codes of a cut tensor become fewer, smaller symbols.

A tensor leaves the head as 8-bit codes. At b bits, a uniform quantizer with 2^b levels is laid over
the codes between two clip points; the clip points are those of least squared error on calibration
images, and each symbol is reconstructed at the mean of the values that fall into it (the centroid
condition of Lloyd and Max). At 8 bits the symbols are the codes themselves.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.codec.registry import KINDS
from common.codec.spec import LOSSLESS_UPLOADS, USUAL_UPLOAD, CodecSpec, WireTensor
from search.network.graph import Node
from search.network.quant_params import QuantParams

WIDTHS = (2, 3, 4, 6, 8)
LOSSLESS = WIDTHS[-1:]
"""The width that keeps every code of a head."""
IMAGE_CODECS = (*LOSSLESS_UPLOADS, USUAL_UPLOAD)
LOSSY_IMAGE_CODECS = tuple(kind.name for kind in KINDS.values() if kind.has_quality)
QUALITIES = tuple(range(10, 100, 5))
"""Qualities of the lossy image codecs, searched for the lowest that is accurate enough."""

_CODES = np.arange(256)
_MOST_LEVELS = 100
_RARE = 2e-3


def wire_tensor(node: Node, grid: QuantParams, bits: int, counts: NDArray[np.int64]) -> WireTensor:
    """The best uniform quantizer of one tensor at one width.

    Args:
        node: The node that makes the tensor.
        grid: The grid of its codes.
        bits: Width of a symbol, 1 to 8.
        counts: (256,) how often each code occurs on calibration images.
    """
    values = grid.dequantize(_CODES.astype(np.uint8)).astype(np.float64)
    if bits == 8:
        return _table(node, bits, _CODES, values)
    used = np.flatnonzero(counts)
    lowest, highest = int(used[0]), int(used[-1])
    best: tuple[float, NDArray[np.int64], NDArray[np.float64]] | None = None
    for low in _candidates(lowest, grid.zero_point):
        for high in _candidates(highest, grid.zero_point):
            if high <= low:
                continue
            symbols = _uniform(low, high, bits)
            centroids = _centroids(symbols, values, counts, bits)
            error = float(np.dot(counts, (centroids[symbols] - values) ** 2))
            if best is None or error < best[0]:
                best = error, symbols, centroids
    if best is None:  # a tensor of one single code
        symbols = np.zeros(256, np.int64)
        return _table(node, bits, symbols, _centroids(symbols, values, counts, bits))
    return _table(node, bits, best[1], best[2])


def stepped_tensor(
    node: Node,
    grid: QuantParams,
    counts: NDArray[np.int64],
    *,
    dead_zone: float,
    step: float,
    clip: float,
) -> WireTensor:
    """A quantizer of any step: zero, then steps outwards from a dead zone, up to a clip point.

    Args:
        node: The node that makes the tensor.
        grid: The grid of its codes.
        counts: (256,) how often each code occurs on calibration images.
        dead_zone: Values below it in magnitude are zero.
        step: Width of every other level.
        clip: Magnitudes above it fall into the last level.
    """
    values = grid.dequantize(_CODES.astype(np.uint8)).astype(np.float64)
    reach = np.minimum(np.abs(values), clip)
    levels = np.where(reach < dead_zone, 0, 1 + np.floor((reach - dead_zone) / step))
    signed = (np.sign(values) * np.minimum(levels, _MOST_LEVELS)).astype(np.int64)
    lowest = int(signed.min())
    if counts[signed < 0].sum() < _RARE * counts.sum():
        lowest = 0  # behind a (leaky) ReLU: what is left below zero is not worth a symbol
    # Steps finer than the codes skip levels: only those that a code reaches are numbered.
    symbols = np.unique(np.maximum(signed, lowest), return_inverse=True)[1].astype(np.int64)
    bits = max(1, int(symbols.max()).bit_length())
    return _table(node, bits, symbols, _centroids(symbols, values, counts, bits))


def tensor_codecs(wire: Sequence[WireTensor]) -> list[CodecSpec]:
    """Codecs to measure on cut tensors; none exceeds packing by more than a few bytes."""
    narrowest = min((tensor.bits for tensor in wire), default=8)
    return [
        CodecSpec(name=kind.name)
        for kind in KINDS.values()
        if kind.codes == "symbols" and not kind.has_model and narrowest >= kind.least_bits
    ]


def code_tensor(node: Node, grid: QuantParams) -> WireTensor:
    """Identity wire format: symbols are the codes of the head, without further loss."""
    symbols = np.minimum(_CODES, grid.top)
    values = grid.dequantize(np.arange(grid.top + 1).astype(np.uint8)).astype(np.float64)
    return _table(node, grid.bits, symbols, values)


def image_tensor(node: Node) -> WireTensor:
    """Wire format of the image: symbols are pixels, the tail gets pixel / 255."""
    return _table(node, 8, _CODES, _CODES / 255)


def _candidates(end: int, zero: int) -> list[int]:
    """Clip points between an end of the range and zero, 24 at the most."""
    points = np.rint(np.linspace(end, zero + (end - zero) * 0.1, 24)).astype(int)
    return sorted(set(points.tolist()))


def _uniform(low: int, high: int, bits: int) -> NDArray[np.int64]:
    step = (high - low) / ((1 << bits) - 1)
    return np.clip(np.rint((_CODES - low) / step), 0, (1 << bits) - 1).astype(np.int64)


def _centroids(
    symbols: NDArray[np.int64], values: NDArray[np.float64], counts: NDArray[np.int64], bits: int
) -> NDArray[np.float64]:
    levels = 1 << bits
    mass = np.bincount(symbols, counts, levels)
    sums = np.bincount(symbols, counts * values, levels)
    plain_mass = np.bincount(symbols, minlength=levels)
    plain = np.bincount(symbols, values, levels) / np.maximum(plain_mass, 1)
    return np.where(mass > 0, sums / np.maximum(mass, 1), plain)


def _table(
    node: Node, bits: int, symbols: NDArray[np.int64], values: NDArray[np.float64]
) -> WireTensor:
    return WireTensor(
        name=node.name,
        shape=node.map_shape,
        bits=bits,
        to_symbol=tuple(int(s) for s in symbols),
        to_value=tuple(float(np.float32(v)) for v in values),
    )
