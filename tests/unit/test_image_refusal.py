"""Bytes that are no picture, or too large a one: refused, whatever they are."""

import struct
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import PngImagePlugin

from common.errors import ImageError, ImageTooLargeError
from common.imaging.images import (
    ImageLimits,
    decode_image,
)
from tests.pictures import (
    EXCHANGED,
    INK,
    LINEAR_GREY,
    SMALL,
    SRGB,
    VALID,
    colours,
    encode,
    picture,
    png,
    png_chunk,
    scan_bomb,
)


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
