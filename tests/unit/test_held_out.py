"""Held-out pictures: who judges is decided by content or by time, and nothing is fitted to them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import CalibrationError
from common.imaging.placement import Placement
from common.tasks.base import ImageInput
from search.measure.frames import Frames, load_frames
from search.measure.held_out import (
    MIN_JUDGING,
    digests,
    in_both,
    overlap_in_words,
    set_aside,
    set_aside_if_enough,
    without_copies,
)
from tests.networks import SIZE, pictures

PIXELS = pictures(80)


def frames_of(pixels: NDArray[np.uint8], names: list[str] | None = None) -> Frames:
    names = names or [f"{k:03}.png" for k in range(len(pixels))]
    box = Placement.fit(SIZE[1], SIZE[0], SIZE)
    return Frames(tuple(names), pixels, (box,) * len(pixels), 0.1)


def judging(frames: Frames, *, video: bool = False) -> Frames:
    held_out = set_aside(frames, video=video).judging
    assert held_out is not None
    return held_out


@pytest.mark.parametrize(("total", "judges"), [(24, 16), (64, 16), (65, 17), (80, 20)])
def test_a_quarter_judges_and_at_least_sixteen(total: int, judges: int) -> None:
    division = set_aside(frames_of(PIXELS[:total]))
    assert division.judging is not None
    assert len(division.judging.names) == judges
    together = {*digests(division.judging), *digests(division.fitting)}
    assert together == set(digests(frames_of(PIXELS[:total])))
    assert len(division.fitting.names) == total - judges


def test_names_and_their_order_do_not_matter() -> None:
    order = np.random.default_rng(0).permutation(len(PIXELS))
    renamed = frames_of(PIXELS[order], [f"other {k}.jpg" for k in range(len(PIXELS))])
    assert set(digests(judging(renamed))) == set(digests(judging(frames_of(PIXELS))))


def test_copies_under_other_names_change_nothing(tmp_path: Path) -> None:
    for folder, copies in (("plain", 1), ("copied", 3)):
        (tmp_path / folder).mkdir()
        for number, picture in enumerate(PIXELS[:40]):
            for copy in range(copies):
                path = tmp_path / folder / f"{copy}-{number:03}.png"
                Image.fromarray(picture.transpose(1, 2, 0)).save(path)
    geometry = ImageInput(height=SIZE[0], width=SIZE[1])
    plain, copied = (
        set_aside(without_copies(load_frames(tmp_path / name, geometry, 200, lambda *_: None)))
        for name in ("plain", "copied")
    )
    assert plain.judging is not None
    assert copied.judging is not None
    assert digests(plain.judging) == digests(copied.judging)
    assert digests(plain.fitting) == digests(copied.fitting)


def test_the_last_stretch_of_a_video_judges() -> None:
    division = set_aside(frames_of(PIXELS), video=True)
    assert division.judging is not None
    assert division.fitting.names == tuple(f"{k:03}.png" for k in range(60))
    assert division.judging.names == tuple(f"{k:03}.png" for k in range(60, 80))


def test_too_few_pictures_are_refused_with_what_is_needed() -> None:
    with pytest.raises(CalibrationError, match=r"20 .*at least 24 .*8 to fit and 16 .*add 4 "):
        set_aside(frames_of(PIXELS[:20]))
    message = r"24 .*at least 32 .*16 to fit .*--evaluation; --refined-cuts 0 needs 24"
    with pytest.raises(CalibrationError, match=message):
        set_aside(frames_of(PIXELS[:24]), least_fitting=16)


def test_where_too_few_could_judge_all_fit() -> None:
    assert set_aside_if_enough(frames_of(PIXELS[:23])).judging is None
    assert set_aside_if_enough(frames_of(PIXELS[:24])).judging is not None


def test_pictures_that_fit_and_judge_are_named() -> None:
    fitting = frames_of(PIXELS[:20])
    judges = frames_of(PIXELS[18 : 18 + MIN_JUDGING], [f"eval {k}" for k in range(MIN_JUDGING)])
    assert in_both(judges, fitting) == ("eval 0", "eval 1")
    assert in_both(frames_of(PIXELS[40:]), fitting) == ()
    warning = overlap_in_words(("eval 0", "eval 1"), 16)
    assert warning is not None
    assert warning.startswith("2 of 16 evaluation pictures are calibration pictures, too")
    assert overlap_in_words((), 16) is None
