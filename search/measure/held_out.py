r"""Held-out pictures: the part of the calibration pictures that judges plans and fits nothing.

    calibration pictures --by content, or by time--> fitting: ranges, rounding, contexts, tails, ...
                                                 \-> judging: accuracy of plans as deployed

What was fitted to a picture does better on it than on pictures to come. So a search without an
evaluation folder sets a quarter aside, at least 16. Which ones is decided by the SHA-256 of their
letterboxed pixels: names, their order and copies change nothing, and equal pictures are never on
both sides. Neighbouring frames of a video are near copies of each other, so there the last stretch
judges.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.bundle.manifest import JudgedBy
from common.errors import CalibrationError
from search.cache import digest
from search.measure.frames import MIN_IMAGES, Frames

MIN_JUDGING = 16
JUDGING_SHARE = 4
"""One calibration picture in this many is held out to judge plans."""


@dataclass(frozen=True, eq=False)
class Division:
    """Calibration pictures without duplicates, divided into fitting and judging ones.

    Attributes:
        fitting: Pictures that everything is fitted to.
        judging: Pictures held out to judge plans; None if all are used for fitting.
    """

    fitting: Frames
    judging: Frames | None = None


@dataclass(frozen=True, eq=False)
class Judging:
    """Pictures that accuracy is measured on.

    Attributes:
        frames: The pictures.
        judged_by: Where they come from.
        also_fitted: Names of those that are among the fitting pictures, too.
    """

    frames: Frames
    judged_by: JudgedBy
    also_fitted: tuple[str, ...] = ()

    @property
    def warning(self) -> str | None:
        """One line on pictures that both fit and judge; None if there are none."""
        return overlap_in_words(self.also_fitted, len(self.frames.names))


def overlap_in_words(also_fitted: Sequence[str], images: int) -> str | None:
    """A warning of evaluation pictures that are calibration pictures as well; None if none are.

    Args:
        also_fitted: Their names.
        images: How many evaluation pictures there are.
    """
    if not also_fitted:
        return None
    return (
        f"{len(also_fitted)} of {images} evaluation pictures are calibration pictures, too, e.g. "
        f"{also_fitted[0]}; plans lose less on what was fitted to them than on pictures to come: "
        "take these out of one of the folders"
    )


def judged_in_words(judged_by: JudgedBy, images: int) -> str:
    """Name the source and number of the evaluation pictures, for reports."""
    if judged_by == "held-out":
        return f"{images} held-out calibration pictures"
    return f"{images} pictures of the evaluation folder"


def without_copies(frames: Frames) -> Frames:
    """Remove duplicate pictures; each keeps the first of its names."""
    first: dict[str, int] = {}
    for index, each in enumerate(digests(frames)):
        first.setdefault(each, index)
    return frames if len(first) == len(frames.names) else _chosen(frames, sorted(first.values()))


def fit_all(frames: Frames) -> Division:
    """Use all pictures for fitting."""
    return Division(frames)


def set_aside(frames: Frames, *, least_fitting: int = MIN_IMAGES, video: bool = False) -> Division:
    """Hold out a quarter of the pictures, at least 16.

    Args:
        frames: Calibration pictures without copies.
        least_fitting: How many must be left to fit.
        video: Whether they are the frames of a video, in order.

    Raises:
        CalibrationError: If there are too few pictures.
    """
    total = len(frames.names)
    if total < least_fitting + MIN_JUDGING:
        raise CalibrationError(
            f"{total} different calibration pictures: at least {least_fitting + MIN_JUDGING} are "
            f"needed, {least_fitting} to fit and {MIN_JUDGING} others to judge plans on; add "
            f"{least_fitting + MIN_JUDGING - total} or more (--max-images is the most that are "
            f"used), or give pictures to judge on by --evaluation{_fewer(least_fitting)}"
        )
    judging = max(MIN_JUDGING, -(-total // JUDGING_SHARE))
    if video:
        chosen = set(range(total - judging, total))
    else:
        known = digests(frames)
        chosen = set(sorted(range(total), key=known.__getitem__)[:judging])
    return Division(
        _chosen(frames, [k for k in range(total) if k not in chosen]),
        _chosen(frames, sorted(chosen)),
    )


def set_aside_if_enough(frames: Frames) -> Division:
    """Hold pictures out with `set_aside`, or use all for fitting if they are too few to judge."""
    enough = len(frames.names) >= MIN_IMAGES + MIN_JUDGING
    return set_aside(frames) if enough else fit_all(frames)


def in_both(judging: Frames, fitting: Frames) -> tuple[str, ...]:
    """Names of judging pictures that are among the fitting ones."""
    known = set(digests(fitting))
    return tuple(
        name for name, each in zip(judging.names, digests(judging), strict=True) if each in known
    )


def digests(frames: Frames) -> list[str]:
    """SHA-256 of the letterboxed pixels of each picture."""
    return [digest(picture) for picture in frames.pixels]


def _fewer(least_fitting: int) -> str:
    if least_fitting == MIN_IMAGES:
        return ""
    return f"; --refined-cuts 0 needs {MIN_IMAGES + MIN_JUDGING}"


def _chosen(frames: Frames, indices: Sequence[int]) -> Frames:
    return Frames(
        names=tuple(frames.names[k] for k in indices),
        pixels=np.ascontiguousarray(frames.pixels[list(indices)]),
        letterboxes=tuple(frames.letterboxes[k] for k in indices),
        letterbox_ms=frames.letterbox_ms,
    )
