"""Headers of image files: facts read before decoding, and the part that makes pixels.

    bytes -> read_header -> Header: format, size, orientation, profile, scans, `data` for Pillow

Pillow reads metadata in Python, byte by byte where it must: 16 MiB of empty comments take it half a
minute. So metadata never reaches it. The few facts that we need are read here, in a bounded number
of steps; the rest is left out of `Header.data`, which keeps only what a decoder needs.
"""

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from common.errors import ImageError

FORMAT_NAMES: Final = "JPEG, PNG, WebP, BMP, GIF or TIFF"
MAX_PROFILE_BYTES: Final = 2 * 1024 * 1024

# Honest files have a few dozen parts; PNG splits its pixels into chunks of some kilobytes.
_MAX_SEGMENTS, _MAX_CHUNKS, _MAX_BLOCKS, _MAX_TAGS = 2048, 65_536, 65_536, 1024
_MAX_TAG_VALUES = 1 << 18

# The most that one byte can stand for: deflate repeats 258 bytes with two bits; a full table of
# GIF's LZW has strings of at most 4,096 pixels, each a code of 12 bits.
_DEFLATE_RATIO, _LZW_RATIO = 1032, 2731

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

# Not the markers that stand alone within or between scans: TEM and restarts.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")
_SOI, _EOI, _SOS, _APP1, _APP2 = 0xD8, 0xD9, 0xDA, 0xE1, 0xE2
_JPEG_ENDS = {_SOI, _EOI}
_JPEG_PLAIN = {*range(0xC0, 0xD0), *range(0xDA, 0xFF)}
_SUPPORTED_SOF = {0xC0, 0xC1, 0xC2}
_PROGRESSIVE = 0xC2
_SOF_NAMES = {
    0xC3: "lossless",
    **dict.fromkeys((0xC5, 0xC6, 0xC7), "hierarchical"),
    **dict.fromkeys((0xC9, 0xCA), "arithmetic-coded"),
    0xCB: "lossless arithmetic-coded",
    **dict.fromkeys((0xCD, 0xCE, 0xCF), "hierarchical arithmetic-coded"),
}
# Tables and frames (C0 to CF, DB to DF), JFIF's APP0, Adobe's APP14 with the colour transform.
_JPEG_KEPT = {*range(0xC0, 0xD0), *range(0xDB, 0xE0), 0xE0, 0xEE}

_TIFF_ORDERS = {b"II*\0": ("<", False), b"MM\0*": (">", False)} | {
    b"II+\0": ("<", True),
    b"MM\0+": (">", True),
}
# None, fax, LZW, deflate and PackBits. The cost of others does not depend on the picture's size.
_TIFF_COMPRESSIONS = {1, 2, 3, 4, 5, 8, 32773, 32946}
_TIFF_NAMES = {6: "JPEG", 7: "JPEG", 34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}
_TIFF_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_COMPRESSION, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT, _PROFILE = 259, 274, 322, 323, 34675
# Those that Pillow and libtiff need for pixels, from NewSubfileType to YCbCr's coefficients.
_TIFF_KEPT = {
    *(254, 255, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 334, 338, 339, 529, 530, 531, 532),
}


@dataclass(frozen=True)
class Header:
    """An image file, checked as far as that is possible without decoding.

    Attributes:
        format: As Pillow names it.
        data: The file without its metadata.
        size: (width, height) in pixels as stored; None where only Pillow reads it.
        orientation: EXIF's, 1 to 8; 1 is upright.
        profile: The ICC profile; empty if there is none, or an absurd one.
        working_bytes: Per pixel, what the decoder holds besides the picture, at most.
        block_pixels: Pixels of the largest part that is decoded at once, if that may exceed
            the picture.
        encoded_bytes: What the coded pixels take.
        least_bytes: What they take at least, if none are missing.
        first_scan: Where the first of a JPEG's scans begins in `data`; 0 if it may have only one.
    """

    format: str
    data: bytes
    size: tuple[int, int] | None = None
    orientation: int = 1
    profile: bytes = b""
    working_bytes: float = 0.0
    block_pixels: int = 0
    encoded_bytes: int = 0
    least_bytes: int = 0
    first_scan: int = 0

    def has_more_scans(self, most: int) -> bool:
        """Whether a JPEG has more than so many scans; false for other formats."""
        if not self.first_scan or self.data.count(b"\xff\xda", self.first_scan) <= most:
            return False
        # Some of those may lie within other segments, or behind the end.
        scans = 0
        for steps, (marker, _, _) in enumerate(_jpeg_segments(self.data, self.first_scan)):
            scans += marker == _SOS
            if scans > most or steps > _MAX_SEGMENTS:
                return True
        return False


