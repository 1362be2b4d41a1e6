"""Decoding of images: from bytes or a file to pixels.

    bytes -> read_header -> decode_image -> (H, W, 3) RGB uint8 -> common.imaging.placement

Bytes are hostile until checked. Nobody can stop a decoder that runs in a thread, so all that it may
cost is bounded before it starts, from what the header says (`ImageLimits`). Then the picture is
converted to RGB strip by strip, so that no second copy of it is ever held. Whatever Pillow raises
on the way leaves as an `ImageError`.
"""

import ctypes
import io
import os
import stat
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from common.errors import CalibrationError, ImageError, ImageTooLargeError
from common.imaging.colour import apply_transform, srgb_transform
from common.imaging.headers import MAX_PROFILE_BYTES, Header, exif_orientation, read_header

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_SIDE_PIXELS: Final = 65_535

_MIB: Final = 1024 * 1024
_OPENERS: Final[dict[str, Callable[[io.BytesIO], ImageFile]]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}
# Bytes per pixel: as Pillow stores a mode, in our RGB, and while a picture of RGB is resized.
_MODE_BYTES: Final = {
    **dict.fromkeys(("1", "L", "P"), 1),
    **dict.fromkeys(("I;16", "I;16L", "I;16B"), 2),
    **dict.fromkeys(("LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"), 4),
}
_RGB_BYTES: Final = 3
RESIZED_BYTES: Final = 7
# The colour space that a profile of a picture of each mode is about.
_PROFILE_MODES: Final = {
    **dict.fromkeys(("1", "L", "LA", "I;16", "I;16L", "I;16B"), "L"),
    **dict.fromkeys(("P", "PA", "RGB", "RGBA", "RGBX"), "RGB"),
    "CMYK": "CMYK",
}
_STRIP_PIXELS: Final = 1 << 19
_TRIMMED_BYTES: Final = 32 * _MIB
# What starting a scan costs, in pixels of a scan without data.
_SCAN_PIXELS: Final = 1 << 20

# Pillow warns about odd metadata in images that it reads well; a sender must not fill our logs.
# Once for the process: `catch_warnings` is not safe in a server's threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded, by what decoding it costs.

    Time follows from these limits. The slowest that pass, in seconds of one core of a server, by
    the default: a PNG of 38 megapixels with 16 bits and alpha 2.1, with 8 bits 1.1 to 1.9; a JPEG
    of 38 megapixels 0.6, progressive 1.0, with a profile of matrices 1.2; GIF, LZW in TIFF, and
    WebP of 15 megapixels 0.7 at the most; the scans that are allowed, all without data, 0.7.
    `EDGE_LIMITS` halve that. An ordinary 12-megapixel JPEG takes 0.13, with Adobe RGB 0.45.

    Attributes:
        max_bytes: Size of the encoded image.
        max_decoded_bytes: Memory at the peak of decoding, converting and resizing: 7 bytes per
            pixel for most files, up to 12 for a progressive JPEG or a TIFF, 18 for WebP. The
            default holds 38 megapixels, or 14 of WebP.
        max_side: Width and height, in pixels; the wire protocol carries no more.
        max_scan_pixels: Scans x pixels of a JPEG. Progressive files have about 10 scans; each
            is a pass over all pixels, even if it holds no data.
    """

    max_bytes: int = 16 * _MIB
    max_decoded_bytes: int = 256 * _MIB
    max_side: int = MAX_SIDE_PIXELS
    max_scan_pixels: int = 400_000_000

    @property
    def max_pixels(self) -> int:
        """Width x height of the largest picture that may pass; of some formats, fewer."""
        return self.max_decoded_bytes // RESIZED_BYTES

    def check_size(self, width: int, height: int, pixel_bytes: float = RESIZED_BYTES) -> None:
        """Refuse a picture for its size alone.

        Args:
            width: In pixels.
            height: In pixels.
            pixel_bytes: Memory per pixel while it is decoded.

        Raises:
            ImageTooLargeError: If a side or the memory is over its limit.
        """
        if max(width, height) > self.max_side:
            raise ImageTooLargeError(
                f"expected an image of at most {self.max_side} pixels a side, "
                f"got {width}x{height}: scale it down"
            )
        decoded_bytes = int(width * height * max(pixel_bytes, RESIZED_BYTES))
        if decoded_bytes > self.max_decoded_bytes:
            raise ImageTooLargeError(
                f"expected an image that takes at most {self.max_decoded_bytes} bytes to decode, "
                f"got {width}x{height} pixels that take {decoded_bytes}: scale it down to "
                f"{int(self.max_decoded_bytes * width * height / decoded_bytes)} pixels"
            )


DEFAULT_LIMITS: Final = ImageLimits()
EDGE_LIMITS: Final = ImageLimits(max_decoded_bytes=128 * _MIB, max_scan_pixels=200_000_000)


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image to sRGB, upright.

    The EXIF orientation is applied and an ICC profile converted, if they can be read. Transparent
    pixels are laid over black; of 16 bits per sample the upper 8 are kept, of an animation the
    first frame, of a TIFF the first page.

    Args:
        data: A JPEG, PNG, WebP, BMP, GIF or TIFF file.
        limits: The largest image to decode.

    Returns:
        (H, W, 3) RGB, contiguous.

    Raises:
        ImageTooLargeError: If decoding the image would exceed one of the `limits`.
        ImageError: If it is of another format, truncated, damaged or of a kind of its format
            that is not supported.
    """
    _check_bytes(len(data), limits)
    try:
        header = read_header(data)
        _check_header(header, limits)
        decoded_bytes, pixels = _decode(header, limits)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError) as error:
        raise ImageTooLargeError(f"the image is too large: {_one_line(error)}") from error
    except Exception as error:  # Pillow documents no closed set of errors for damaged files.
        raise ImageError(f"the image is damaged: {_one_line(error)}") from error
    give_back(decoded_bytes)
    return pixels


