"""`splitpoint allocate`: bit widths for every head that fits, as files to inspect and edit."""

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import options


def run(
    model: options.Model,
    calibration: options.Calibration,
    out: Annotated[Path, typer.Option(help="Folder for a file of bit widths per configuration.")],
    edge_memory: options.EdgeMemory = None,
    method: Annotated[
        str, typer.Option(help="Bit allocation: exact, lagrangian, auto-split-v1 or auto-split-v2.")
    ] = "exact",
    sensitivity: Annotated[
        str, typer.Option(help="Sensitivity of layers: measured, fisher or squared.")
    ] = "measured",
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    max_images: options.MaxImages = 128,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
) -> None:
    """Choose the bit width of every layer of every head within the edge's memory."""
    from common.places import require_folder
    from common.progress import Stages
    from common.sizes import parse_size
    from common.version import __version__
    from search.cache import Cache  # heavy: brings torch
    from search.measure.held_out import set_aside_if_enough
    from search.prepare import prepare
    from search.quantization.heads import Heads
    from search.quantization.sensitivity import sensitivity_of
    from search.source import NetworkSource
    from search.stages.bit_configurations import INDEX, allocate, method_of, write

    require_folder(out)
    chosen, weighed = method_of(method), sensitivity_of(sensitivity)
    limit = None if edge_memory is None else parse_size(edge_memory)
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
            divide=set_aside_if_enough,  # the images on which `quantize` judges these widths
        )
        heads = Heads(prepared.rounder().nearest({}))

        def errors() -> dict[str, dict[int, float]]:
            return prepared.sensitivity(weighed, stages).weights

        found = allocate(prepared, heads, errors, chosen, limit, stages)
    write(out, found)
    typer.echo(f"wrote {len(found)} configurations and {out / INDEX}")
