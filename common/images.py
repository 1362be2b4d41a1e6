"""From bytes or a file to the network's input: where a frame begins.

    bytes -> decode_image -> (H, W, 3) RGB uint8 -> letterbox -> (3, h, w) uint8 -> head

Bytes are hostile until checked: their number is limited, then the number of pixels that the header
promises, and only then is anything decoded. Whatever Pillow raises on the way leaves as an
`ImageError`. `Letterbox` holds the geometry alone, in integers, so that the edge, which resizes,
and the cloud, which sends boxes back in source pixels, agree on it exactly.
"""

import contextlib
import io
import stat
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from common.errors import CalibrationError, ImageError, ImageTooLargeError

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
PADDING: Final = 128

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_FORMAT_NAMES = "JPEG, PNG, WebP, BMP, GIF or TIFF"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns about odd metadata in images that it reads well; a sender must not fill our logs.
# Once for the process: `catch_warnings` is not safe in a server's threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded.

    Pillow's own bound of 179 million pixels holds besides.

    Attributes:
        max_bytes: Size of the encoded image.
        max_pixels: Width x height; decoding takes 3 to 12 bytes per pixel.
    """

    max_bytes: int = 16 * 1024 * 1024
    max_pixels: int = 40_000_000


DEFAULT_LIMITS: Final = ImageLimits()


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Decode an image to RGB, upright.

    The EXIF orientation is applied, if it can be read. Transparent pixels are laid over black; of
    16 bits per sample the upper 8 are kept, of an animation the first frame.

    Args:
        data: A JPEG, PNG, WebP, BMP, GIF or TIFF file.
        limits: The largest image to decode.

    Returns:
        (H, W, 3) RGB, contiguous.

    Raises:
        ImageTooLargeError: If the image has more bytes or pixels than `limits` allow.
        ImageError: If it is of another format, truncated or damaged.
    """
    _check_bytes(len(data), limits)
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image.size, limits)
            image.load()
            return np.array(_rgb(_upright(image)))
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(
            f"expected a {_FORMAT_NAMES} image, got {len(data)} bytes that are none of them"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as error:
        raise ImageTooLargeError(f"the image is too large: {_one_line(error)}") from error
    except Exception as error:  # Pillow documents no closed set of errors for damaged files.
        raise ImageError(f"the image is damaged: {_one_line(error)}") from error


def read_image(path: Path, limits: ImageLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Read and decode an image file.

    Returns:
        (H, W, 3) RGB, as `decode_image` gives it.

    Raises:
        ImageTooLargeError: If the image has more bytes or pixels than `limits` allow.
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


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies in the network's input: scaled to fit, centred, padded.

    Attributes:
        image_width: Of the source, in pixels.
        image_height: Of the source, in pixels.
        height: Of the network's input.
        width: Of the network's input.
        resized_width: Of the image inside that input, at least 1.
        resized_height: Of the image inside that input, at least 1.
        left: Columns of padding before the image.
        top: Rows of padding above the image.
    """

    image_width: int
    image_height: int
    height: int
    width: int
    resized_width: int
    resized_height: int
    left: int
    top: int

    @classmethod
    def fit(cls, image_width: int, image_height: int, size: tuple[int, int]) -> Self:
        """Scale an image, up or down, to the largest that fits; the other side is rounded down.

        The arithmetic is that of darknet's `letterbox_image` (src/image.c), in integers throughout.

        Args:
            image_width: Of the source, in pixels.
            image_height: Of the source, in pixels.
            size: (height, width) of the network's input.

        Raises:
            ImageError: If a side is not positive.
        """
        height, width = size
        if min(image_width, image_height, height, width) < 1:
            raise ImageError(
                f"expected an image and an input of at least 1x1 pixels, "
                f"got {image_width}x{image_height} and {width}x{height}"
            )
        if width * image_height < height * image_width:
            resized_width, resized_height = width, max(1, image_height * width // image_width)
        else:
            resized_width, resized_height = max(1, image_width * height // image_height), height
        return cls(
            image_width=image_width,
            image_height=image_height,
            height=height,
            width=width,
            resized_width=resized_width,
            resized_height=resized_height,
            left=(width - resized_width) // 2,
            top=(height - resized_height) // 2,
        )

    def to_image(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes from the network's input back to the source image.

        Args:
            boxes: (N, 4) corners x1, y1, x2, y2 in pixels of the network's input.

        Returns:
            (N, 4) corners in pixels of the source, clipped to it.
        """
        offset = np.array([self.left, self.top] * 2, np.float32)
        extent = np.array([self.image_width, self.image_height] * 2, np.float32)
        resized = np.array([self.resized_width, self.resized_height] * 2, np.float32)
        return np.clip((boxes - offset) * (extent / resized), np.float32(0), extent)


def letterbox(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Scale an image into the network's input, on a grey ground.

    Bilinear with Pillow's antialiasing; the same pixels on every machine.

    Args:
        image: (H, W, 3) RGB.
        size: (height, width) of the network's input.

    Returns:
        (3, height, width), contiguous.

    Raises:
        ImageError: If the image is not (H, W, 3) uint8, or a side is not positive.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    box = Letterbox.fit(image.shape[1], image.shape[0], size)
    resized = Image.fromarray(image).resize(
        (box.resized_width, box.resized_height), Image.Resampling.BILINEAR
    )
    canvas = np.full((3, box.height, box.width), PADDING, np.uint8)
    rows = slice(box.top, box.top + box.resized_height)
    columns = slice(box.left, box.left + box.resized_width)
    canvas[:, rows, columns] = np.asarray(resized).transpose(2, 0, 1)
    return canvas


def _upright(image: Image.Image) -> Image.Image:
    orientation = 1
    # A picture with damaged EXIF data is still a picture: viewers show it as it is stored.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in {"I", "F"}:
        raise ImageError("expected 8 or 16 bits per sample, got 32: convert the image")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        ground = Image.new("RGBA", opaque.size, "black")
        return Image.alpha_composite(ground, opaque).convert("RGB")
    return image.convert("RGB")


def _check_bytes(size_bytes: int, limits: ImageLimits) -> None:
    if size_bytes > limits.max_bytes:
        raise ImageTooLargeError(
            f"expected an image of at most {limits.max_bytes} bytes, got {size_bytes}: "
            "scale it down or compress it more"
        )


def _check_pixels(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"expected an image of at most {limits.max_pixels} pixels, "
            f"got {width}x{height}: scale it down"
        )


def _check_regular(mode: int) -> None:
    # A pipe or a device could block for ever, or never end.
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise ImageError(f"expected an image file, this is {kind}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
