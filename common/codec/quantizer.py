"""Wire quantizers at run time: codes to symbols on the edge, symbols to values in the cloud.

    head's uint8 codes -> WireTable.symbols -> codec ... codec -> WireTable.values -> tail

Both directions are look-ups in the tables of a `WireTensor`, so the ends agree bit for bit.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.codec.spec import WireTensor


class WireTable:
    """The look-up tables of one tensor, laid out once for speed."""

    def __init__(self, wire: WireTensor) -> None:
        self._identity = wire.to_symbol == tuple(range(256))
        self._to_symbol = bytes(wire.to_symbol)
        self._to_value = np.array(wire.to_value, np.float32)

    def symbols(self, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Symbols (C, H, W) below 2^bits of codes (C, H, W)."""
        if self._identity:
            return codes
        # bytes.translate is twice as fast as an indexed look-up in NumPy.
        table: NDArray[Any] = np.frombuffer(codes.tobytes().translate(self._to_symbol), np.uint8)
        return table.reshape(codes.shape)

    def values(self, symbols: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Values (C, H, W) float32 of symbols (C, H, W), all below 2^bits."""
        return np.take(self._to_value, symbols)
