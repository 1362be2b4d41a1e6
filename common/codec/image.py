"""Image codecs, for the cut at the input: symbols are the pixels of the letterboxed image."""

import io

import numpy as np
from PIL import Image

from common.codec.base import Shape, Symbols
from common.errors import PayloadError


class ImageCodec:
    """An image file in memory.

    Args:
        file_format: "JPEG", "WEBP" or "PNG", in Pillow's spelling.
        options: Encoder settings.
    """

    def __init__(self, file_format: str, **options: int) -> None:
        self._format = file_format
        self._options = options

    def encode(self, symbols: Symbols, bits: int) -> bytes:
        """As `Codec.encode`, for (3, H, W) pixels of 8 bits."""
        if bits != 8 or symbols.shape[0] != 3:
            raise ValueError(f"an image codec takes (3, H, W) at 8 bits, not {symbols.shape}")
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(symbols.transpose(1, 2, 0))).save(
            file, self._format, **self._options
        )
        return file.getvalue()

    def decode(self, data: bytes, shape: Shape, bits: int) -> Symbols:  # noqa: ARG002
        """As `Codec.decode`; format, mode and size are known to be right before pixels are read."""
        _, height, width = shape
        try:
            with Image.open(io.BytesIO(data), formats=[self._format]) as image:
                if (image.size, image.mode) != ((width, height), "RGB"):
                    raise PayloadError(
                        f"expected an RGB image of {width} x {height}, found {image.mode} of "
                        f"{image.width} x {image.height}"
                    )
                pixels = np.asarray(image)
        except PayloadError:
            raise
        except Exception as error:
            raise PayloadError(f"not a whole {self._format} image: {error}") from error
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
