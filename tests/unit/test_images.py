"""Decoding hostile bytes, and the letterbox."""

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from common.errors import CalibrationError, ImageError, ImageTooLargeError
from common.imaging.images import (
    DEFAULT_LIMITS,
    EDGE_LIMITS,
    PADDING,
    ImageLimits,
    Letterbox,
    decode_image,
    letterbox,
    list_images,
    read_image,
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


class TestDecode:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_lossless_formats_give_their_pixels(self, kind: str) -> None:
        decoded = decode_image(VALID[kind])
        assert decoded.dtype == np.uint8
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, colours())

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP", "progressive", "GIF", "palette"])
    def test_lossy_formats_come_close(self, kind: str) -> None:
        decoded = decode_image(VALID[kind])
        assert decoded.shape == (30, 40, 3)
        assert np.abs(decoded.astype(int) - colours()).mean() < 20

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
    def test_every_mode_gives_rgb(self, mode: str) -> None:
        source = picture().convert("RGBA" if mode == "PA" else mode)
        kind = "TIFF" if mode in {"CMYK", "YCbCr"} else "PNG"
        assert decode_image(encode(source, kind)).shape == (30, 40, 3)

    def test_cmyk_jpeg_keeps_its_colour(self) -> None:
        red = Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK")
        decoded = decode_image(encode(red, "JPEG", quality=95))
        assert np.abs(decoded.astype(int) - (200, 30, 30)).max() < 12

    def test_transparent_pixels_turn_black(self) -> None:
        image = Image.new("RGBA", (2, 1), (255, 100, 0, 255))
        image.putpixel((1, 0), (255, 100, 0, 0))
        np.testing.assert_array_equal(decode_image(encode(image)), [[[255, 100, 0], [0, 0, 0]]])

    def test_transparent_palette_entry_turns_black(self) -> None:
        image = Image.new("P", (2, 1), 1)
        image.putpalette([9, 9, 9, 200, 200, 200])
        image.putpixel((0, 0), 0)
        decoded = decode_image(encode(image, transparency=b"\xff\x00"))
        np.testing.assert_array_equal(decoded, [[[9, 9, 9], [0, 0, 0]]])

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_16_bit_grey_keeps_the_upper_8(self, kind: str) -> None:
        image = Image.fromarray(np.array([[0x0000, 0x12FF, 0xFF00]], np.uint16))
        decoded = decode_image(encode(image, kind))
        np.testing.assert_array_equal(decoded[0, :, 0], [0x00, 0x12, 0xFF])
        np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])

    def test_32_bit_samples_are_refused(self) -> None:
        image = Image.fromarray(np.zeros((4, 4), np.float32))
        with pytest.raises(ImageError, match="8 or 16 bits"):
            decode_image(encode(image, "TIFF"))

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
    def test_an_animation_gives_its_first_frame(self, kind: str) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black", "black")]
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(data).min() > 250

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation_is_applied(self, orientation: int) -> None:
        # How a camera held in each way stores an upright picture.
        stored = {
            1: lambda a: a,
            2: lambda a: a[:, ::-1],
            3: lambda a: a[::-1, ::-1],
            4: lambda a: a[::-1],
            5: lambda a: a.swapaxes(0, 1),
            6: lambda a: np.rot90(a, 1),
            7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
            8: lambda a: np.rot90(a, 3),
        }[orientation](colours())
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        np.testing.assert_array_equal(decode_image(encode(image, exif=exif)), colours())

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["TIFF", "WEBP", "JPEG", "large"])
    def test_orientation_of_every_format(self, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        size = (1200, 900) if kind == "large" else (40, 30)
        options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
        kind = "PNG" if kind == "large" else kind
        plain = decode_image(encode(picture(*size), kind, **options))
        turned = ImageOps.exif_transpose(
            Image.open(io.BytesIO(encode(picture(*size), "PNG", exif=exif)))
        )
        data = encode(picture(*size), kind, exif=exif, **options)
        decoded = decode_image(data)
        assert decoded.flags.c_contiguous
        assert decoded.shape == np.asarray(turned).shape
        if kind != "JPEG":
            np.testing.assert_array_equal(plain, colours(*size))
            np.testing.assert_array_equal(decoded, np.asarray(turned))

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
    def test_strips_of_a_large_picture_join(self, mode: str) -> None:
        large = picture(1200, 900)
        if mode == "I;16":
            image = Image.fromarray(colours(1200, 900)[..., 0].astype(np.uint16) << 8)
            expected = Image.fromarray(colours(1200, 900)[..., 0])
        else:
            image = large.convert(mode)
            expected = image
        data = encode(image, "TIFF" if mode == "CMYK" else "PNG")
        np.testing.assert_array_equal(decode_image(data), np.asarray(expected.convert("RGB")))

    @pytest.mark.parametrize("order", ["<", ">"])
    def test_both_byte_orders_of_tiff(self, order: str) -> None:
        np.testing.assert_array_equal(decode_image(tiff(order))[0, :, 0], [0x20, 0x40])

    def test_a_big_tiff(self) -> None:
        data = encode(picture(), "TIFF", big_tiff=True)
        assert data[:4] == b"II+\0"
        np.testing.assert_array_equal(decode_image(data), colours())

    def test_a_tiff_of_many_pages_gives_the_first(self) -> None:
        pages = [Image.new("RGB", (8, 8), "black")] * 2
        data = encode(picture(), "TIFF", save_all=True, append_images=pages)
        np.testing.assert_array_equal(decode_image(data), colours())

    @pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0", b"Exif\0\0rubbish"])
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_damaged_exif_does_not_lose_the_picture(self, exif: bytes) -> None:
        assert decode_image(encode(picture(), "JPEG", exif=exif)).shape == (30, 40, 3)


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


class TestProfiles:
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_colours_become_srgb(self, kind: str) -> None:
        red = Image.new("RGB", (16, 16), (200, 120, 160))
        decoded = decode_image(encode(red, kind, quality=95, icc_profile=EXCHANGED))
        assert np.abs(decoded.astype(int) - (120, 200, 160)).max() < 8

    @pytest.mark.parametrize("mode", ["P", "RGBA", "large"])
    def test_of_every_mode(self, mode: str) -> None:
        red = Image.new("RGB", (1200, 900) if mode == "large" else (16, 16), (200, 120, 160))
        image = {"large": red, "RGBA": red.convert("RGBA"), "P": red.quantize(2)}[mode]
        decoded = decode_image(encode(image, icc_profile=EXCHANGED))
        assert np.abs(decoded.astype(int) - (120, 200, 160)).max() < 4

    def test_transparent_pixels_stay_black(self) -> None:
        image = Image.new("RGBA", (1, 1), (200, 120, 160, 0))
        assert not decode_image(encode(image, icc_profile=EXCHANGED)).any()

    @pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
    def test_grey_has_a_curve_of_its_own(self, mode: str) -> None:
        grey = Image.fromarray(np.full((2, 2), 55 << 8, np.uint16))
        image = grey if mode == "I;16" else Image.new("L", (2, 2), 55).convert(mode)
        decoded = decode_image(encode(image, icc_profile=LINEAR_GREY))
        assert np.abs(decoded.astype(int) - 128).max() < 3

    def test_ink(self) -> None:
        ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
        plain = decode_image(encode(ink, "JPEG", quality=95))
        converted = decode_image(encode(ink, "JPEG", quality=95, icc_profile=INK))
        assert plain[0, 0, 0] < 10
        assert converted.min() > 200  # of this ink even the first alone is light

    @pytest.mark.parametrize("mode", ["RGB", "L"])
    def test_srgb_changes_no_pixel(self, mode: str) -> None:
        image = picture().convert(mode)
        decoded = decode_image(encode(image, icc_profile=SRGB))
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize(
        "useless",
        [
            b"",
            b"rubbish",
            EXCHANGED[:200],
            EXCHANGED[:132] + b"\xff" * 100,
            EXCHANGED.replace(b"mntr", b"link"),
            LINEAR_GREY,
            INK,
            EXCHANGED + bytes(3_000_000),
            EXCHANGED + b"mpet",
        ],
        ids=range(9),
    )
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    def test_a_profile_of_no_use_is_ignored(self, kind: str, useless: bytes) -> None:
        options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
        data = encode(picture(), kind, icc_profile=useless, **options)
        np.testing.assert_array_equal(decode_image(data), colours())

    def test_parts_of_a_profile_that_are_missing_or_out_of_order(self) -> None:
        jpeg = encode(Image.new("RGB", (16, 16), (200, 120, 160)), "JPEG", quality=95)
        parts = [b"\xe2ICC_PROFILE\0\x02\x02" + EXCHANGED[200:]]
        plain = decode_image(with_segments(jpeg, *parts))
        np.testing.assert_array_equal(plain, decode_image(jpeg))
        parts.append(b"\xe2ICC_PROFILE\0\x01\x02" + EXCHANGED[:200])
        decoded = decode_image(with_segments(jpeg, *parts))
        assert np.abs(decoded[0, 0].astype(int) - (120, 200, 160)).max() < 8


class TestRefusal:
    @pytest.mark.parametrize(
        "data", [b"", b"\0" * 100, b"GIF89a", b"<svg/>", b"%PDF-1.4", b"II*\0"], ids=repr
    )
    def test_what_is_no_image(self, data: bytes) -> None:
        with pytest.raises(ImageError):
            decode_image(data)

    @pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "JPEG2000"])
    def test_other_formats_with_the_list_of_ours(self, kind: str) -> None:
        with pytest.raises(ImageError, match="JPEG, PNG, WebP, BMP, GIF or TIFF"):
            decode_image(encode(picture(), kind))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "deflated TIFF"])
    def test_truncated_files(self, kind: str) -> None:
        with pytest.raises(ImageError):
            decode_image(VALID[kind][: len(VALID[kind]) * 2 // 3])

    def test_too_many_bytes(self) -> None:
        with pytest.raises(ImageTooLargeError, match="at most 1000 bytes"):
            decode_image(b"\0" * 1001, ImageLimits(max_bytes=1000))

    def test_the_limit_itself_is_allowed(self) -> None:
        data = encode(picture(40, 30))
        limits = ImageLimits(max_bytes=len(data), max_decoded_bytes=7 * 1200)
        assert decode_image(data, limits).shape == (30, 40, 3)

    def test_a_text_chunk_that_inflates_without_end_is_not_inflated(self) -> None:
        bomb = PngImagePlugin.PngInfo()
        bomb.add_text("comment", "0" * 5_000_000, zip=True)
        np.testing.assert_array_equal(decode_image(encode(picture(), pnginfo=bomb)), colours())

    def test_a_message_is_one_line(self) -> None:
        with pytest.raises(ImageError) as caught:
            decode_image(VALID["PNG"][:-30])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("marker", "kind"),
        [
            (0xC9, "arithmetic-coded"),
            (0xCA, "arithmetic-coded"),
            (0xC3, "lossless"),
            (0xC5, "hierarchical"),
        ],
    )
    def test_kinds_of_jpeg_that_are_not_supported(self, marker: int, kind: str) -> None:
        data = VALID["JPEG"].replace(b"\xff\xc0", bytes([0xFF, marker]))
        with pytest.raises(ImageError, match=f"^{kind} JPEG is not supported: save it as"):
            decode_image(data)

    def test_12_bits_per_sample_are_not_supported(self) -> None:
        data = VALID["JPEG"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c")
        with pytest.raises(ImageError, match="JPEG of 12 bits per sample is not supported"):
            decode_image(data)

    def test_compressions_whose_cost_has_no_bound_are_not_supported(self) -> None:
        jpeg_in_tiff = encode(picture(), "TIFF", compression="jpeg")
        rle = bytearray(encode(picture().convert("P"), "BMP"))
        rle[30] = 1
        for data in (jpeg_in_tiff, bytes(rle)):
            with pytest.raises(ImageError, match="is not supported: save it as"):
                decode_image(data)

    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (lambda: decode_image(b"rubbish"), 415),
            (lambda: decode_image(VALID["PNG"][:-30]), 415),
            (lambda: decode_image(VALID["JPEG"].replace(b"\xff\xc0", b"\xff\xc9")), 415),
            (lambda: decode_image(b"\0" * 1001, ImageLimits(max_bytes=1000)), 413),
            (lambda: decode_image(png(65_535, 65_535)), 413),
            (lambda: decode_image(png(70_000, 1)), 413),
            (lambda: decode_image(scan_bomb(64, 64, 500)), 413),
        ],
    )
    def test_statuses_of_rest(self, error: Callable[[], object], status: int) -> None:
        with pytest.raises(ImageError) as caught:
            error()
        assert caught.value.http_status == status


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
from common.imaging.images import decode_image, letterbox

