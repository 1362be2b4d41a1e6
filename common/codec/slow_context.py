"""Context coding without a compiler: the same bytes as `_context.c`, fifty times slower.

An edge without a built extension still works with every cloud. Encoding has all symbols, so the
activities of the whole tensor are one matrix product per neighbour; decoding gets them one by one.
"""

import numpy as np
from numpy.typing import NDArray

from common.codec.base import Shape, Symbols
from common.codec.context_model import BEFORE, NEIGHBOURS, PRECISION, ContextModel, class_of

_LEAST_RANGE = 1 << 24
_MASK = (1 << 32) - 1


def encode(
    symbols: Symbols, previous: Symbols | None, model: ContextModel, limit: int
) -> bytes | None:
    """Symbols (C, H, W) to bytes; None if they are more than `limit`."""
    classes = class_of(activities(symbols, previous, model))
    order = (1, 2, 0)
    tables = model.cumulative.astype(np.int64)
    coded, kinds = symbols.transpose(order).ravel(), classes.transpose(order).ravel()
    starts = tables[kinds, coded].tolist()
    sizes = (tables[kinds, coded + np.int64(1)] - tables[kinds, coded]).tolist()
    out = bytearray()
    low, size = 0, _MASK
    for start, part in zip(starts, sizes, strict=True):
        size >>= PRECISION
        low += size * start
        size *= part
        while size < _LEAST_RANGE:
            if low >> 32:
                _carry(out)
            out.append(low >> 24 & 255)
            low = (low << 8) & _MASK
            size <<= 8
        if len(out) > limit:
            return None
    for count in range(5):
        rest = (1 << (32 - 8 * count)) - 1
        end = (low + rest) & ~rest
        if end - low < size:
            if end >> 32:
                _carry(out)
            out += (end & _MASK).to_bytes(4, "big")[:count]
            break
    return bytes(out) if len(out) <= limit else None


def decode(data: bytes, previous: Symbols | None, model: ContextModel, shape: Shape) -> Symbols:
    """Bytes to symbols (C, H, W).

    Raises:
        ValueError: If `encode` makes no such bytes.
    """
    channels, height, width = shape
    symbols = np.zeros((height, width, channels), np.uint8)
    magnitudes = model.magnitudes.tolist()
    tables = model.cumulative.tolist()
    weights = model.weights.astype(np.int16)
    reader = _Reader(data)
    known = _from_before(previous, model, shape).astype(np.int32).astype(np.int16)
    rows = [np.tile(model.bias, (width, 1)) for _ in range(2)]
    with np.errstate(over="ignore"):
        for position in range(height * width):
            line, column = divmod(position, width)
            activity = rows[0][column]
            activity += known[:, line, column]
            kinds = class_of(activity).tolist()
            for channel in range(channels):
                symbol = reader.symbol(tables[kinds[channel]])
                magnitude = magnitudes[symbol]
                symbols[line, column, channel] = symbol
                if magnitude:
                    activity += np.int16(magnitude) * weights[0, channel]
                    kinds = class_of(activity).tolist()
            _spread(rows, column, model.magnitudes[symbols[line, column]].astype(np.int16), weights)
            if column + 1 == width:
                rows = [rows[1], np.tile(model.bias, (width, 1))]
    reader.finish()
    return np.ascontiguousarray(symbols.transpose(2, 0, 1))


def activities(
    symbols: Symbols, previous: Symbols | None, model: ContextModel
) -> NDArray[np.int16]:
    """Compute the activity of each element from its neighbours, (C, H, W), modulo 2^16.

    Single precision is exact: whole numbers, and far fewer than 2^24 even if all were the largest.
    """
    channels, height, width = symbols.shape
    seen = model.magnitudes[symbols].astype(np.float32)
    padded = np.pad(seen, ((0, 0), (1, 0), (1, 1)))
    weights = model.weights.astype(np.float32)
    total = np.zeros((channels, height * width), np.float32)
    for (down, right), tap in zip(NEIGHBOURS, weights, strict=True):
        shifted = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        total += tap.T @ shifted.reshape(channels, -1)
    total += _from_before(previous, model, symbols.shape).reshape(channels, -1)
    whole = total.astype(np.int32) + model.bias[:, None]
    return whole.astype(np.int16).reshape(symbols.shape)


def _from_before(
    previous: Symbols | None, model: ContextModel, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Compute the part of each activity (C, H, W) that the frame before contributes."""
    total = np.zeros(shape, np.float32)
    if previous is None:
        return total
    _, height, width = shape
    padded = np.pad(model.magnitudes[previous].astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    for (down, right), tap in zip(BEFORE, model.before, strict=True):
        shifted = padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        total += tap[:, None, None].astype(np.float32) * shifted
    return total


def _spread(
    rows: list[NDArray[np.int16]],
    column: int,
    seen: NDArray[np.int16],
    weights: NDArray[np.int16],
) -> None:
    """Pass the magnitudes (C,) of a position on to the positions that have it as a neighbour."""
    active = np.flatnonzero(seen)
    if not len(active):
        return
    for (down, right), tap in zip(NEIGHBOURS[1:], weights[1:], strict=True):
        target = column - right
        if 0 <= target < len(rows[0]):
            rows[-down][target] += seen[active] @ tap[active]


def _carry(out: bytearray) -> None:
    position = len(out) - 1
    while out[position] == 255:
        out[position] = 0
        position -= 1
    out[position] += 1


class _Reader:
    """The decoding half of the range coder."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = 4
        self._code = int.from_bytes(data[:4].ljust(4, b"\0"), "big")
        self._size = _MASK

    def symbol(self, table: list[int]) -> int:
        size = self._size >> PRECISION
        symbol = 0
        if self._code >= size * table[1]:
            target = self._code // size
            if target >> PRECISION:
                raise ValueError("the data are damaged")
            while table[symbol + 1] <= target:
                symbol += 1
            self._code -= size * table[symbol]
        size *= table[symbol + 1] - table[symbol]
        while size < _LEAST_RANGE:
            if self._next == len(self._data) + 4:
                raise ValueError("the data are damaged")
            more = self._data[self._next] if self._next < len(self._data) else 0
            self._code = self._code << 8 | more
            self._next += 1
            size <<= 8
        self._size = size
        return symbol

    def finish(self) -> None:
        if self._next < len(self._data):
            raise ValueError("the data are damaged")
