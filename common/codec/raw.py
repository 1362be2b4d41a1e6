"""One byte per symbol."""

import math

import numpy as np

from common.codec.base import Shape, Symbols
from common.errors import PayloadError


class Raw:
    """Symbols as they are."""

    def size(self, count: int, bits: int) -> int:  # noqa: ARG002 - a byte, whatever its bits
        """Bytes of `count` symbols."""
        return count

    def encode(self, symbols: Symbols, bits: int) -> bytes:  # noqa: ARG002 - the interface's
        """Write one byte per symbol; see `Codec.encode`."""
        return symbols.tobytes()

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Read one byte per symbol; see `Codec.decode`."""
        if len(data) != math.prod(shape):
            raise PayloadError(f"expected {math.prod(shape)} symbols, found {len(data)} bytes")
        return below(np.frombuffer(data, np.uint8).reshape(shape), bits)


def below(symbols: Symbols, bits: int) -> Symbols:
    """Return the symbols after checking that they are below 2^bits.

    Raises:
        PayloadError: If one is not.
    """
    if bits < 8 and symbols.max(initial=0) >> bits:
        raise PayloadError(f"a symbol of {symbols.max()} does not fit into {bits} bits")
    return symbols
