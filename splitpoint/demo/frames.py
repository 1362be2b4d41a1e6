"""The demo's pictures: frames of a street camera's video that ships inside a published package."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
from PIL import Image

from common.errors import CalibrationError
from search.weights import Notify, PipSource, Progress, WeightsEntry, fetch

VIDEO: Final = WeightsEntry(
    "sports2d-demo.mp4",
    3_968_304,
    "d9a66417185647b112304b57093f0c180f37a768e6a14daca75ca541f3b78039",
    (
        PipSource(
            "sports2d==0.8.34",
            "733b6db70742636ae9c35d870c22bd416582f579abd5881bee93a14bb0e2655d",
            member="demo.mp4",
        ),
    ),
)
"""A fixed camera in a park: one person jumps down from a wall, another one walks past."""

FITTED: Final = tuple(range(42, 154, 4))
"""Frames that the search fits to, from when the first person is seen."""
JUDGING: Final = tuple(range(158, 190, 2))
"""Frames that judge its plans: the camera goes on, and nothing was fitted to them."""
SHOWN: Final = tuple(range(196, 230, 5))
"""Frames that are sent, later still: no search has seen them."""

_QUALITY = 95


@dataclass(frozen=True)
class Pictures:
    """The camera's pictures, by what they are for.

    Attributes:
        calibration: Folder of those that the search fits to.
        evaluation: Folder of those that judge its plans.
        shown: Those that are sent.
    """

    calibration: Path
    evaluation: Path
    shown: tuple[Path, ...]


def prepare_frames(folder: Path, progress: Progress, notify: Notify) -> Pictures:
    """Write the frames as JPEG files, unless they are there.

    Raises:
        SplitpointError: If the video cannot be fetched or read.
    """
    parts = {"calibration": FITTED, "evaluation": JUDGING, "shown": SHOWN}
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
    return Pictures(
        folder / "calibration", folder / "evaluation", tuple(wanted[index] for index in SHOWN)
    )


def _save(image: Image.Image, path: Path) -> None:
    part = path.with_suffix(".part")
    image.save(part, "JPEG", quality=_QUALITY)
    part.replace(path)