def read_image(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read and decode an image file.

    Returns:
        (H, W, 3) RGB, as `decode_image` gives it.

    Raises:
        ImageTooLargeError: If decoding the image would exceed one of the `limits`.
        ImageError: If there is no such file, if it cannot be read or is no image.
    """
    try:
        status = path.stat()
        _check_regular(status.st_mode)
        _check_bytes(status.st_size, limits)
        with path.open("rb") as file:
            data = file.read(limits.max_bytes + 1)
        return decode_image(data, limits)
    except ImageError as error:
        raise type(error)(f"{path}: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot read the image: {reason}") from error


def turn_upright(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Turn a picture as EXIF's orientation says.

    Args:
        stored: (H, W, 3), as the camera stored it.
        orientation: 1 to 8; anything else is taken for 1, upright.

    Returns:
        (H, W, 3) or (W, H, 3), contiguous; `stored` itself if it is upright.
    """
    if orientation not in _STORED:
        return stored
    height, width, _ = stored.shape
    upright, view = _room(width, height, orientation)
    view[:] = stored
    return upright


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, by suffix, in the order of their names.

    Raises:
        CalibrationError: If there is no such folder, or no image in it.
    """
    try:
        paths = sorted(
            path
            for path in folder.iterdir()
            if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CalibrationError(f"{folder}: expected a folder of images: {reason}") from error
    if not paths:
        raise CalibrationError(
            f"{folder}: no image in this folder; files are taken by suffix ({', '.join(SUFFIXES)})"
        )
    return paths


def unit_range(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pixels as networks take them: 0 to 255 becomes 0 to 1, in the same shape."""
    return pixels.astype(np.float32) / np.float32(255)


def _check_header(header: Header, limits: ImageLimits) -> None:
    if header.size is None:
        return
    width, height = header.size
    limits.check_size(width, height)
    if header.has_more_scans(most := limits.max_scan_pixels // max(width * height, _SCAN_PIXELS)):
        raise ImageTooLargeError(
            f"expected a JPEG of {width}x{height} pixels to have at most {most} scans, "
            "got more: save it as a baseline JPEG"
        )
    if header.encoded_bytes < header.least_bytes:
        raise ImageError(
            f"the image is damaged: {header.encoded_bytes} bytes of data cannot hold "
            f"{width}x{height} pixels"
        )


def _decode(header: Header, limits: ImageLimits) -> tuple[int, NDArray[np.uint8]]:
    """Memory used by the decoder, in bytes, and the pixels."""
    with _OPENERS[header.format](io.BytesIO(header.data)) as image:
        decoded_bytes = _check_picture(image, header, limits)
        image.load()
        return decoded_bytes, _upright_rgb(image, header)


def give_back(freed_bytes: int) -> None:
    """Return the memory that a picture was decoded or resized in to the operating system."""
    # glibc keeps blocks of up to 32 MiB for the thread that freed them; other libraries do not.
    if _TRIM is not None and freed_bytes > _TRIMMED_BYTES:
        _TRIM(0)


_TRIM: Final = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def _check_picture(image: Image.Image, header: Header, limits: ImageLimits) -> int:
    """Memory that decoding it takes, in bytes."""
    if image.mode in {"I", "F"}:
        raise ImageError("expected 8 or 16 bits per sample, got 32: convert the image")
    if image.mode not in _MODE_BYTES:
        raise ImageError(f"{header.format} of mode {image.mode} is not supported: save it as RGB")
    width, height = image.size
    pixel_bytes = _MODE_BYTES[image.mode] + max(_RGB_BYTES, header.working_bytes)
    limits.check_size(width, height, pixel_bytes)
    if header.block_pixels * pixel_bytes > limits.max_decoded_bytes:
        raise ImageTooLargeError(
            f"expected tiles that take at most {limits.max_decoded_bytes} bytes to decode, "
            f"got tiles of {header.block_pixels} pixels: save it without tiles"
        )
    return int(width * height * pixel_bytes)


def _upright_rgb(image: Image.Image, header: Header) -> NDArray[np.uint8]:
    transform = _transform(image, header)
    orientation = header.orientation
    if header.format == "WEBP":
        orientation = exif_orientation(image.info.get("exif", b""))
    width, height = image.size
    rows = max(1, _STRIP_PIXELS // width)
    if rows >= height:
        return turn_upright(np.array(_rgb(image, transform)), orientation)
    upright, stored = _room(width, height, orientation)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        stored[top : top + rows] = np.asarray(_rgb(strip, transform))
    return upright


def _room(width: int, height: int, orientation: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Room for an upright picture, and a view of it (height, width, 3) as the camera stored it."""
    turned = orientation in _TURNED
    upright = np.empty((width, height, 3) if turned else (height, width, 3), np.uint8)
    return upright, _STORED[orientation](upright) if orientation in _STORED else upright


# Views of an upright picture as a camera stored it, by EXIF's orientation.
_STORED: Final[dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]]] = {
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}
_TURNED: Final = {5, 6, 7, 8}


def _transform(image: Image.Image, header: Header) -> ImageCms.ImageCmsTransform | None:
    profile = header.profile
    if header.format == "WEBP":
        profile = image.info.get("icc_profile", b"")
    mode = _PROFILE_MODES.get(image.mode)
    if not profile or mode is None or len(profile) > MAX_PROFILE_BYTES:
        return None
    return srgb_transform(profile, mode)


def _rgb(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if not image.has_transparency_data:
        return _opaque_rgb(image, transform)
    opaque = image.convert("RGBA")
    if transform is not None:
        alpha = opaque.getchannel("A")
        opaque = _opaque_rgb(opaque if image.mode[0] in "PR" else image.convert("L"), transform)
        opaque.putalpha(alpha)
    ground = Image.new("RGBA", opaque.size, "black")
    return Image.alpha_composite(ground, opaque).convert("RGB")


def _opaque_rgb(image: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    mode = _PROFILE_MODES[image.mode]
    return apply_transform(image if image.mode == mode else image.convert(mode), transform)


def _check_bytes(size_bytes: int, limits: ImageLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise ImageTooLargeError(
            f"expected an image of at most {limits.max_bytes} bytes, got {size_bytes}: "
            "scale it down or compress it more"
        )


def _check_regular(mode: int) -> None:
    # A pipe or a device could block for ever, or never end.
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ImageError(f"expected an image file, this is {kind}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
