"""Pictures as files of every format that is read, sound ones and bombs, and colour profiles."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from common.imaging.images import (
    ImageLimits,
)

SMALL = ImageLimits(max_bytes=100_000, max_decoded_bytes=200_000)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(width: int = 40, height: int = 30) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 6, y * 8, (x + y) * 3], axis=2).astype(np.uint8)


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(colours(width, height))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int, bits: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


def png(width: int, height: int, bits: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    header = png_header(width, height, bits, colour)
    return header + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """A JPEG with segments (marker and body) after its beginning."""
    made = [b"\xff" + each[:1] + struct.pack(">H", len(each) + 1) + each[1:] for each in segments]
    return jpeg[:2] + b"".join(made) + jpeg[2:]


def tiff(order: str = "<", **values: int) -> bytes:
    """A grey TIFF of one strip with tags of one value, or of so many as `counts` says."""
    tags = {256: (4, 1, 2), 257: (4, 1, 1), 258: (3, 1, 8), 262: (3, 1, 1), 273: (4, 1, 8)}
    tags |= {277: (3, 1, 1), 278: (4, 1, 1), 279: (4, 1, 2), 259: (3, 1, 1)}
    tags |= {int(tag[1:]): (4, 1, value) for tag, value in values.items() if tag[0] == "t"}
    tags |= {int(tag[1:]): (4, count, 8) for tag, count in values.items() if tag[0] == "n"}
    directory = struct.pack(order + "H", len(tags))
    for tag, (kind, count, value) in sorted(tags.items()):
        layout = order + ("HHIHxx" if kind == 3 else "HHII")
        directory += struct.pack(layout, tag, kind, count, value)
    begin = b"II*\0" if order == "<" else b"MM\0*"
    return begin + struct.pack(order + "I", 10) + b"\x20\x40" + directory + bytes(4)


def scan_bomb(width: int, height: int, repeats: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    jpeg = encode(Image.new("L", (width, height)), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * repeats + jpeg[-2:]


VALID = {
    kind: encode(picture(), kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
} | {
    "progressive": encode(picture(), "JPEG", progressive=True),
    "palette": encode(picture().convert("P")),
    "deflated TIFF": encode(picture(), "TIFF", compression="tiff_deflate"),
}


def s15(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def profile(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2, of a colour space."""
    pcs = b"Lab " if b"A2B0" in tags else b"XYZ "
    tags = {b"wtpt": b"XYZ " + bytes(4) + s15(0.9642, 1, 0.8249)} | tags
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    header = struct.pack(">I4xI4s4s4s", at + len(body), 0x02400000, b"mntr", space, pcs)
    header += bytes(12) + b"acsp" + bytes(28) + s15(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + body


def curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(gamma * 256))


# sRGB's primaries, red and green exchanged; its curve is close to a power of 2.2.
PRIMARIES = {b"r": (0.4361, 0.2225, 0.0139), b"g": (0.3851, 0.7169, 0.0971)} | {
    b"b": (0.1431, 0.0606, 0.7141)
}
EXCHANGED = profile(
    b"RGB ",
    {name + b"TRC": curve(2.2) for name in PRIMARIES}
    | {
        name + b"XYZ": b"XYZ " + bytes(4) + s15(*PRIMARIES[other])
        for name, other in zip((b"r", b"g", b"b"), (b"g", b"r", b"b"), strict=True)
    },
)
LINEAR_GREY = profile(b"GRAY", {b"kTRC": curve(1.0)})
# Ink is white without any, and black with all or with K.
LUT = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1)
LUT += bytes(range(256)) * 4
LUT += bytes(
    value for k in range(16) for value in ((255 - 85 * (k >> 1 & 1)) * (k & 1 == 0), 128, 128)
)
INK = profile(b"CMYK", {b"A2B0": LUT + bytes(range(256)) * 3})
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
