"""`splitpoint search`: find the plans for a model, a device, a link and limits."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    model: Annotated[str, typer.Option(help="Model of the zoo; see `splitpoint models list`.")],
    link: Annotated[str, typer.Option(help="Bandwidth and round trip, e.g. 3mbit/20ms.")],
    calibration: Annotated[Path, typer.Option(help="Folder of images like those to come.")],
    out: Annotated[Path, typer.Option(help="Bundle to write: a folder, or a file ending in .zip.")],
    weights: Annotated[
        Path | None, typer.Option(help="Weights file, if not the fetched one.")
    ] = None,
    device: Annotated[str, typer.Option(help="Device profile of the edge.")] = "this-machine",
    edge_memory: Annotated[
        str | None, typer.Option(help="Weights + activations on the edge, e.g. 16MiB.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="Who chooses: splitpoint or a baseline, e.g. dads."),
    ] = "splitpoint",
    quantizer: Annotated[
        str | None, typer.Option(help="Recipe for layers of few bits, if not the usual one.")
    ] = None,
    max_drop: Annotated[
        float, typer.Option(min=0, help="Accuracy that may be lost, in points.")
    ] = 3.0,
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder of images to measure accuracy on.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO instances file of the evaluation images.")
    ] = None,
    no_raw_image: Annotated[
        bool, typer.Option("--no-raw-image", help="Pixels may not leave the edge.")
    ] = False,
    cloud_threads: Annotated[int, typer.Option(min=1, help="Threads of the cloud.")] = 1,
    max_images: Annotated[int, typer.Option(min=8, help="Images used, of each folder.")] = 64,
    narrow_cuts: Annotated[
        int, typer.Option(min=0, help="Cuts that get weights of fewer than 8 bits, to fit.")
    ] = 2,
    refined_cuts: Annotated[
        int, typer.Option(min=0, help="Cuts with searched formats, context coding, adapted tails.")
    ] = 1,
    format_trials: Annotated[int, typer.Option(min=1, help="Formats tried of each of them.")] = 3,
    adapt_steps: Annotated[
        int, typer.Option(min=0, help="Steps of tail adaptation for each; 0 for none.")
    ] = 200,
    video: Annotated[
        bool, typer.Option("--video", help="Frames will come in sequence: code them by the last.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Folder for intermediate results, if not the usual one.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Work everything out again, keep nothing.")
    ] = False,
    explain: Annotated[
        Path | None, typer.Option(help="Also plot bytes against accuracy (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Search the cut, the widths and the wire format; write a bundle of Pareto plans."""
    from rich.console import Console
    from rich.markdown import Markdown

    from common.link import parse_link
    from search.bundling import search_to  # heavy: brings torch
    from search.devices import device_profile
    from search.plot import check_format, plot_found
    from search.report import markdown
    from search.request import Request
    from search.strategies import known_strategy
    from search.weights import cache_folder
    from splitpoint import __version__
    from splitpoint.progress import Stages
    from splitpoint.sizes import parse_size

    request = Request(
        model=model,
        link=parse_link(link),
        device=device_profile(device),
        calibration=calibration,
        weights=weights,
        evaluation=evaluation,
        annotations=annotations,
        strategy=known_strategy(strategy),
        quantizer=quantizer,
        edge_memory_bytes=None if edge_memory is None else parse_size(edge_memory),
        max_drop=max_drop,
        no_raw_image=no_raw_image,
        cloud_threads=cloud_threads,
        max_images=max_images,
        narrow_cuts=narrow_cuts,
        refined_cuts=refined_cuts,
        format_trials=format_trials,
        adapt_steps=adapt_steps,
        video=video,
        cache=None if no_cache else cache or cache_folder("search"),
        software_version=__version__,
    )
    if explain is not None:
        check_format(explain)
    with Stages() as stages:
        found = search_to(out, request, stages)
    Console().print(Markdown(markdown(found)))
    if explain is not None:
        plot_found(found, explain)
        typer.echo(f"wrote {explain}")
    typer.echo(f"wrote {out}")
