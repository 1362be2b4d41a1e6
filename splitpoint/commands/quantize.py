"""`splitpoint quantize`: heads of given bit widths, measured as they would be deployed."""

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import options, search_options


def run(
    model: options.Model,
    calibration: options.Calibration,
    widths: Annotated[
        list[Path],
        typer.Option(
            help="File of bit widths, or a folder of `splitpoint allocate`; can be repeated."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the heads and the summary.")],
    cut: Annotated[
        str | None, typer.Option(help="Last node of the head, if the file does not name it.")
    ] = None,
    quantizer: search_options.Quantizer = None,
    equalise: Annotated[
        bool,
        typer.Option("--equalise", help="Equalise channel ranges across convolutions first."),
    ] = False,
    link: options.Link = "3mbit/20ms",
    device: options.Device = "this-machine",
    evaluation: options.Evaluation = None,
    annotations: options.Annotations = None,
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    max_images: options.MaxImages = 128,
    cloud_threads: options.CloudThreads = 1,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
) -> None:
    """Quantize one bit-width configuration, or all of a folder; write heads and a summary."""
    from rich.console import Console
    from rich.markdown import Markdown

    from common.errors import SettingsError
    from common.link.link import parse_link
    from common.places import require_folder
    from common.progress import Stages
    from common.version import __version__
    from search.cache import Cache  # heavy: brings torch
    from search.measure.held_out import fit_all, set_aside
    from search.prediction.devices import device_profile
    from search.prepare import prepare
    from search.quantization.recipes import recipe
    from search.source import NetworkSource
    from search.stages.bit_configurations import read
    from search.stages.quantize_all import Setting, as_markdown, collect, write_summary

    how, profile, parsed = recipe(quantizer or "default"), device_profile(device), parse_link(link)
    if annotations is not None and evaluation is None:
        raise SettingsError("--annotations needs --evaluation, the folder of the annotated images")
    require_folder(out)
    source = NetworkSource.parse(
        model, weights=weights, card=card, image_size=image_size, input=input
    )
    kept = Cache(options.cache_of(cache, no_cache), __version__)
    with Stages() as stages:
        prepared = prepare(
            source,
            calibration,
            kept,
            stages,
            max_images=max_images,
            equalised=equalise,
            divide=set_aside if evaluation is None else fit_all,
        )
        configurations = read(widths, prepared.graph, cut)
        judging = prepared.judging(evaluation, stages, max_images)
        setting = Setting(judging, annotations, parsed, profile, cloud_threads)
        out.mkdir(parents=True, exist_ok=True)
        found = collect(prepared, prepared.rounder(how), configurations, setting, out, stages)
    write_summary(found, out)
    Console().print(Markdown(as_markdown(found)))
    typer.echo(f"wrote {len(found.rows)} heads and {out / 'summary.csv'}")
