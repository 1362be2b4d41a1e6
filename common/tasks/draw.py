"""Results drawn onto their image, for people to look at: the end of a frame on a web page.

    (H, W, 3) image + TaskResult -> annotate -> picture -> side_by_side -> pictures to compare

How a result is drawn is the task's; boxes and lines are drawn here.

Colours are those of Okabe and Ito (2008), which stay apart under every common colour-vision
deficiency; lines and letters grow with the image.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from common.tasks.base import TaskResult, label_of

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
    result: TaskResult,
    class_names: Sequence[str],
    caption: str | None = None,
) -> Image.Image:
    """Draw a result onto a copy of its image.

    Args:
        image: (H, W, 3) RGB.
        result: Of this image; boxes are in its pixels.
        class_names: One per class; a class beyond is labelled with its number.
        caption: Written on a strip above the picture, which becomes higher by it.

    Returns:
        An RGB picture, W wide.
    """
    picture = Image.fromarray(image)
    result.draw(picture, class_names)
    if caption is None:
        return picture
    return _captioned(picture, caption, _caption_letters(picture, caption))


def draw_boxes(
    picture: Image.Image,
    boxes: Sequence[Sequence[float]],
    scores: Sequence[float],
    classes: Sequence[int],
    class_names: Sequence[str],
) -> None:
    """Draw boxes and labels onto a picture; the first box lies on top.

    Args:
        picture: RGB.
        boxes: Corners x1, y1, x2, y2 in pixels; what lies outside the picture is cut off.
        scores: One per box.
        classes: Index of each box's class.
        class_names: One per class; a class beyond is labelled with its number.
    """
    draw = ImageDraw.Draw(picture)
    scale = min(picture.size)
    line = max(1, round(scale / 200))
    font = _font(max(11, round(scale / 30)))
    drawable = [
        (index, score, _clip(box, picture.size))
        for index, score, box in zip(classes, scores, boxes, strict=True)
        if all(map(math.isfinite, box))
    ]
    for index, _, corners in reversed(drawable):
        _draw_box(draw, corners, class_colour(index), line)
    # Labels after all boxes, so that no line crosses a label.
    taken: list[_Corners] = []
    for index, score, corners in drawable:
        text = f"{label_of(index, class_names)} {score:.2f}"
        taken.append(_draw_label(draw, text, corners, class_colour(index), line, font, taken))


def draw_lines(picture: Image.Image, lines: Sequence[str]) -> None:
    """Write lines into the top left corner of a picture, as many as fit; each on its colour."""
    draw = ImageDraw.Draw(picture)
    scale = min(picture.size)
    pad = max(2, round(scale / 100))
    top = 0
    for index, text in enumerate(lines):
        font = _fitting(text, _font(max(11, round(scale / 25))), picture.width - 2 * pad)
        width, height = _text_size(text, font)
        bottom = top + height + 2 * pad
        if bottom > picture.height:
            break
        colour = class_colour(index)
        draw.rectangle((0, top, width + 2 * pad - 1, bottom - 1), fill=colour)
        middle = (pad, (top + bottom) / 2)
        draw.text(middle, text, fill=_text_colour(colour), font=font, anchor="lm")
        top = bottom


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
    if not images or len(images) != len(captions):
        raise ValueError(
            "expected pictures and one caption for each, "
            f"got {len(images)} pictures and {len(captions)} captions"
        )
    height = min(image.height for image in images)
    pictures = [_scaled_to(image.convert("RGB"), height) for image in images]
    letters = min(map(_caption_letters, pictures, captions))
    panels = [
        _captioned(picture, caption, letters)
        for picture, caption in zip(pictures, captions, strict=True)
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
    taken: Sequence[_Corners],
) -> _Corners:
    """Draw a label inside the picture and return where it is.

    Above the box where there is room, else inside its top, else further down; where labels are too
    many to keep apart, over another.
    """
    picture_width, picture_height = draw.im.size
    pad = 2 * line
    font = _fitting(text, font, picture_width - 2 * pad)
    width, height = _text_size(text, font)
    width, height = width + 2 * pad, height + 2 * pad
    x1, y1, _, _ = corners
    left = max(0, min(round(x1), picture_width - width))
    places = [
        (left, top, left + width - 1, top + height - 1)
        for top in (round(y1) + step * height for step in range(-1, 5))
        if 0 <= top <= picture_height - height
    ] or [(left, 0, left + width - 1, height - 1)]
    place = next((p for p in places if not any(_overlap(p, t) for t in taken)), places[0])
    draw.rectangle(place, fill=colour)
    middle = (place[0] + pad, place[1] + height / 2)
    draw.text(middle, text, fill=_text_colour(colour), font=font, anchor="lm")
    return place


def _caption_letters(picture: Image.Image, caption: str) -> int:
    """Size of letters, in pixels, that suits the picture and lets the caption fit its width."""
    size = max(12, round(min(picture.size) / 22))
    font = _fitting(caption, _font(size), picture.width - size)
    return int(font.size) if isinstance(font, ImageFont.FreeTypeFont) else size


def _captioned(picture: Image.Image, caption: str, letters: int) -> Image.Image:
    """The picture under a strip with its caption."""
    strip = 2 * letters
    canvas = Image.new("RGB", (picture.width, picture.height + strip), _CAPTION_GROUND)
    canvas.paste(picture, (0, strip))
    draw = ImageDraw.Draw(canvas)
    middle = (letters / 2, strip / 2)
    draw.text(middle, caption, fill=_WHITE, font=_font(letters), anchor="lm")
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


def _overlap(first: _Corners, second: _Corners) -> bool:
    return (
        first[0] <= second[2]
        and second[0] <= first[2]
        and first[1] <= second[3]
        and second[1] <= first[3]
    )


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
    return _BLACK if 299 * red + 587 * green + 114 * blue > 100_000 else _WHITE
