"""b bits per symbol, most significant first; the last byte is filled up with zeros."""

import math

import numpy as np
from numpy.typing import NDArray

from common.codec.base import Shape, Symbols
from common.errors import PayloadError


class Packed:
    """Symbols at their nominal width."""

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """As `Codec.encode`."""
        flat = symbols.ravel()
        if bits == 8:
            return flat.tobytes()
        octets = _in_eights(flat)
        # Eight symbols of b bits are b whole bytes: shift them into one 64-bit word.
        words = np.zeros(len(octets), np.uint64)
        for column in range(8):
            words <<= np.uint64(bits)
            words |= octets[:, column]
        packed = words.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - bits :]
        return packed.tobytes()[: packed_size(flat.size, bits)]

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """As `Codec.decode`."""
        count = math.prod(shape)
        if len(data) != packed_size(count, bits):
            raise PayloadError(
                f"expected {packed_size(count, bits)} bytes of {bits}-bit symbols, "
                f"found {len(data)}"
            )
        if bits == 8:
            return np.frombuffer(data, np.uint8).reshape(shape)
        groups = -(-count // 8)
        padded = np.zeros((groups, 8), np.uint8)
        whole = np.zeros(groups * bits, np.uint8)
        whole[: len(data)] = np.frombuffer(data, np.uint8)
        padded[:, 8 - bits :] = whole.reshape(groups, bits)
        words = padded.view(">u8").astype(np.uint64).ravel()
        symbols = np.empty((groups, 8), np.uint8)
        mask = np.uint64((1 << bits) - 1)
        for column in reversed(range(8)):
            symbols[:, column] = words & mask
            words >>= np.uint64(bits)
        flat = symbols.ravel()
        if flat[count:].any():
            raise PayloadError("the bits after the last symbol are not zero")
        return flat[:count].reshape(shape)


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` symbols."""
    return -(-count * bits // 8)


def _in_eights(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    missing = -flat.size % 8
    if missing:
        flat = np.concatenate([flat, np.zeros(missing, np.uint8)])
    return flat.reshape(-1, 8)
