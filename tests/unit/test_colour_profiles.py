"""Colour profiles of pictures: converted to sRGB, or left alone where they are none."""

import numpy as np
import pytest
from PIL import Image

from common.imaging.images import (
    decode_image,
)
from tests.pictures import (
    EXCHANGED,
    INK,
    LINEAR_GREY,
    SRGB,
    colours,
    encode,
    picture,
    with_segments,
)


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
