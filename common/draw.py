"""Detections drawn onto their image, for people to look at: the end of a frame on a web page.

    (H, W, 3) image + Detections -> annotate -> picture -> side_by_side -> pictures to compare

Colours are those of Okabe and Ito (2008), which stay apart under every common colour-vision
deficiency; lines and letters grow with the image.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from common.detections import Detections

Colour = tuple[int, int, int]

# https://jfly.uni-koeln.de/color/; without black, which is lost on dark images.
PALETTE: Final[tuple[Colour, ...]] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)
_CAPTION_GROUND: Colour = (32, 33, 36)
_SMALLEST_FONT = 8

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_Corners = tuple[float, float, float, float]


def class_colour(index: int) -> Colour:
    """The colour of a class: the same in every picture."""
    return PALETTE[index % len(PALETTE)]


def annotate(
    image: NDArray[np.uint8],
    detections: Detections,
    class_names: Sequence[str],
    caption: str | None = None,
) -> Image.Image:
    """Draw boxes and labels onto a copy of an image; the best detections lie on top.

    Args:
        image: (H, W, 3) RGB.
        detections: With boxes in pixels of `image`; what lies outside it is cut off.
        class_names: One per class; a class beyond is labelled with its number.
        caption: Written on a strip above the picture, which becomes higher by it.

    Returns:
        An RGB picture, W wide.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    scale = min(picture.size)
    line = max(1, round(scale / 200))
    font = _font(max(11, round(scale / 30)))
    # Labels after all boxes, so that no line crosses a label.
    drawable = [
        (index, score, _clip(box, picture.size))
        for index, score, box in zip(
            detections.classes.tolist(),
            detections.scores.tolist(),
            detections.boxes.tolist(),
            strict=True,
        )
        if all(map(np.isfinite, box))
    ][::-1]
    for index, _, corners in drawable:
        _draw_box(draw, corners, class_colour(index), line)
    for index, score, corners in drawable:
        name = class_names[index] if 0 <= index < len(class_names) else f"class {index}"
        _draw_label(draw, f"{name} {score:.2f}", corners, class_colour(index), line, font)
    return picture if caption is None else _captioned(picture, caption)


def side_by_side(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Put pictures in a row, each under its caption.

    Args:
        images: At least one; all are scaled down to the height of the lowest.
        captions: One per picture.

    Returns:
        An RGB picture.

    Raises:
        ValueError: If there is no picture, or not one caption for each.
    """
    if not images:
        raise ValueError("expected at least one picture")
    height = min(image.height for image in images)
    panels = [
        _captioned(_scaled_to(image.convert("RGB"), height), caption, height)
        for image, caption in zip(images, captions, strict=True)
    ]
    gap = max(2, round(height / 60))
    width = sum(panel.width for panel in panels) + gap * (len(panels) - 1)
    row = Image.new("RGB", (width, panels[0].height), _WHITE)
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width + gap
    return row


def _draw_box(draw: ImageDraw.ImageDraw, corners: _Corners, colour: Colour, line: int) -> None:
    # A thin dark rim keeps bright colours visible on bright ground.
    x1, y1, x2, y2 = corners
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=_BLACK, width=line + 2)
    draw.rectangle(corners, outline=colour, width=line)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corners: _Corners,
    colour: Colour,
    line: int,
    font: _Font,
) -> None:
    """Above the box where there is room, else inside its top; never outside the picture."""
    picture_width, picture_height = draw.im.size
    pad = 2 * line
    font = _fitting(text, font, picture_width - 2 * pad)
    width, height = _text_size(text, font)
    width, height = width + 2 * pad, height + 2 * pad
    x1, y1, _, _ = corners
    left = max(0, min(x1, picture_width - width))
    top = y1 - height if y1 >= height else y1
    top = max(0, min(top, picture_height - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    middle = (left + pad, top + height / 2)
    draw.text(middle, text, fill=_text_colour(colour), font=font, anchor="lm")


def _captioned(picture: Image.Image, caption: str, scale: int | None = None) -> Image.Image:
    """The picture under a strip with its caption; `scale` sets the letters, else the picture."""
    size = max(12, round((min(picture.size) if scale is None else scale) / 22))
    pad = size // 2
    font = _fitting(caption, _font(size), picture.width - 2 * pad)
    strip = size + 2 * pad
    canvas = Image.new("RGB", (picture.width, picture.height + strip), _CAPTION_GROUND)
    canvas.paste(picture, (0, strip))
    draw = ImageDraw.Draw(canvas)
    draw.text((pad, strip / 2), caption, fill=_WHITE, font=font, anchor="lm")
    return canvas


def _scaled_to(picture: Image.Image, height: int) -> Image.Image:
    if picture.height == height:
        return picture
    width = max(1, round(picture.width * height / picture.height))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _clip(box: Sequence[float], size: tuple[int, int]) -> _Corners:
    """Corners within the picture, the second never before the first."""
    right, bottom = size[0] - 1, size[1] - 1
    x1, y1 = min(max(box[0], 0), right), min(max(box[1], 0), bottom)
    return x1, y1, min(max(box[2], x1), right), min(max(box[3], y1), bottom)


@lru_cache(maxsize=32)
def _font(size: int) -> _Font:
    return ImageFont.load_default(size=size)


def _fitting(text: str, font: _Font, width: int) -> _Font:
    """The font, or a smaller one in which the text is no wider than this, if there is one."""
    wide = _text_size(text, font)[0]
    if wide <= width or not isinstance(font, ImageFont.FreeTypeFont):
        return font
    return _font(max(_SMALLEST_FONT, int(font.size * max(width, 1) / wide)))


def _text_size(text: str, font: _Font) -> tuple[int, int]:
    """Width of the text and height of a line, the same for every text: labels align."""
    left, _, right, _ = font.getbbox(text)
    _, top, _, bottom = font.getbbox("Ag")
    return round(right - left), round(bottom - top)


def _text_colour(ground: Colour) -> Colour:
    """Black or white, whichever has more contrast (luma of ITU-R BT.601)."""
    red, green, blue = ground
    return _BLACK if 299 * red + 587 * green + 114 * blue > 128_000 else _WHITE
