"""`splitpoint search`: find the plans for a model, a device, a link and limits."""

from pathlib import Path
from typing import Annotated

import typer

from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options, search_options


def run(
    model: options.Model,
    link: options.Link,
    calibration: options.Calibration,
    out: Annotated[Path, typer.Option(help="Bundle to write: a folder, or a file ending in .zip.")],
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    device: options.Device = "this-machine",
    edge_memory: options.EdgeMemory = None,
    strategy: search_options.Strategy = "splitpoint",
    quantizer: search_options.Quantizer = None,
    max_drop: Annotated[
        float,
        typer.Option(
            min=0, help="Most accuracy a plan may lose, in points, with 90 % confidence per plan."
        ),
    ] = 3.0,
    evaluation: options.Evaluation = None,
    annotations: options.Annotations = None,
    iou_threshold: Annotated[
        float,
        typer.Option(help="Overlap at which detections are duplicates, to measure accuracy."),
    ] = 0.45,
    max_detections: Annotated[
        int, typer.Option(help="The most detections of a picture that count.")
    ] = 100,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Count only this class; may be repeated."),
    ] = None,
    no_raw_image: Annotated[
        bool, typer.Option("--no-raw-image", help="Exclude plans that send pixels off the edge.")
    ] = False,
    max_bytes: Annotated[
        str | None,
        typer.Option(help="Limit on the bytes of a frame on the uplink: a number or, e.g., 4KB."),
    ] = None,
    cloud_threads: options.CloudThreads = 1,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    max_images: options.MaxImages = 128,
    narrow_cuts: Annotated[
        int, typer.Option(min=0, help="Number of cuts to quantize below 8 bits to fit the memory.")
    ] = 2,
    refined_cuts: options.RefinedCuts = 1,
    format_trials: options.FormatTrials = 3,
    adapt_steps: options.AdaptSteps = 200,
    video: Annotated[
        bool,
        typer.Option(
            "--video", help="Frames come in sequence: code each one conditioned on the last."
        ),
    ] = False,
    tables: Annotated[
        Path | None,
        typer.Option(help="Latency tables to predict from: JSON, or a cloud's --store file."),
    ] = None,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    explain: Annotated[
        Path | None,
        typer.Option(help="Also plot bytes against accuracy to this .svg, .png or .pdf file."),
    ] = None,
) -> None:
    """Search cut, bit widths and wire format; write a bundle of Pareto-optimal plans."""
    from rich.console import Console
    from rich.markdown import Markdown

    from common.places import require_file_place
    from common.progress import Stages
    from search.measure.held_out import overlap_in_words
    from search.reports.markdown import markdown, sure
    from search.reports.plot import check_format, plot_result
    from splitpoint.searching import search  # heavy: brings torch

    if explain is not None:
        check_format(explain)
        require_file_place(explain)
    with Stages() as stages:
        result = search(
            model,
            calibration=calibration,
            link=link,
            out=out,
            device=device,
            edge_memory=edge_memory,
            strategy=strategy,
            reporter=stages,
            weights=weights,
            card=card,
            image_size=image_size,
            input=input,
            evaluation=evaluation,
            annotations=annotations,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
            classes=tuple(classes or ()),
            quantizer=quantizer,
            max_drop=max_drop,
            no_raw_image=no_raw_image,
            max_bytes=max_bytes,
            cloud_threads=cloud_threads,
            runtime=runtime,
            max_images=max_images,
            narrow_cuts=narrow_cuts,
            refined_cuts=refined_cuts,
            format_trials=format_trials,
            adapt_steps=adapt_steps,
            video=video,
            tables=tables,
            cache=options.cache_of(cache, no_cache),
        )
    Console().print(Markdown(markdown(result)))
    warning = overlap_in_words(result.also_fitted, len(result.evaluation_images))
    if warning is not None:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(sure(result))
    if explain is not None:
        plot_result(result, explain)
        typer.echo(f"wrote {explain}")
    typer.echo(f"wrote {out}")
