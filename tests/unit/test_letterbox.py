"""The letterbox: a picture of any shape in the input of a network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ImageError
from common.imaging.placement import PADDING, Placement, fit_image
from tests.pictures import colours

sides = st.integers(1, 5000)


class TestLetterbox:
    @pytest.mark.parametrize(
        ("image", "expected"),
        [
            ((640, 480), (416, 312, 0, 52)),  # wide
            ((480, 640), (312, 416, 52, 0)),  # high
            ((416, 416), (416, 416, 0, 0)),  # as it is
            ((100, 50), (416, 208, 0, 104)),  # scaled up
            ((500, 375), (416, 312, 0, 52)),
            ((1, 5000), (1, 416, 207, 0)),  # never without area
            ((5000, 1), (416, 1, 0, 207)),
        ],
    )
    def test_fit(self, image: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
        box = Placement.fit(*image, (416, 416))
        assert (box.resized_width, box.resized_height, box.left, box.top) == expected

    @given(sides, sides, st.integers(1, 700), st.integers(1, 700))
    def test_fit_touches_a_side_and_stays_inside(
        self, image_width: int, image_height: int, height: int, width: int
    ) -> None:
        box = Placement.fit(image_width, image_height, (height, width))
        assert box.resized_width == width or box.resized_height == height
        assert 1 <= box.resized_width <= width - 2 * box.left
        assert 1 <= box.resized_height <= height - 2 * box.top

    @given(sides, sides)
    def test_the_whole_image_maps_back_to_itself(self, width: int, height: int) -> None:
        box = Placement.fit(width, height, (416, 320))
        inside = [
            box.left,
            box.top,
            box.left + box.resized_width,
            box.top + box.resized_height,
        ]
        corners = box.to_image(np.array([inside], np.float32))
        assert corners.dtype == np.float32
        np.testing.assert_allclose(corners, [[0, 0, width, height]], rtol=1e-5)

    def test_boxes_are_clipped_to_the_image(self) -> None:
        box = Placement.fit(640, 480, (416, 416))
        corners = box.to_image(np.array([[-50, 0, 1e9, 416], [0, 0, 10, 52]], np.float32))
        np.testing.assert_allclose(corners[0], [0, 0, 640, 480])
        np.testing.assert_allclose(corners[1], [0, 0, 10 * 640 / 416, 0], rtol=1e-6)

    @pytest.mark.parametrize("sides", [(0, 1, (1, 1)), (1, -1, (1, 1)), (1, 1, (0, 1))])
    def test_sides_must_be_positive(self, sides: tuple[int, int, tuple[int, int]]) -> None:
        with pytest.raises(ImageError):
            Placement.fit(*sides)

    @pytest.mark.parametrize("size", [(416, 416), (320, 416), (1, 1)])
    @pytest.mark.parametrize("image", [(40, 30), (1, 700), (700, 1), (1, 1)])
    def test_letterbox_is_contiguous_planes(
        self, image: tuple[int, int], size: tuple[int, int]
    ) -> None:
        boxed = fit_image(colours(*image), size)
        assert boxed.shape == (3, *size)
        assert boxed.dtype == np.uint8
        assert boxed.flags.c_contiguous

    def test_the_ground_is_grey_and_the_image_centred(self) -> None:
        image = np.full((10, 20, 3), (255, 0, 7), np.uint8)
        boxed = fit_image(image, (40, 40))
        assert (boxed[:, :10] == PADDING).all()
        assert (boxed[:, 30:] == PADDING).all()
        assert (boxed[:, 10:30] == np.array([255, 0, 7])[:, None, None]).all()

    def test_an_image_that_fits_exactly_is_untouched(self) -> None:
        image = colours(40, 30)
        np.testing.assert_array_equal(fit_image(image, (30, 40)), image.transpose(2, 0, 1))

    @pytest.mark.parametrize(
        "image",
        [
            np.zeros((4, 4), np.uint8),
            np.zeros((3, 4, 4), np.uint8),
            np.zeros((4, 4, 3), np.float32),
            np.zeros((0, 4, 3), np.uint8),
        ],
    )
    def test_what_is_no_image(self, image: NDArray[np.uint8]) -> None:
        with pytest.raises(ImageError):
            fit_image(image, (416, 416))