def read_header(data: bytes) -> Header:
    """Recognise a file and read what it says of its picture.

    Raises:
        ImageError: If it is of another format, of a kind of ours that is not supported, or
            so damaged that there is nothing to decode.
    """
    for prefix, read in _READERS:
        if data.startswith(prefix) and (prefix != b"RIFF" or data[8:12] == b"WEBP"):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise ImageError("the image is damaged: it ends within its header") from error
    raise ImageError(
        f"expected a {FORMAT_NAMES} image, got {len(data)} bytes that are none of them"
    )


def exif_orientation(exif: bytes) -> int:
    """The orientation in EXIF data; 1 if there is none or the data are damaged."""
    exif = exif.removeprefix(b"Exif\0\0")
    if not exif:
        return 1
    order, big = _TIFF_ORDERS.get(exif[:4], ("", True))
    if big:
        return 1
    try:
        for entry in _tags(exif, order, big=False):
            if entry.tag == _ORIENTATION:
                value = entry.number(order)
                return value if value in range(1, 9) else 1
    except (ImageError, struct.error):
        pass
    return 1


def _unsupported(what: str) -> ImageError:
    return ImageError(f"{what} is not supported: save it as an ordinary JPEG or PNG")


def _jpeg_segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of each segment, as libjpeg finds them: anything between is skipped."""
    while True:
        begin = at
        if data[at : at + 1] != b"\xff" or data[at + 1] not in _JPEG_PLAIN:
            found = _JPEG_MARKER.search(data, at)
            if found is None:
                return
            begin = found.start()
        marker, at = data[begin + 1], begin + 2
        if marker not in _JPEG_ENDS:
            at += max(data[at] << 8 | data[at + 1], 2)
        yield marker, begin, at
        if marker == _EOI:
            return


def _jpeg(data: bytes) -> Header:
    kept, exif, frame = [data[:2]], b"", None
    profile: dict[int, bytes] = {}
    for steps, (marker, begin, end) in enumerate(_jpeg_segments(data, 2)):
        if steps > _MAX_SEGMENTS:
            raise ImageError(f"the image is damaged: over {_MAX_SEGMENTS} segments before its data")
        body = data[begin + 4 : end] if marker in {_APP1, _APP2, _SOS} else b""
        if marker in _SOF_NAMES:
            raise _unsupported(f"{_SOF_NAMES[marker]} JPEG")
        if marker in _SUPPORTED_SOF:
            frame = _jpeg_frame(data[begin:end])
        if marker == _SOS and frame is not None:
            return _jpeg_header(data, begin, frame, body, kept, exif, profile)
        if marker in {_SOS, _EOI}:
            break
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == _APP2 and body.startswith(b"ICC_PROFILE\0"):
            profile[body[12]] = body[14:]
        elif marker in _JPEG_KEPT:
            kept.append(data[begin:end])
    raise ImageError("the image is damaged: a JPEG without a picture")


@dataclass(frozen=True)
class _Frame:
    """A JPEG's frame: its size, its components, and their samples per pixel."""

    size: tuple[int, int]
    components: int
    samples: float
    progressive: bool


def _jpeg_frame(segment: bytes) -> _Frame:
    precision, height, width, components = struct.unpack_from(">BHHB", segment, 4)
    if precision != 8:
        raise _unsupported(f"JPEG of {precision} bits per sample")
    sides = [(segment[11 + 3 * k] >> 4, segment[11 + 3 * k] & 15) for k in range(components)]
    if not width * height * components or not all(h and v for h, v in sides):
        raise ImageError("the image is damaged: a JPEG without pixels")
    whole = max(h for h, _ in sides) * max(v for _, v in sides)
    samples = sum(h * v for h, v in sides) / whole
    return _Frame((width, height), components, samples, segment[1] == _PROGRESSIVE)


