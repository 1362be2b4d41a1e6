"""Decoding hostile bytes, and the letterbox."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from common.errors import CalibrationError, ImageError, ImageTooLargeError
from common.images import (
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


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


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

    @pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0", b"Exif\0\0", b"Exif\0\0rubbish"])
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_damaged_exif_does_not_lose_the_picture(self, exif: bytes) -> None:
        assert decode_image(encode(picture(), "JPEG", exif=exif)).shape == (30, 40, 3)


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

    @pytest.mark.parametrize("side", [60_000, 10_000, 7_000])
    def test_a_header_that_promises_too_many_pixels(self, side: int) -> None:
        # Above Pillow's error, above its warning, above ours only; there are no pixels to decode.
        with pytest.raises(ImageTooLargeError):
            decode_image(png_header(side, side) + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b""))

    def test_12_megapixels_over_a_small_limit(self) -> None:
        data = encode(Image.new("RGB", (4000, 3000)))
        with pytest.raises(ImageTooLargeError, match="4000x3000"):
            decode_image(data, ImageLimits(max_decoded_bytes=7_000_000))

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
