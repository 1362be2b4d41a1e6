"""Symbols behind Zstandard (RFC 8878): the general-purpose codecs for cut tensors.

    byte 0      0: packed symbols follow; 1: one Zstandard frame follows
    bytes 1...

What is in the frame is the codec's choice: Zstandard models bytes, so packed symbols suit it where
a byte holds whole neighbours (1, 2, 4 bits), one symbol per byte where symbols would straddle bytes
(5 to 7 bits). The search measures both. The encoder takes the frame only if it is smaller than
packed symbols, so these codecs cost at most one byte more than packing alone. The decoder reads the
frame's header before the frame: the content must have exactly the size that the plan implies and
the window must not be larger, so that a frame cannot ask for more memory than its symbols take.
"""

import math
import threading

import zstandard

from common.codec.base import Shape, Symbols
from common.codec.packed import Packed
from common.codec.raw import Raw
from common.errors import PayloadError

# Levels -1 to 3 on activations of YOLOv3-tiny, 1 to 8 bits: 1 is the smallest or within 4 % of it,
# and the fastest but -1, which takes a quarter to a half more bytes.
LEVEL = 1

_PACKED, _ZSTD = b"\x00", b"\x01"


class Zstd:
    """Never more than one byte larger than packed symbols.

    Args:
        content: What makes the bytes in a frame.
    """

    def __init__(self, content: Packed | Raw) -> None:
        self._content = content
        self._packed = Packed()
        self._contexts = _Contexts()

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """Compress symbols, or pack them where that is no larger; see `Codec.encode`."""
        frame = self._contexts.compressor.compress(self._content.encode(symbols, bits))
        if len(frame) < self._packed.size(symbols.size, bits):
            return _ZSTD + frame
        return _PACKED + self._packed.encode(symbols, bits)

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Decode compressed or packed symbols, by the first byte; see `Codec.decode`."""
        mode, body = data[:1], data[1:]
        if mode == _PACKED:
            return self._packed.decode(body, shape, bits)
        if mode != _ZSTD:
            raise PayloadError(f"expected mode 0 or 1, found {mode.hex() or 'no bytes'}")
        longest = self._packed.size(math.prod(shape), bits) - 1
        if len(body) > longest:
            raise PayloadError(f"expected a frame of at most {longest} bytes, found {len(body)}")
        content = self._inflated(body, self._content.size(math.prod(shape), bits))
        return self._content.decode(content, shape, bits)

    def _inflated(self, frame: bytes, size: int) -> bytes:
        """Decompress exactly one frame of exactly `size` bytes."""
        if not frame.startswith(zstandard.FRAME_HEADER):  # or a skippable frame, without content
            raise PayloadError("expected a zstd frame, found something else")
        try:
            header = zstandard.get_frame_parameters(frame)
            if header.content_size != size or header.window_size > size:
                raise PayloadError(
                    f"expected {size} bytes in the zstd frame, it promises {header.content_size} "
                    f"in a window of {header.window_size}"
                )
            content: bytes = self._contexts.decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise PayloadError(f"the zstd frame is damaged: {error}") from error
        return content


class _Contexts(threading.local):
    """Contexts of one thread: they are costly to make, and must not be shared between threads."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=LEVEL)
        self.decompressor = zstandard.ZstdDecompressor()