def mib(name):
    return int(re.search(name + r":\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def work(data):
    letterbox(decode_image(data), (416, 416))

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


class TestFuzz:
    @given(
        kind=st.sampled_from(sorted(VALID)),
        edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
        cut=st.integers(0, 4000),
        inserted=st.binary(max_size=8),
    )
    @settings(max_examples=400)
    def test_a_damaged_file_decodes_or_is_refused(
        self, kind: str, edits: list[tuple[int, int]], cut: int, inserted: bytes
    ) -> None:
        data = bytearray(VALID[kind])
        for position, value in edits:
            data[position % len(data)] = value
        cut %= len(data)
        data[cut:cut] = inserted
        decodes_or_is_refused(bytes(data))
        decodes_or_is_refused(bytes(data[:cut]))

    @given(kind=st.binary(min_size=4, max_size=4), body=st.binary(max_size=64))
    def test_png_chunks_of_any_content(self, kind: bytes, body: bytes) -> None:
        decodes_or_is_refused(VALID["PNG"][:33] + png_chunk(kind, body) + VALID["PNG"][33:])

    @given(
        kind=st.sampled_from([b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"tRNS"]),
        body=st.binary(max_size=64),
    )
    def test_known_png_chunks_of_any_content(self, kind: bytes, body: bytes) -> None:
        decodes_or_is_refused(VALID["PNG"][:33] + png_chunk(kind, body) + VALID["PNG"][33:])

    @given(exif=st.binary(max_size=80))
    def test_exif_data_of_any_content(self, exif: bytes) -> None:
        segment = b"Exif\0\0MM\0*\0\0\0\x08" + exif
        marker = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        decodes_or_is_refused(VALID["JPEG"][:2] + marker + VALID["JPEG"][2:])

    @given(
        edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
        sample=st.sampled_from([EXCHANGED, SRGB, INK, LINEAR_GREY]),
    )
    def test_damaged_profiles_lose_no_picture(
        self, sample: bytes, edits: list[tuple[int, int]]
    ) -> None:
        damaged = bytearray(sample)
        for position, value in edits:
            damaged[position % len(damaged)] = value
        mode = {EXCHANGED: "RGB", SRGB: "RGB", INK: "CMYK", LINEAR_GREY: "L"}[sample]
        data = encode(picture().convert(mode), "TIFF", icc_profile=bytes(damaged))
        assert decode_image(data, SMALL).shape == (30, 40, 3)


def decodes_or_is_refused(data: bytes) -> None:
    try:
        image = decode_image(data, SMALL)
    except ImageError:
        return
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 0 < image.shape[0] * image.shape[1] <= SMALL.max_decoded_bytes


class TestFiles:
    def test_read_image(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(VALID["PNG"])
        np.testing.assert_array_equal(read_image(path), colours())

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("missing.png", "No such file"),
            (".", "this is a folder"),
            ("file/inside", "Not a directory"),
            ("nul\0.png", "cannot read"),
        ],
    )
    def test_what_cannot_be_read(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ImageError, match=message) as caught:
            read_image(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_permission_denied(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(VALID["PNG"])

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(ImageError, match=r"a\.png: cannot read the image: Permission denied"):
            read_image(path)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(ImageError, match="no regular file"):
            read_image(tmp_path / "pipe.png")

    def test_a_large_file_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"\0" * 1001)
        monkeypatch.setattr(Path, "open", None)
        with pytest.raises(ImageTooLargeError, match=r"a\.png"):
            read_image(path, ImageLimits(max_bytes=1000))

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"rubbish")
        with pytest.raises(ImageError, match=r"a\.png: expected a JPEG"):
            read_image(path)

    def test_list_images_sorts_by_name_and_takes_images_only(self, tmp_path: Path) -> None:
        for name in ("b.JPG", "a.png", "c.webp", "notes.txt", "._a.png"):
            (tmp_path / name).touch()
        (tmp_path / "folder.png").mkdir()
        assert [path.name for path in list_images(tmp_path)] == ["a.png", "b.JPG", "c.webp"]

    @pytest.mark.parametrize("name", ["", "missing", "file.png"])
    def test_a_folder_without_images(self, tmp_path: Path, name: str) -> None:
        if name == "file.png":
            (tmp_path / name).touch()
            tmp_path = tmp_path / name
        else:
            tmp_path = tmp_path / "empty" / name
            (tmp_path if not name else tmp_path.parent).mkdir(parents=True)
        with pytest.raises(CalibrationError):
            list_images(tmp_path)


sides = st.integers(1, 5000)


class TestLetterbox:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            ((640, 480), (416, 312, 0, 52)),  # wide
            ((480, 640), (312, 416, 52, 0)),  # high
            ((416, 416), (416, 416, 0, 0)),  # as it is
            ((100, 50), (416, 208, 0, 104)),  # scaled up
            ((500, 375), (416, 312, 0, 52)),
            ((1, 5000), (1, 416, 207, 0)),  # never without area
            ((5000, 1), (416, 1, 0, 207)),
        ],
    )
    def test_fit(self, image: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
        box = Letterbox.fit(*image, (416, 416))
        assert (box.resized_width, box.resized_height, box.left, box.top) == expected

    @given(sides, sides, st.integers(1, 700), st.integers(1, 700))
    def test_fit_touches_a_side_and_stays_inside(
        self, image_width: int, image_height: int, height: int, width: int
    ) -> None:
        box = Letterbox.fit(image_width, image_height, (height, width))
        assert box.resized_width == width or box.resized_height == height
        assert 1 <= box.resized_width <= width - 2 * box.left
        assert 1 <= box.resized_height <= height - 2 * box.top

    @given(sides, sides)
    def test_the_whole_image_maps_back_to_itself(self, width: int, height: int) -> None:
        box = Letterbox.fit(width, height, (416, 320))
        inside = [
            box.left,
            box.top,
            box.left + box.resized_width,
            box.top + box.resized_height,
        ]
        corners = box.to_image(np.array([inside], np.float32))
        assert corners.dtype == np.float32
        np.testing.assert_allclose(corners, [[0, 0, width, height]], rtol=1e-5)

    def test_boxes_are_clipped_to_the_image(self) -> None:
        box = Letterbox.fit(640, 480, (416, 416))
        corners = box.to_image(np.array([[-50, 0, 1e9, 416], [0, 0, 10, 52]], np.float32))
        np.testing.assert_allclose(corners[0], [0, 0, 640, 480])
        np.testing.assert_allclose(corners[1], [0, 0, 10 * 640 / 416, 0], rtol=1e-6)

    @pytest.mark.parametrize("sides", [(0, 1, (1, 1)), (1, -1, (1, 1)), (1, 1, (0, 1))])
    def test_sides_must_be_positive(self, sides: tuple[int, int, tuple[int, int]]) -> None:
        with pytest.raises(ImageError):
            Letterbox.fit(*sides)

    @pytest.mark.parametrize("size", [(416, 416), (320, 416), (1, 1)])
    @pytest.mark.parametrize("image", [(40, 30), (1, 700), (700, 1), (1, 1)])
    def test_letterbox_is_contiguous_planes(
        self, image: tuple[int, int], size: tuple[int, int]
    ) -> None:
        boxed = letterbox(colours(*image), size)
        assert boxed.shape == (3, *size)
        assert boxed.dtype == np.uint8
        assert boxed.flags.c_contiguous

    def test_the_ground_is_grey_and_the_image_centred(self) -> None:
        image = np.full((10, 20, 3), (255, 0, 7), np.uint8)
        boxed = letterbox(image, (40, 40))
        assert (boxed[:, :10] == PADDING).all()
        assert (boxed[:, 30:] == PADDING).all()
        assert (boxed[:, 10:30] == np.array([255, 0, 7])[:, None, None]).all()

    def test_an_image_that_fits_exactly_is_untouched(self) -> None:
        image = colours(40, 30)
        np.testing.assert_array_equal(letterbox(image, (30, 40)), image.transpose(2, 0, 1))

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((3, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_what_is_no_image(self, image: NDArray[np.uint8]) -> None:
        with pytest.raises(ImageError):
            letterbox(image, (416, 416))
