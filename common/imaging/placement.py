"""Preprocessing of images: how one is fitted into the network's input, and how boxes come back.

    (H, W, 3) RGB uint8 -> fit_image -> (3, h, w) uint8 -> head
    boxes in the network's input -> Placement.to_image -> boxes in pixels of the image

`Placement` holds the geometry alone, in integers, so that the edge, which resizes, and the cloud,
which sends boxes back in source pixels, agree on it exactly.
"""

from dataclasses import dataclass
from typing import Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import ImageError
from common.imaging.images import RESIZED_BYTES, give_back

PADDING: Final = 128
Fit = Literal["letterbox", "letterbox-top-left", "stretch", "centre-crop", "imagenet-crop"]
"""Ways to fit an image: scaled to fit and centred on padding; the same in the top left corner;
scaled to the input's size whatever its shape; scaled to cover the input, the middle cut out; the
same, scaled to cover 8/7 of the input's sides, as classifiers are evaluated on ImageNet (256 for
224)."""
_CROPS = ("centre-crop", "imagenet-crop")


@dataclass(frozen=True)
class Placement:
    """Placement of an image in the network's input: scaled, then padded or cropped.

    Attributes:
        image_width: Of the source, in pixels.
        image_height: Of the source, in pixels.
        height: Of the network's input.
        width: Of the network's input.
        resized_width: Of the scaled image, at least 1; more than `width` where it is cropped.
        resized_height: Of the scaled image, at least 1.
        left: Columns of padding before the image; negative where that many are cropped.
        top: Rows of padding above the image; negative where that many are cropped.
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
    def fit(
        cls, image_width: int, image_height: int, size: tuple[int, int], fit: Fit = "letterbox"
    ) -> Self:
        """Place an image, scaled up or down; a side that follows from the other is rounded down.

        The arithmetic of a letterbox is that of darknet's `letterbox_image` (src/image.c), in
        integers throughout.

        Args:
            image_width: Of the source, in pixels.
            image_height: Of the source, in pixels.
            size: (height, width) of the network's input.
            fit: How it is fitted.

        Raises:
            ImageError: If a side is not positive.
        """
        height, width = size
        scaled_height, scaled_width = (
            (side * 8 // 7 for side in size) if fit == "imagenet-crop" else size
        )
        if min(image_width, image_height, height, width) < 1:
            raise ImageError(
                f"expected an image and an input of at least 1x1 pixels, "
                f"got {image_width}x{image_height} and {width}x{height}"
            )
        resized_width, resized_height = scaled_width, scaled_height
        is_wider = scaled_width * image_height < scaled_height * image_width
        if fit != "stretch" and is_wider == (fit in _CROPS):
            resized_width = max(1, image_width * scaled_height // image_height)
        elif fit != "stretch":
            resized_height = max(1, image_height * scaled_width // image_width)
        return cls(
            image_width=image_width,
            image_height=image_height,
            height=height,
            width=width,
            resized_width=resized_width,
            resized_height=resized_height,
            left=_before(width - resized_width, fit),
            top=_before(height - resized_height, fit),
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

    def crop(self) -> tuple[float, float, float, float]:
        """The part of the source that is in the input: x1, y1, x2, y2 in its pixels."""
        across = self.image_width / self.resized_width
        down = self.image_height / self.resized_height
        left, top = max(0, -self.left), max(0, -self.top)
        right = left + min(self.width, self.resized_width)
        bottom = top + min(self.height, self.resized_height)
        return left * across, top * down, right * across, bottom * down


def _before(free: int, fit: Fit) -> int:
    """Share of free pixels that is left of an image or above it; negative where it is cropped."""
    if fit == "letterbox-top-left":
        return 0
    return round(free / 2) if fit == "imagenet-crop" else free // 2  # as torchvision rounds


def fit_image(
    image: NDArray[np.uint8],
    size: tuple[int, int],
    fit: Fit = "letterbox",
    padding: int = PADDING,
) -> NDArray[np.uint8]:
    """Fit an image into the network's input.

    Bilinear with Pillow's antialiasing; the same pixels on every machine. What would be cropped is
    not scaled, so that a long strip costs no more than any other image.

    Args:
        image: (H, W, 3) RGB.
        size: (height, width) of the network's input.
        fit: How it is fitted.
        padding: Value of the pixels that the image does not cover, 0 to 255.

    Returns:
        (3, height, width), contiguous.

    Raises:
        ImageError: If the image is not (H, W, 3) uint8, or a side is not positive.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(f"expected an image (H, W, 3) uint8, got {image.shape} {image.dtype}")
    place = Placement.fit(image.shape[1], image.shape[0], size, fit)
    inside = min(place.resized_width, place.width), min(place.resized_height, place.height)
    resized = Image.fromarray(image).resize(
        inside, Image.Resampling.BILINEAR, box=place.crop() if fit in _CROPS else None
    )
    give_back(image.shape[0] * image.shape[1] * RESIZED_BYTES)
    left, top = max(0, place.left), max(0, place.top)
    canvas = np.full((3, place.height, place.width), padding, np.uint8)
    canvas[:, top : top + inside[1], left : left + inside[0]] = np.asarray(resized).transpose(
        2, 0, 1
    )
    return canvas
