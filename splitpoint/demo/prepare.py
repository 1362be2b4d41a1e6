"""Prepares the containers' data: a bundle and a video in one folder, made once and kept.

    weights, video (fetched, checked) -> pictures -> search -> FOLDER/bundle, FOLDER/video.mp4

    python -m splitpoint.demo.prepare FOLDER

A step that was finished before is kept, also by a run that was killed in the next one. The bundle
is kept as long as the same search would make it: with other settings, pictures, code or libraries,
or on another processor, it is searched again (search/kept.py).
"""

import argparse
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import SplitpointError
from common.link.link import Link, parse_link
from common.progress import Stages
from common.sizes import parse_size

if TYPE_CHECKING:
    from search.request import Request
    from splitpoint.demo.frames import DemoPictures

MODEL = "yolov3-tiny"
LINK = "3mbit/20ms"
# The whole network does not fit, so that there is something to split.
EDGE_MEMORY = "4MiB"


@dataclass(frozen=True)
class Effort:
    """Effort of the search, which determines how long it takes; see `search.request.Request`."""

    refined_cuts: int
    narrow_cuts: int
    format_trials: int = 2
    adapt_steps: int = 60
    context_steps: int = 500


EFFORTS = {"usual": Effort(refined_cuts=1, narrow_cuts=1), "quick": Effort(0, 0)}


@dataclass(frozen=True)
class Aim:
    """Target of the search: link, edge and limits of the bundle.

    Attributes:
        link: Between edge and cloud.
        edge_memory_bytes: Limit on weights and activations on the edge; None for no limit.
        device: The edge.
        max_drop: Largest loss of accuracy, in points.
    """

    link: Link
    edge_memory_bytes: int | None
    device: str = "this-machine"
    max_drop: float = 3.0


def prepare(folder: Path, aim: Aim, effort: Effort, *, again: bool = False) -> None:
    """Make the bundle and the video, unless the video is there and the same search made the bundle.

    Args:
        folder: Folder for both, and for the pictures that the search fits to.
        aim: Target of the search.
        effort: Effort of the search.
        again: Whether to search even if there is a bundle.

    Raises:
        SplitpointError: If a step cannot be done.
    """
    from search.kept import search_unless_kept
    from search.zoo.download import fetch
    from search.zoo.registry import zoo_model
    from splitpoint.demo.frames import VIDEO, prepare_frames

    folder.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        video = folder / "video.mp4"
        if not video.is_file():
            _copy(fetch(VIDEO, progress=stages.stage("fetching the video"), notify=_notify), video)
        pictures = prepare_frames(folder / "frames", stages.stage("fetching pictures"), _notify)
        search_unless_kept(
            request_of(aim, effort, pictures),
            folder / "bundle",
            stages,
            again=again,
            before=lambda: fetch(
                zoo_model(MODEL).weights,
                progress=stages.stage("fetching weights"),
                notify=_notify,
            ),
        )


def request_of(aim: Aim, effort: Effort, pictures: "DemoPictures") -> "Request":
    """Build the request of the search."""
    from search.zoo.download import cache_folder
    from splitpoint import searching

    return searching.request_of(
        MODEL,
        pictures.calibration,
        aim.link,
        aim.device,
        evaluation=pictures.evaluation,
        edge_memory=aim.edge_memory_bytes,
        max_drop=aim.max_drop,
        refined_cuts=effort.refined_cuts,
        narrow_cuts=effort.narrow_cuts,
        format_trials=effort.format_trials,
        adapt_steps=effort.adapt_steps,
        context_steps=effort.context_steps,
        cache=cache_folder("search"),
    )


def _copy(source: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    shutil.copyfile(source, part)
    part.replace(target)


def _notify(text: str) -> None:
    print(f"  {text}; trying the next source", file=sys.stderr)  # noqa: T201 - a command's output


def parser() -> argparse.ArgumentParser:
    """Build the parser of the options that docker-compose.yml sets."""
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("folder", type=Path)
    options.add_argument("--link", default=LINK, help="link to search for")
    options.add_argument(
        "--edge-memory", default=EDGE_MEMORY, help="edge memory, e.g. 16MiB; empty: no limit"
    )
    options.add_argument("--effort", choices=EFFORTS, default="usual")
    options.add_argument("--again", action="store_true", help="search even if nothing changed")
    return options


def main() -> int:
    """Run as a command; returns the exit code."""
    given = parser().parse_args()
    try:
        memory = parse_size(given.edge_memory) if given.edge_memory else None
        aim = Aim(parse_link(given.link), memory)
        prepare(given.folder, aim, EFFORTS[given.effort], again=given.again)
    except SplitpointError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
