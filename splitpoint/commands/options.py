"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

MAX_THREADS = max(8, 4 * (os.cpu_count() or 1))
"""More threads than this only take memory, on any machine of so many cores."""

Model = Annotated[str, typer.Option(help="Model of the zoo; see `splitpoint models list`.")]
Weights = Annotated[Path | None, typer.Option(help="Weights file, if not the fetched one.")]
Calibration = Annotated[Path, typer.Option(help="Folder of images like those to come.")]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        help="Folder of images to measure accuracy on; without, a quarter of the calibration "
        "images, at least 16, is set aside for it."
    ),
]
Annotations = Annotated[
    Path | None, typer.Option(help="COCO instances file of the evaluation images.")
]
MaxImages = Annotated[int, typer.Option(min=8, help="Images used, of each folder.")]
Link = Annotated[str, typer.Option(help="Bandwidth and round trip, e.g. 3mbit/20ms.")]
Device = Annotated[str, typer.Option(help="Device profile of the edge.")]
EdgeMemory = Annotated[
    str | None, typer.Option(help="Weights + activations on the edge, e.g. 16MiB.")
]
CloudThreads = Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Threads of the cloud.")]
HeadThreads = Annotated[
    int, typer.Option(min=1, max=MAX_THREADS, help="Threads within one run of a head.")
]
TailThreads = Annotated[
    int, typer.Option(min=1, max=MAX_THREADS, help="Threads within one inference.")
]
Workers = Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Frames served at once.")]
Quantizer = Annotated[
    str | None, typer.Option(help="Recipe for layers of few bits, if not the usual one.")
]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for intermediate results, if not the usual one.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Work everything out again, keep nothing.")
]


def cache_of(cache: Path | None, no_cache: bool) -> Path | None:
    """Where intermediate results are kept; None keeps nothing.

    Raises:
        SettingsError: If both options are given.
    """
    from common.errors import SettingsError
    from search.zoo.download import cache_folder

    if no_cache and cache is not None:
        raise SettingsError("--cache and --no-cache contradict each other: give one of them")
    return None if no_cache else cache or cache_folder("search")