def _jpeg_header(
    data: bytes,
    at: int,
    frame: _Frame,
    scan: bytes,
    kept: list[bytes],
    exif: bytes,
    profile: dict[int, bytes],
) -> Header:
    header_bytes = sum(map(len, kept))
    # Scans that hold a part of the data each are gathered as coefficients of 16 bits. Otherwise
    # libjpeg reads the first scan and refuses another.
    gathered = frame.progressive or scan[0] < frame.components
    width, height = frame.size
    return Header(
        "JPEG",
        data if header_bytes == at else b"".join((*kept, memoryview(data)[at:])),
        frame.size,
        exif_orientation(exif),
        _bounded(b"".join(profile[k] for k in sorted(profile))) if profile else b"",
        working_bytes=2 * frame.samples if gathered else 0.0,
        encoded_bytes=len(data) - at,
        # Every block of 64 samples takes at least a bit.
        least_bytes=int(width * height * frame.samples / 64 / 8),
        first_scan=header_bytes if gathered else 0,
    )


def _png(data: bytes) -> Header:
    width, height, bits, colour, *_ = struct.unpack_from(">IIBBBBB", data, 16)
    if data[12:16] != b"IHDR" or colour not in _PNG_CHANNELS:
        raise ImageError("the image is damaged: a PNG without a valid header")
    view = memoryview(data)
    kept, exif, profile = [view[:8]], b"", b""
    at, encoded_bytes = 8, 0
    for _ in range(_MAX_CHUNKS):
        if at + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_KEPT:
            kept.append(view[at:end])
            encoded_bytes += min(length, len(data) - at - 8) * (kind == b"IDAT")
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif kind == b"iCCP":
            profile = _inflated(data[at + 8 : end - 4])
        at = end
        if kind == b"IEND":
            break
    else:
        raise ImageError(f"the image is damaged: over {_MAX_CHUNKS} chunks")
    return Header(
        "PNG",
        data if sum(map(len, kept)) == len(data) else b"".join(kept),
        (width, height),
        exif_orientation(exif),
        profile,
        encoded_bytes=encoded_bytes,
        least_bytes=width * height * bits * _PNG_CHANNELS[colour] // 8 // _DEFLATE_RATIO,
    )


def _inflated(chunk: bytes) -> bytes:
    """The profile of an iCCP chunk: a name, a method, deflated data."""
    _, _, packed = chunk.partition(b"\0")
    try:
        return _bounded(zlib.decompressobj().decompress(packed[1:], MAX_PROFILE_BYTES + 1))
    except zlib.error:
        return b""


def _bounded(profile: bytes) -> bytes:
    return profile if len(profile) <= MAX_PROFILE_BYTES else b""


def _gif(data: bytes) -> Header:
    screen = struct.unpack_from("<HH", data, 6)
    start = at = 13 + (3 * (2 << (data[10] & 7)) if data[10] & 0x80 else 0)
    control = b""
    blocks = 0
    while data[at] == 0x21:  # extensions: a label, then blocks that begin with their length
        begin, at = at, at + 2
        while (blocks := blocks + 1) <= _MAX_BLOCKS and (length := data[at]):
            at += 1 + length
        if blocks > _MAX_BLOCKS:
            raise ImageError(f"the image is damaged: over {_MAX_BLOCKS} blocks before its data")
        at += 1
        if data[begin + 1] == 0xF9:  # transparency of the picture that follows
            control = data[begin:at]
    if data[at] != 0x2C:
        raise ImageError("the image is damaged: a GIF without a picture")
    left, top, width, height = struct.unpack_from("<HHHH", data, at + 1)
    return Header(
        "GIF",
        b"".join((data[:start], control, memoryview(data)[at:])),
        (max(screen[0], left + width), max(screen[1], top + height)),
        encoded_bytes=len(data) - at,
        least_bytes=width * height // _LZW_RATIO,
    )


def _webp(data: bytes) -> Header:
    size = None
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[k : k + 3], "little") for k in (24, 27))
        size = (width + 1, height + 1)
    # The canvas, the one before it, a copy of it, and what a lossless picture is decoded into.
    return Header("WEBP", data, size, working_bytes=14.0)


