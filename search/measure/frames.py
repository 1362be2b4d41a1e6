"""Images of the search: read, letterboxed, and held as one array."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import CalibrationError, ImageError
from common.imaging.images import SUFFIXES, list_images, read_image
from common.imaging.placement import Placement
from common.tasks.base import ImageInput

MIN_IMAGES = 8
_TOLD = 3


@dataclass(frozen=True, eq=False)
class Frames:
    """N letterboxed images, as the network gets them.

    Attributes:
        names: File names.
        pixels: (N, 3, H, W) uint8.
        letterboxes: The geometry of each.
        letterbox_ms: Median time of letterboxing one, one thread of this machine.
    """

    names: tuple[str, ...]
    pixels: NDArray[np.uint8]
    letterboxes: tuple[Placement, ...]
    letterbox_ms: float


def load_frames(
    folder: Path, geometry: ImageInput, limit: int, progress: Callable[[int, int], None]
) -> Frames:
    """Read and fit up to `limit` images, spread evenly over the folder.

    Raises:
        CalibrationError: If the folder holds too few images,
            or files among them that are no images.
    """
    paths = list_pictures(folder)
    if len(paths) < MIN_IMAGES:
        raise CalibrationError(
            f"{folder} holds {len(paths)} images: at least {MIN_IMAGES} are needed to see the "
            "range of every activation, 32 or more are better"
        )
    paths = spread(paths, limit)
    pixels, boxes, times = [], [], []
    broken: list[ImageError] = []
    for done, path in enumerate(paths, 1):
        try:
            image = read_image(path)
        except ImageError as error:
            broken.append(error)
            continue
        start = time.perf_counter()
        pixels.append(geometry.pixels(image))
        times.append(1e3 * (time.perf_counter() - start))
        boxes.append(geometry.place(image.shape[1], image.shape[0]))
        progress(done, len(paths))
    refuse_broken(folder, broken, len(paths))
    names = names_of(folder, paths)
    return Frames(names, np.stack(pixels), tuple(boxes), statistics.median(times))


def list_pictures(folder: Path) -> list[Path]:
    """Images of a folder; where it has folders alone, those of each of them, as of classes.

    Raises:
        CalibrationError: If there is no such folder, or no image in it.
    """
    folders = sorted(each for each in folder.glob("*") if each.is_dir() and each.name[0] != ".")
    direct = any(each.is_file() and each.suffix.lower() in SUFFIXES for each in folder.glob("*"))
    if direct or not folders:
        return list_images(folder)
    return [path for each in folders for path in list_images(each)]


def spread(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """Up to `limit` paths, spread evenly over all of them; None for all."""
    count = len(paths) if limit is None else min(limit, len(paths))
    return [paths[k] for k in np.unique(np.linspace(0, len(paths) - 1, count).astype(int))]


def names_of(folder: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """Names of images within their folder."""
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def refuse_broken(folder: Path, broken: Sequence[ImageError], images: int) -> None:
    """Require that no image is broken.

    Raises:
        CalibrationError: If one is; it says why of the first few.
    """
    if broken:
        raise CalibrationError(
            f"{folder}: {len(broken)} of {images} images cannot be used, repair or remove "
            "them: " + "; ".join(str(error) for error in broken[:_TOLD])
        )
