"""Drawing: what is marked, what is left alone, and that nothing leaves the picture."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from common.tasks.detections import Detections
from common.tasks.draw import PALETTE, annotate, class_colour, side_by_side
from common.tasks.labels import CLASS_NAMES

GREY = 90


def ground(width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def found(*boxes: tuple[float, float, float, float], index: int = 0) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4),
        np.linspace(0.9, 0.5, count, dtype=np.float32),
        np.full(count, index, np.int32),
    )


def marked(picture: Image.Image) -> NDArray[np.bool_]:
    changed: NDArray[np.bool_] = (np.asarray(picture) != GREY).any(axis=2)
    return changed


class TestAnnotate:
    def test_without_detections_the_image_is_as_it_was(self) -> None:
        picture = annotate(ground(), Detections.empty(), CLASS_NAMES)
        assert picture.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(picture), ground())

    def test_the_source_is_not_drawn_on(self) -> None:
        image = ground()
        annotate(image, found((50, 50, 100, 100)), CLASS_NAMES)
        np.testing.assert_array_equal(image, ground())

    def test_a_box_has_the_colour_of_its_class_and_is_hollow(self) -> None:
        picture = annotate(ground(), found((100, 100, 200, 180), index=3), CLASS_NAMES)
        assert picture.getpixel((150, 180)) == class_colour(3)
        assert picture.getpixel((200, 140)) == class_colour(3)
        assert not marked(picture)[105:175, 105:195].any()

    def test_a_label_stands_above_its_box(self) -> None:
        changed = marked(annotate(ground(), found((100, 100, 200, 180)), CLASS_NAMES))
        assert changed[88:99, 102:110].all()
        assert not changed[:80].any()

    @pytest.mark.parametrize(
        "box",
        [
            (0, 0, 320, 240),  # no room above
            (300, 100, 320, 120),  # no room to the right
            (310, 235, 320, 240),
            (-500, -500, 900, 900),  # beyond the picture
            (50, 50, 50, 50),  # without area
            (100, 100, 40, 40),  # corners exchanged
        ],
    )
    def test_a_label_stays_whole(self, box: tuple[float, float, float, float]) -> None:
        free = annotate(ground(), found((100, 100, 200, 180)), CLASS_NAMES)
        rows, columns = marked(free)[:99].nonzero()
        label = np.asarray(free)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        picture = np.asarray(annotate(ground(), found(box), CLASS_NAMES))
        windows = np.lib.stride_tricks.sliding_window_view(picture, label.shape)
        assert (windows == label).all(axis=(3, 4, 5)).any()

    def test_labels_of_equal_boxes_stand_apart(self) -> None:
        box = (100.0, 100.0, 200.0, 180.0)
        one = marked(annotate(ground(), found(box), CLASS_NAMES)).sum()
        two = marked(annotate(ground(), found(box, box), CLASS_NAMES)).sum()
        assert two > one * 1.2

    def test_boxes_that_are_not_finite_are_left_out(self) -> None:
        picture = annotate(ground(), found((np.nan, 0, 9, 9), (0, 0, np.inf, 9)), CLASS_NAMES)
        assert not marked(picture).any()

    @pytest.mark.parametrize("names", [[], ["a" * 200], ["猫"], [""]])
    def test_class_names_of_any_kind(self, names: list[str]) -> None:
        assert annotate(ground(), found((9, 9, 99, 99)), names).size == (320, 240)

    def test_lines_grow_with_the_image(self) -> None:
        def line_width(scale: int) -> int:
            box = (100 * scale, 100 * scale, 200 * scale, 180 * scale)
            picture = annotate(ground(320 * scale, 240 * scale), found(box), CLASS_NAMES)
            return int(marked(picture)[170 * scale, : 150 * scale].sum())

        assert line_width(1) < line_width(4) < line_width(16)

    def test_a_caption_is_added_above(self) -> None:
        picture = annotate(ground(), Detections.empty(), CLASS_NAMES, caption="split, 42 ms")
        assert picture.width == 320
        assert picture.height > 240
        np.testing.assert_array_equal(np.asarray(picture)[-240:], ground())

    @given(
        size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
        box=st.tuples(*[st.floats(-100, 200, width=32)] * 4),
    )
    @settings(max_examples=60)
    def test_any_box_on_any_picture(
        self, size: tuple[int, int], box: tuple[float, float, float, float]
    ) -> None:
        assert annotate(ground(*size), found(box), CLASS_NAMES, "caption").width == size[0]


class TestSideBySide:
    def test_pictures_get_equal_heights_and_keep_their_shape(self) -> None:
        row = side_by_side([Image.new("RGB", (100, 100)), Image.new("RGB", (400, 200))], ["a", "b"])
        one = side_by_side([Image.new("RGB", (100, 100))], ["a"])
        assert row.height == one.height
        assert 300 < row.width < 320

    def test_three_pictures_in_order(self) -> None:
        colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
        row = side_by_side([Image.new("RGB", (90, 60), c) for c in colours], ["r", "g", "b"])
        bottom = [row.getpixel((x, row.height - 1)) for x in (45, row.width // 2, row.width - 45)]
        assert bottom == colours

    @pytest.mark.parametrize(("images", "captions"), [(0, 0), (1, 0), (1, 2)])
    def test_every_picture_needs_a_caption(self, images: int, captions: int) -> None:
        with pytest.raises(ValueError, match="one caption for each"):
            side_by_side([Image.new("RGB", (9, 9))] * images, ["caption"] * captions)

    def test_a_long_caption_stays_on_its_picture(self) -> None:
        row = side_by_side([Image.new("RGB", (40, 30))], ["a caption far too long " * 9])
        assert row.width == 40


def test_colours_are_distinct_and_stable() -> None:
    assert len(set(PALETTE)) == len(PALETTE)
    assert class_colour(2) == class_colour(2 + len(PALETTE))
