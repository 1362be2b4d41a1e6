"""`splitpoint search`: find the plans for a model, a device, a link and limits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import SettingsError
from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options, search_options

if TYPE_CHECKING:
    from search.constraints import Limits


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
        float | None,
        typer.Option(
            min=0,
            show_default="3",
            help="Most accuracy a plan may lose, in points, with 90 % confidence per plan.",
        ),
    ] = None,
    no_accuracy: Annotated[
        bool,
        typer.Option(
            "--no-accuracy",
            help="Measure no accuracy: a quick search of where to cut. Tensors travel as heads "
            "compute them, uploads have the usual quality, and no tail is fine-tuned.",
        ),
    ] = False,
    evaluation: options.Evaluation = None,
    annotations: options.Annotations = None,
    iou_threshold: Annotated[
        float,
        typer.Option(
            help="Overlap at which detections are duplicates: the default of the bundle's results."
        ),
    ] = 0.45,
    max_detections: Annotated[
        int, typer.Option(help="The most detections of a picture that count.")
    ] = 100,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Count only this class; may be repeated."),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="A classifier is right if the label is among so many.")
    ] = 1,
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
    from search.reports.markdown import markdown, sure, warnings
    from search.reports.plot import check_format, plot_result
    from splitpoint.searching import search  # heavy: brings torch

    limits: Limits = {
        "edge_memory": edge_memory,
        "no_raw_image": no_raw_image,
        "max_bytes": max_bytes,
    }
    if max_drop is not None:
        limits["max_drop"] = max_drop
    if explain is not None:
        if no_accuracy:
            raise SettingsError("--explain plots accuracy, and --no-accuracy measures none")
        check_format(explain)
        require_file_place(explain)
    with Stages() as stages:
        result = search(
            model,
            calibration=calibration,
            link=link,
            out=out,
            device=device,
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
            top=top,
            quantizer=quantizer,
            accuracy=not no_accuracy,
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
            **limits,
        )
    Console().print(Markdown(markdown(result)))
    for warning in warnings(result):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(sure(result))
    if explain is not None:
        plot_result(result, explain)
        typer.echo(f"wrote {explain}")
    typer.echo(f"wrote {out}")
