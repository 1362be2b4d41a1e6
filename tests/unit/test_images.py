"""Reading pictures: from bytes and from files, to RGB, upright."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from common.errors import CalibrationError, ImageError, ImageTooLargeError
from common.imaging.images import (
    ImageLimits,
    decode_image,
    list_images,
    read_image,
)
from tests.pictures import VALID, colours, encode, picture, tiff


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