def _bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes >= 40 and struct.unpack_from("<I", data, 30)[0] in {1, 2}:
        raise _unsupported("BMP with run-length compression")
    return Header("BMP", data)


@dataclass(frozen=True)
class _Tag:
    """An entry of a TIFF directory; `value` is the value itself or where it lies."""

    entry: bytes
    tag: int
    kind: int
    count: int
    value: bytes

    @property
    def inline(self) -> bool:
        return self.count * _TIFF_TYPE_BYTES.get(self.kind, 8) <= len(self.value)

    def number(self, order: str) -> int:
        """The value, if it is one small number; 0 otherwise."""
        code = {1: "B", 3: "H", 4: "I"}.get(self.kind)
        if code is None or self.count != 1:
            return 0
        return int(struct.unpack_from(order + code, self.value)[0])


def _tags(data: bytes, order: str, *, big: bool) -> Iterator[_Tag]:
    """The first directory."""
    _, count, layout, begin = _directory(data, order, big=big)
    if count > _MAX_TAGS:
        raise ImageError(f"the image is damaged: a TIFF directory of over {_MAX_TAGS} tags")
    step = struct.calcsize(layout)
    for k in range(begin, min(begin + count * step, len(data) - step + 1), step):
        entry = data[k : k + step]
        yield _Tag(entry, *struct.unpack(layout, entry))


def _directory(data: bytes, order: str, *, big: bool) -> tuple[int, int, str, int]:
    """Offset of the first directory, number and layout of its tags, offset of the tags."""
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    if at >= len(data):
        raise ImageError("the image is damaged: its directory lies behind its end")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    return at, count, order + ("HHQ8s" if big else "HHI4s"), at + (8 if big else 2)


def _tiff(data: bytes) -> Header:
    order, big = _TIFF_ORDERS[data[:4]]
    tags = list(_tags(data, order, big=big))
    known = {tag.tag: tag for tag in reversed(tags)}
    compression = known[_COMPRESSION].number(order) if _COMPRESSION in known else 1
    if compression not in _TIFF_COMPRESSIONS:
        raise _unsupported(f"TIFF with {_TIFF_NAMES.get(compression, compression)} compression")
    kept = [tag for tag in tags if tag.tag in _TIFF_KEPT]
    if any(tag.count > _MAX_TAG_VALUES for tag in kept):
        raise ImageError(f"the image is damaged: over {_MAX_TAG_VALUES} values of one TIFF tag")
    tile = [known[k].number(order) if k in known else 0 for k in (_TILE_WIDTH, _TILE_HEIGHT)]
    return Header(
        "TIFF",
        _with_tags(data, order, kept, big=big),
        orientation=known[_ORIENTATION].number(order) if _ORIENTATION in known else 1,
        profile=_tag_bytes(data, order, known.get(_PROFILE), big=big),
        # A strip may hold the whole picture, with four samples of 16 bits.
        working_bytes=8.0,
        block_pixels=tile[0] * tile[1],
    )


def _tag_bytes(data: bytes, order: str, tag: _Tag | None, *, big: bool) -> bytes:
    if tag is None or tag.kind not in {1, 7} or tag.inline:
        return b""
    (at,) = struct.unpack(order + ("Q" if big else "I"), tag.value)
    return data[at : at + tag.count] if tag.count <= MAX_PROFILE_BYTES else b""


def _with_tags(data: bytes, order: str, kept: list[_Tag], *, big: bool) -> bytes:
    """Copy a TIFF with a directory of some of its tags, and no other picture behind it."""
    at, count, layout, begin = _directory(data, order, big=big)
    room = begin - at + count * struct.calcsize(layout) + (8 if big else 4)
    directory = struct.pack(order + ("Q" if big else "H"), len(kept))
    directory += b"".join(tag.entry for tag in kept)
    return b"".join((data[:at], directory.ljust(room, b"\0"), memoryview(data)[at + room :]))


_READERS: Final[tuple[tuple[bytes, Callable[[bytes], Header]], ...]] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"RIFF", _webp),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"BM", _bmp),
    *((prefix, _tiff) for prefix in _TIFF_ORDERS),
)
