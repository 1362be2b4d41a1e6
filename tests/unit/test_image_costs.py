"""Costs of decoding: bounded in memory and work before a picture is believed."""

import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image

from common.errors import ImageError, ImageTooLargeError
from common.imaging.images import (
    DEFAULT_LIMITS,
    EDGE_LIMITS,
    ImageLimits,
    decode_image,
)
from tests.pictures import VALID, encode, picture, png, png_chunk, scan_bomb, tiff, with_segments


class TestCosts:
    """All that decoding may cost is known, and refused, before it begins."""

    @pytest.mark.parametrize("limits", [DEFAULT_LIMITS, EDGE_LIMITS], ids=["cloud", "edge"])
    @pytest.mark.parametrize(
        ("width", "height", "bits", "colour"),
        [(65_535, 65_535, 8, 2), (6324, 6324, 16, 6), (7900, 5000, 1, 0), (10_000, 10_000, 8, 0)],
    )
    def test_decoded_bytes_name_the_limit_that_holds(
        self, limits: ImageLimits, width: int, height: int, bits: int, colour: int
    ) -> None:
        size = f"at most {limits.max_decoded_bytes} bytes to decode, got {width}x{height} pixels"
        with pytest.raises(ImageTooLargeError, match=size):
            decode_image(png(width, height, bits, colour), limits)

    @pytest.mark.parametrize("limits", [DEFAULT_LIMITS, EDGE_LIMITS], ids=["cloud", "edge"])
    @pytest.mark.parametrize("sides", [(70_000, 500), (1, 40_000_000), (65_536, 1)])
    def test_one_limit_on_a_side_everywhere(
        self, limits: ImageLimits, sides: tuple[int, int]
    ) -> None:
        with pytest.raises(ImageTooLargeError, match="at most 65535 pixels a side"):
            decode_image(png(*sides), limits)

    @pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF", "JPEG"])
    def test_sizes_of_every_format_are_checked_before_decoding(self, kind: str) -> None:
        limits = ImageLimits(max_decoded_bytes=7 * 1199)
        with pytest.raises(ImageTooLargeError, match="got 40x30 pixels that take"):
            decode_image(VALID[kind], limits)

    def test_sizes_that_pillow_would_refuse_first(self) -> None:
        canvas = (30_000 - 1).to_bytes(3, "little")
        webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + canvas * 2
        gif = bytearray(VALID["GIF"])
        start = gif.index(b",", 13 + 3 * (2 << (gif[10] & 7)))
        gif[start + 5 : start + 9] = b"\xff" * 4
        for data in (webp, bytes(gif)):
            with pytest.raises(ImageTooLargeError, match="at most 268435456 bytes to decode"):
                decode_image(data)

    def test_a_tile_larger_than_the_picture(self) -> None:
        with pytest.raises(ImageTooLargeError, match="tiles that take at most"):
            decode_image(tiff(t322=30_000, t323=30_000))

    @pytest.mark.parametrize("limits", [DEFAULT_LIMITS, EDGE_LIMITS], ids=["cloud", "edge"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True, "subsampling": 0}])
    def test_12_megapixels_of_a_camera_pass_everywhere(
        self, limits: ImageLimits, options: dict[str, object]
    ) -> None:
        data = encode(Image.new("RGB", (4032, 3024), "navy"), "JPEG", **options)
        assert decode_image(data, limits).shape == (3024, 4032, 3)

    def test_24_megapixels_pass_where_memory_is_ample(self) -> None:
        data = encode(Image.new("RGB", (6000, 4000), "navy"), "JPEG", progressive=True)
        assert decode_image(data).shape == (4000, 6000, 3)
        with pytest.raises(ImageTooLargeError, match="scale it down to 19173961 pixels"):
            decode_image(data, EDGE_LIMITS)

    def test_scans_without_data_are_counted(self) -> None:
        with pytest.raises(ImageTooLargeError, match="4000x3000 pixels to have at most 33 scans"):
            decode_image(scan_bomb(4000, 3000, 400))

    def test_scans_of_a_small_picture_are_counted(self) -> None:
        with pytest.raises(ImageTooLargeError, match="at most 381 scans"):
            decode_image(scan_bomb(8, 8, 400))
        assert decode_image(scan_bomb(8, 8, 300)).shape == (8, 8, 3)

    def test_what_looks_like_a_scan_elsewhere_is_none(self) -> None:
        data = encode(picture(), "JPEG", progressive=True)
        scans = data.count(b"\xff\xda")
        data = with_segments(data, b"\xfe" + b"\xff\xda" * 500) + b"\xff\xda" * 500
        comment = b"\xff\xfe" + struct.pack(">H", 1002) + b"\xff\xda" * 500
        last = data.rindex(b"\xff\xda\0")
        data = data[:last] + comment + data[last:]
        limits = ImageLimits(max_scan_pixels=scans << 20)
        assert decode_image(data, limits).shape == (30, 40, 3)

    @pytest.mark.parametrize(
        "data",
        [
            png(20_000, 1500, data=zlib.compress(b"")),
            encode(Image.new("L", (4000, 3000)), "JPEG", progressive=True)[:700] + b"\xff\xd9",
            encode(Image.new("L", (4000, 3000)), "GIF")[:900] + b"\0;",
        ],
        ids=["PNG", "JPEG", "GIF"],
    )
    def test_fewer_bytes_than_any_picture_of_that_size_takes(self, data: bytes) -> None:
        with pytest.raises(ImageError, match=r"damaged: \d+ bytes of data cannot hold"):
            decode_image(data)

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
    def test_a_picture_of_one_colour_takes_few_bytes(self, kind: str) -> None:
        data = encode(Image.new("L", (4000, 3000)), kind)
        assert not decode_image(data).any()

    @pytest.mark.parametrize(
        "data",
        [
            with_segments(VALID["JPEG"], *[b"\xfe"] * 5000),
            VALID["PNG"][:33] + png_chunk(b"abCd", b"") * 70_000 + VALID["PNG"][33:],
            VALID["GIF"][:781] + b"\x21\x01" + b"\x01a" * 70_000 + b"\0" + VALID["GIF"][781:],
        ],
        ids=["JPEG", "PNG", "GIF"],
    )
    def test_metadata_in_countless_parts(self, data: bytes) -> None:
        with pytest.raises(ImageError, match="damaged: over"):
            decode_image(data)

    def test_a_directory_of_countless_values(self) -> None:
        data = tiff(n273=300_000) + bytes(1_200_000)
        with pytest.raises(ImageError, match="damaged: over 262144 values"):
            decode_image(data)


ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MEASURE = """
import re, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from common.imaging.images import decode_image
from common.imaging.placement import fit_image

def mib(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def work(data):
    fit_image(decode_image(data), (416, 416))

data = sys.stdin.buffer.read()
before = mib("VmRSS")
with ThreadPoolExecutor(1) as pool:
    for _ in range(3):
        pool.submit(work, data).result()
    print(mib("VmHWM") - before, mib("VmRSS") - before)
"""


@ON_LINUX
class TestMemory:
    @pytest.mark.parametrize(
        ("mode", "kind", "options"),
        [
            ("RGB", "JPEG", {}),
            ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
            ("RGBA", "PNG", {"compress_level": 1}),
            ("1", "PNG", {}),
            ("RGB", "WEBP", {"quality": 20}),
        ],
    )
    def test_the_peak_is_what_was_counted_and_is_given_back(
        self, mode: str, kind: str, options: dict[str, object]
    ) -> None:
        data = encode(Image.new(mode, (3000, 2400)), kind, **options)
        run = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", MEASURE],
            input=data,
            capture_output=True,
            check=True,
            timeout=120,
        )
        peak, kept = map(float, run.stdout.split())
        pixels_mib = 3000 * 2400 / (1 << 20)
        counted = {"WEBP": 18}.get(kind, 10 if options.get("progressive") else 7)
        assert peak < counted * pixels_mib + 24
        assert kept < 60
