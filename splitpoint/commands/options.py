"""Options that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from common.runtime.registry import RUNTIMES

MAX_THREADS = max(8, 4 * (os.cpu_count() or 1))
"""Upper limit on threads: more only take memory on a machine with this number of cores."""

Model = Annotated[
    str,
    typer.Option(
        help="Model of the zoo, see `splitpoint models list`; an ONNX file, with its model card "
        "beside it (detector.onnx, detector.toml); or package.module:factory, a function without "
        "arguments that returns a torch module: importing it runs its code."
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights file; default: the fetched one. Of a torch module a state dict, of which no "
        "code is run."
    ),
]
Card = Annotated[
    Path | None,
    typer.Option(
        help="Model card; default: the .toml file beside an ONNX file. For a model of the zoo it "
        "says only what is another, such as labels."
    ),
]
ImageSize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Size of the network's image, such as 512 or 512x384 (height x width).",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        metavar="NAME=SHAPE",
        help="Shape of an ONNX file's input, such as images=1x3x416x416, if it declares none or "
        "a wrong one.",
    ),
]
Calibration = Annotated[
    Path, typer.Option(help="Folder of calibration images, representative of the edge's input.")
]
Evaluation = Annotated[
    Path | None,
    typer.Option(
        help="Folder of images to measure accuracy on; default: a quarter of the calibration "
        "images, at least 16, held out."
    ),
]
Annotations = Annotated[
    Path | None,
    typer.Option(
        help="Truth about the evaluation images: COCO instances file; for a classifier labels as "
        "lines of file and class, or the folder of class folders."
    ),
]
MaxImages = Annotated[int, typer.Option(min=8, help="Most images used of each folder.")]
Link = Annotated[str, typer.Option(help="Bandwidth and round-trip time, e.g. 3mbit/20ms.")]
Device = Annotated[str, typer.Option(help="Device profile of the edge.")]
EdgeMemory = Annotated[
    str | None,
    typer.Option(help="Limit on weights + peak activations on the edge, e.g. 16MiB."),
]
CloudThreads = Annotated[
    int, typer.Option(min=1, max=MAX_THREADS, help="Threads of the cloud's runtime.")
]
HeadThreads = Annotated[
    int, typer.Option(min=1, max=MAX_THREADS, help="Threads within one run of a head.")
]
TailThreads = Annotated[
    int, typer.Option(min=1, max=MAX_THREADS, help="Threads within one inference.")
]
Workers = Annotated[int, typer.Option(min=1, max=MAX_THREADS, help="Frames served at once.")]
Runtime = Annotated[
    str,
    typer.Option(
        metavar=f"[{'|'.join(RUNTIMES)}]",
        help="Runtime of the models; others than the first are extras of the same name.",
    ),
]
RefinedCuts = Annotated[
    int,
    typer.Option(
        min=0,
        help="Number of cuts to refine (rate-distortion search, context model, tail fine-tuning).",
    ),
]
FormatTrials = Annotated[
    int, typer.Option(min=1, help="Most wire formats per refined cut to fine-tune a tail for.")
]
AdaptSteps = Annotated[
    int, typer.Option(min=0, help="Fine-tuning steps of a tail per wire format; 0 to skip it.")
]
Cache = Annotated[
    Path | None, typer.Option(help="Cache folder for intermediate results; default: the user's.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", help="Recompute everything, and cache nothing.")
]


def cache_of(cache: Path | None, no_cache: bool) -> Path | None:
    """Return the folder of the cache for intermediate results; None for no cache.

    Raises:
        SettingsError: If both options are given.
    """
    from common.errors import SettingsError
    from search.zoo.download import cache_folder

    if no_cache and cache is not None:
        raise SettingsError("--cache and --no-cache contradict each other: give one of them")
    return None if no_cache else cache or cache_folder("search")
