"""`splitpoint profile`: what the search needs to know of a network, as files to look at."""

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import options


def run(
    model: options.Model,
    calibration: options.Calibration,
    out: Annotated[Path, typer.Option(help="Folder for the tables.")],
    stats: Annotated[bool, typer.Option("--stats", help="Only the layers' statistics.")] = False,
    times: Annotated[bool, typer.Option("--times", help="Only the times of all cuts.")] = False,
    weights: options.Weights = None,
    max_images: options.MaxImages = 64,
    cloud_threads: options.CloudThreads = 1,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
) -> None:
    """Observe a network on calibration images, and time it; without --stats or --times, both.

    Writes layers.csv and layers.json (a row per layer), statistics.npz (histograms), samples.npz
    (values of every tensor on some images) and cuts.csv (times of every cut, edge and cloud).
    """
    from search.cache import Cache  # heavy: brings torch
    from search.prepare import prepare
    from search.profile import write_statistics, write_times
    from splitpoint import __version__
    from splitpoint.progress import Stages

    kept = Cache(options.cache_of(cache, no_cache), __version__)
    with Stages() as stages:
        prepared = prepare(model, calibration, kept, stages, weights=weights, max_images=max_images)
        written: list[Path] = []
        if stats or not times:
            written += write_statistics(prepared, out)
        if times or not stats:
            written += write_times(prepared, out, cloud_threads, stages)
    for path in written:
        typer.echo(f"wrote {path}")
