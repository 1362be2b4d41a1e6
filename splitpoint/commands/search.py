"""`splitpoint search`: find the plans for a model, a device, a link and limits."""

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import options


def run(
    model: options.Model,
    link: options.Link,
    calibration: options.Calibration,
    out: Annotated[Path, typer.Option(help="Bundle to write: a folder, or a file ending in .zip.")],
    weights: options.Weights = None,
    device: options.Device = "this-machine",
    edge_memory: options.EdgeMemory = None,
    strategy: Annotated[
        str,
        typer.Option(help="Who chooses: splitpoint or a baseline, e.g. dads."),
    ] = "splitpoint",
    quantizer: options.Quantizer = None,
    max_drop: Annotated[
        float,
        typer.Option(min=0, help="Accuracy that may be lost, in points; 90 % sure of each plan."),
    ] = 3.0,
    evaluation: options.Evaluation = None,
    annotations: options.Annotations = None,
    no_raw_image: Annotated[
        bool, typer.Option("--no-raw-image", help="Pixels may not leave the edge.")
    ] = False,
    cloud_threads: options.CloudThreads = 1,
    max_images: options.MaxImages = 128,
    narrow_cuts: Annotated[
        int, typer.Option(min=0, help="Cuts that get weights of fewer than 8 bits, to fit.")
    ] = 2,
    refined_cuts: Annotated[
        int, typer.Option(min=0, help="Cuts with searched formats, context coding, adapted tails.")
    ] = 1,
    format_trials: Annotated[int, typer.Option(min=1, help="Tails adapted for each of them.")] = 3,
    adapt_steps: Annotated[
        int, typer.Option(min=0, help="Steps of tail adaptation for each; 0 for none.")
    ] = 200,
    video: Annotated[
        bool, typer.Option("--video", help="Frames will come in sequence: code them by the last.")
    ] = False,
    tables: Annotated[
        Path | None,
        typer.Option(help="Latency tables to learn from: JSON, or a store of `splitpoint cloud`."),
    ] = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    explain: Annotated[
        Path | None, typer.Option(help="Also plot bytes against accuracy (.svg, .png or .pdf).")
    ] = None,
) -> None:
    """Search the cut, the widths and the wire format; write a bundle of Pareto plans."""
    from rich.console import Console
    from rich.markdown import Markdown

    from common.places import require_file_place
    from common.progress import Stages
    from search.measure.held_out import overlap_in_words
    from search.reports.markdown import markdown, sure
    from search.reports.plot import check_format, plot_found
    from splitpoint.searching import search  # heavy: brings torch

    if explain is not None:
        check_format(explain)
        require_file_place(explain)
    with Stages() as stages:
        found = search(
            model,
            calibration=calibration,
            link=link,
            out=out,
            device=device,
            edge_memory=edge_memory,
            strategy=strategy,
            reporter=stages,
            weights=weights,
            evaluation=evaluation,
            annotations=annotations,
            quantizer=quantizer,
            max_drop=max_drop,
            no_raw_image=no_raw_image,
            cloud_threads=cloud_threads,
            max_images=max_images,
            narrow_cuts=narrow_cuts,
            refined_cuts=refined_cuts,
            format_trials=format_trials,
            adapt_steps=adapt_steps,
            video=video,
            tables=tables,
            cache=options.cache_of(cache, no_cache),
        )
    Console().print(Markdown(markdown(found)))
    warning = overlap_in_words(found.also_fitted, len(found.evaluation_images))
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(sure(found))
    if explain is not None:
        plot_found(found, explain)
        typer.echo(f"wrote {explain}")
    typer.echo(f"wrote {out}")
