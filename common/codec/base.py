"""The codec: one way to turn symbols into bytes and back."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Symbols = NDArray[np.uint8]
Shape = tuple[int, int, int]


class Codec(Protocol):
    """Codes one tensor per frame.

    `symbols` are (C, H, W), each below 2^bits. `decode` trusts nothing that it reads: it needs time
    and memory bounded by `shape`, whatever `data` holds.
    """

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """Symbols to bytes."""
        ...

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Bytes to symbols.

        Raises:
            PayloadError: If `data` is not what `encode` makes of such a tensor.
        """
        ...
