"""Symbols of b bits in b bits each, most significant bit first, without gaps.

Packing works on groups: the fewest symbols that fill whole bytes, so 2 symbols of 4 bits in 1 byte,
or 8 symbols of 3 bits in 3 bytes.

    symbols   aaa bbb ccc ddd eee fff ggg hhh
    bytes     aaabbbcc    cdddeeef    ffggghhh

Each pair of a symbol and a byte that share bits is one shift over a whole column of groups, so the
cost is a few vector operations, whatever the width. Bits that pad the last byte are zero.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from common.codec.base import Shape, Symbols
from common.errors import PayloadError


class Packed:
    """Symbols at their nominal width, in the order C, H, W."""

    def size(self, count: int, bits: int) -> int:
        """Bytes of `count` symbols."""
        return -(-count * bits // 8)

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """Pack symbols into `bits` bits each; see `Codec.encode`."""
        if bits == 8:
            return symbols.tobytes()
        group = _group(bits)
        rows = _in_rows(symbols.reshape(-1), group.symbols)
        packed = np.empty((len(rows), len(group.by_byte)), np.uint8)
        for byte, parts in enumerate(group.by_byte):
            packed[:, byte] = _merged(rows, parts)
        return packed.tobytes()[: self.size(symbols.size, bits)]

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Unpack symbols of `bits` bits each; see `Codec.decode`."""
        count = math.prod(shape)
        if len(data) != self.size(count, bits):
            raise PayloadError(
                f"expected {self.size(count, bits)} bytes of {bits}-bit symbols, found {len(data)}"
            )
        if data[-1] & ((1 << (len(data) * 8 - count * bits)) - 1):
            raise PayloadError("the bits after the last symbol are not zero")
        flat = np.frombuffer(data, np.uint8)
        if bits == 8:
            return flat.reshape(shape)
        group = _group(bits)
        rows = _in_rows(flat, len(group.by_byte))
        symbols = np.empty((len(rows), group.symbols), np.uint8)
        mask = np.uint8((1 << bits) - 1)
        for symbol, parts in enumerate(group.by_symbol):
            np.bitwise_and(_merged(rows, parts), mask, out=symbols[:, symbol])
        return symbols.reshape(-1)[:count].reshape(shape)


class _Part(NamedTuple):
    """One source column of a merge, to be shifted left (right where negative) by `left` bits."""

    column: int
    left: int


class _SymbolGroup(NamedTuple):
    """The fewest symbols that fill whole bytes: what each byte, and each symbol, is merged from."""

    symbols: int
    by_byte: tuple[tuple[_Part, ...], ...]
    by_symbol: tuple[tuple[_Part, ...], ...]


@cache
def _group(bits: int) -> _SymbolGroup:
    symbols = 8 // math.gcd(8, bits)
    left = {  # of a symbol that shares bits with a byte
        (symbol, byte): shift
        for symbol in range(symbols)
        for byte in range(bits * symbols // 8)
        if -bits < (shift := 8 * (byte + 1) - bits * (symbol + 1)) < 8
    }
    by_byte = (
        tuple(_Part(symbol, shift) for (symbol, of), shift in left.items() if of == byte)
        for byte in range(bits * symbols // 8)
    )
    by_symbol = (
        tuple(_Part(byte, -shift) for (of, byte), shift in left.items() if of == symbol)
        for symbol in range(symbols)
    )
    return _SymbolGroup(symbols, tuple(by_byte), tuple(by_symbol))


def _merged(rows: Symbols, parts: tuple[_Part, ...]) -> Symbols:
    merged: Symbols | None = None
    for column, left in parts:
        source = rows[:, column]
        shifted = source << np.uint8(left) if left >= 0 else source >> np.uint8(-left)
        merged = shifted if merged is None else np.bitwise_or(merged, shifted, out=merged)
    assert merged is not None  # noqa: S101 - every byte and every symbol has a part
    return merged


def _in_rows(flat: Symbols, width: int) -> Symbols:
    """(n,) as (ceil(n / width), width), filled up with zeros."""
    missing = -len(flat) % width
    return (np.pad(flat, (0, missing)) if missing else flat).reshape(-1, width)
