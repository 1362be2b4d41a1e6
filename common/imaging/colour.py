"""Conversion of a picture's own colour space to sRGB, which networks are trained on.

A profile costs nothing where it changes nothing: it is tried on a few thousand colours once, and
what comes out within a rounding of what went in is sRGB, whatever it calls itself.
"""

import io
from functools import lru_cache
from typing import Final

import numpy as np
from PIL import Image, ImageCms

_SPACES: Final = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK"}
_CLASSES = frozenset({"mntr", "scnr", "prtr", "spac"})  # describe a space; others link or name
_SAME: Final = 2
_CACHED: Final = 8

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@lru_cache(maxsize=_CACHED)
def srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Build the transform to sRGB; None if pixels are sRGB, or the profile is of no use.

    A damaged profile, or one of another colour space than the picture's, is of no use: viewers
    show such a picture as if it had none. So is one with `mpet` elements, whose number, and with
    it the time to build the transform, has no bound.

    Args:
        profile: The ICC profile, of bounded size.
        mode: Pillow's mode of the pixels: RGB, L or CMYK.
    """
    if b"mpet" in profile:
        return None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if source.profile.xcolor_space != _SPACES[mode]:
            return None
        if source.profile.device_class not in _CLASSES:
            return None
        transform = ImageCms.buildTransform(
            source,
            _SRGB,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        changed = mode == "CMYK" or _changes(transform, mode)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return transform if changed else None


def apply_transform(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """The picture in sRGB, mode RGB."""
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("the colours cannot be converted")
    return converted


def _changes(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    if mode == "L":
        colours = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    else:
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1)
        colours = Image.fromarray(grid.reshape(64, 64, 3))
    before = np.asarray(colours.convert("RGB"), np.int16)
    after = np.asarray(apply_transform(colours, transform), np.int16)
    return bool(np.abs(after - before).max() > _SAME)
