"""Zstandard over packed symbols, or the packed symbols alone where that is smaller.

A mode byte comes first: 0 for packed, 1 for zstd. Widths that divide a byte are packed before zstd,
which then sees whole symbols in every byte and has less to read (a sparse 256 x 26 x 26 tensor at 4
bits: 31.2 KB in 0.3 ms, against 40.6 KB in 0.5 ms from one symbol a byte). Other widths would smear
a symbol over two bytes and are given to zstd one symbol a byte (at 6 bits 71.6 KB against 88.8 KB).
"""

import math
import threading

import zstandard

from common.codec.base import Shape, Symbols
from common.codec.packed import Packed, packed_size
from common.codec.raw import Raw
from common.errors import PayloadError

# Higher levels gain under 3 % on such tensors and take several times as long.
LEVEL = 1
_PACKED, _ZSTD = b"\x00", b"\x01"
# A frame may ask its reader for up to this window; level 1 uses half a megabyte.
_MAX_WINDOW = 1 << 23


class PackedZstd:
    """Never more than one byte larger than packed symbols."""

    def __init__(self) -> None:
        self._packed = Packed()
        self._raw = Raw()
        # Contexts are costly to make and must not be shared between threads.
        self._local = threading.local()

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """As `Codec.encode`."""
        inner = self._inner(bits)
        squeezed = self._compressor().compress(inner.encode(symbols, bits))
        if len(squeezed) < packed_size(symbols.size, bits):
            return _ZSTD + squeezed
        return _PACKED + self._packed.encode(symbols, bits)

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """As `Codec.decode`."""
        mode, body = data[:1], data[1:]
        if mode == _PACKED:
            return self._packed.decode(body, shape, bits)
        if mode != _ZSTD:
            raise PayloadError(f"expected mode 0 or 1, found {mode.hex() or 'no bytes'}")
        count = math.prod(shape)
        size = packed_size(count, bits) if 8 % bits == 0 else count
        return self._inner(bits).decode(_decompress(body, size), shape, bits)

    def _inner(self, bits: int) -> Packed | Raw:
        return self._packed if 8 % bits == 0 else self._raw

    def _compressor(self) -> zstandard.ZstdCompressor:
        if not hasattr(self._local, "compressor"):
            self._local.compressor = zstandard.ZstdCompressor(level=LEVEL, write_content_size=True)
        compressor: zstandard.ZstdCompressor = self._local.compressor
        return compressor


def _decompress(data: bytes, size: int) -> bytes:
    """Exactly one frame of exactly `size` bytes."""
    try:
        promised = zstandard.frame_content_size(data)
        if promised != size:
            raise PayloadError(f"expected {size} bytes in the zstd frame, it promises {promised}")
        reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).decompressobj()
        output = reader.decompress(data)
        rest = reader.unused_data
    except zstandard.ZstdError as error:
        raise PayloadError(f"not a zstd frame: {error}") from error
    if len(output) != size or not reader.eof or rest:
        raise PayloadError("the zstd frame is cut off or something follows it")
    return output
