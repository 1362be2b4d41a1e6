"""JPEG, WebP and PNG: the codecs of the cut at the input, where the symbols are the pixels.

An upload of the whole image is the baseline of every split, so these are written as a usual user
would write them, by Pillow. A payload is checked by the bytes of its own header before Pillow sees
it: format, size, and that it holds one plain picture. Metadata, animations and repeated scans have
no use here, and are how a small file makes a decoder work or allocate a lot.
"""

import io
import math
import struct
from collections.abc import Callable
from typing import Final

import numpy as np
from PIL import Image

from common.codec.base import Shape, Symbols
from common.errors import PayloadError

# Over 416 x 416 photos at quality 75, WebP's methods 0, 2 and 4 (Pillow's default) take 30, 26 and
# 26 KB and 6, 9 and 17 ms: below 10 Mbit/s method 2 is the first of them to arrive.
_WEBP_METHOD: Final = 2
# PNG's levels 1 and 6 (Pillow's default) take 327 and 307 KB and 16 and 43 ms: level 1 arrives
# first above 6 Mbit/s, above 1.5 on a quarter of a core.
_PNG_LEVEL: Final = 1
# What a header and its tables may take, where the picture itself is tiny.
_HEADER_BYTES: Final = 4096


class _ImageCodec:
    """One Pillow format.

    Args:
        file_format: In Pillow's spelling.
        is_plain: Whether data is one plain picture of (width, height), as `encode` writes it.
        options: Of Pillow's encoder.
    """

    def __init__(
        self, file_format: str, is_plain: Callable[[bytes, int, int], bool], **options: int
    ) -> None:
        self._format = file_format
        self._is_plain = is_plain
        self._options = options

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """Encode (3, H, W) RGB pixels of 8 bits; see `Codec.encode`.

        Raises:
            PayloadError: If it is no such image, or one that the format cannot hold.
        """
        self._check_pixels(symbols.shape, bits)
        file = io.BytesIO()
        try:
            # Merging the planes takes a tenth of the time of a transpose in NumPy.
            picture = Image.merge("RGB", [Image.fromarray(plane) for plane in symbols])
            picture.save(file, self._format, **self._options)
        except (OSError, ValueError) as error:
            raise PayloadError(f"{self._format}: cannot be written: {error}") from error
        return file.getvalue()

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:
        """Decode to (3, H, W) RGB pixels of 8 bits; see `Codec.decode`."""
        self._check_pixels(shape, bits)
        _, height, width = shape
        longest = 2 * math.prod(shape) + _HEADER_BYTES
        if len(data) > longest or not self._is_plain(data, width, height):
            raise PayloadError(
                f"expected one plain {self._format} of {width}x{height}, "
                f"found {len(data)} bytes that are not"
            )
        try:
            with Image.open(io.BytesIO(data), formats=[self._format]) as picture:
                self._check_header(picture, (width, height))
                return np.stack([np.asarray(plane) for plane in picture.split()])
        except PayloadError:
            raise
        except Exception as error:  # Pillow documents no closed set of errors for damaged files
            message = " ".join(str(error).split())[:200] or type(error).__name__
            raise PayloadError(f"the {self._format} is damaged: {message}") from error

    def _check_header(self, picture: Image.Image, size: tuple[int, int]) -> None:
        found = picture.format, picture.mode, picture.size
        if found != (self._format, "RGB", size):
            raise PayloadError(f"expected {self._format} RGB of {size}, found {found}")

    def _check_pixels(self, shape: tuple[int, ...], bits: int) -> None:
        if len(shape) != 3 or shape[0] != 3 or bits != 8:
            raise PayloadError(
                f"{self._format} carries (3, H, W) of 8 bits, the plan has {shape} of {bits} bits"
            )


class JpegCodec(_ImageCodec):
    """Baseline JPEG with 4:2:0 subsampling, quality 1 to 100; lossy."""

    def __init__(self, quality: int) -> None:
        super().__init__("JPEG", _is_plain_jpeg, quality=quality)


class WebPCodec(_ImageCodec):
    """Lossy WebP, quality 1 to 100."""

    def __init__(self, quality: int) -> None:
        super().__init__("WEBP", _is_plain_webp, quality=quality, method=_WEBP_METHOD)


class PngCodec(_ImageCodec):
    """PNG; lossless."""

    def __init__(self) -> None:
        super().__init__("PNG", _is_plain_png, compress_level=_PNG_LEVEL)


def _is_plain_jpeg(data: bytes, width: int, height: int) -> bool:
    """One baseline frame of this size in one scan, with an end-of-image marker (ITU T.81, B.2).

    A progressive or multi-scan file can ask for thousands of passes over the picture.
    """
    if max(width, height) > 0xFFFF:
        return False
    frame = b"\xff\xc0" + struct.pack(">HBHHB", 17, 8, height, width, 3)
    return frame in data and data.count(b"\xff\xda") == 1 and data.endswith(b"\xff\xd9")


def _is_plain_webp(data: bytes, width: int, height: int) -> bool:
    """One lossy key frame of this size and nothing else (RFC 9649, 2.5; RFC 6386, 9.1)."""
    signatures = data[:4], data[8:16], data[23:26]
    if len(data) < 30 or signatures != (b"RIFF", b"WEBPVP8 ", b"\x9d\x01\x2a"):
        return False
    file_bytes, chunk_bytes = struct.unpack_from("<I8xI", data, 4)
    whole = file_bytes + 8 == len(data) == 20 + chunk_bytes + chunk_bytes % 2
    return whole and struct.unpack_from("<HH", data, 26) == (width, height)


def _is_plain_png(data: bytes, width: int, height: int) -> bool:
    """An 8-bit RGB header of this size, image data, the end, and nothing else (W3C PNG, 5)."""
    colours = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    if not data.startswith(b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + colours):
        return False
    position, kind = 33, b"IHDR"
    while position + 12 <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind not in {b"IDAT", b"IEND"}:
            return False
        position += 12 + length
    return kind == b"IEND" and position == len(data)
