"""`splitpoint models`: the models of the zoo, their weights, and what is in a network."""

from pathlib import Path
from typing import Annotated

import typer

from splitpoint.commands import options

app = typer.Typer(
    help="List the models of the zoo, fetch their weights, and look into any network.",
    no_args_is_help=True,
)


@app.command("list")
def list_models() -> None:
    """List the models, their weights and whether the cache has them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from search.zoo.download import cached
    from search.zoo.registry import MODELS

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for title in ("model", "task", "image", "weights", "sha256", "fetched"):
        table.add_column(title, no_wrap=True)
    for model in MODELS.values():
        entry = model.weights
        height, width = model.image_size
        size = "" if entry.size_bytes is None else f"{entry.size_bytes / 1e6:.1f} MB"
        table.add_row(
            model.name,
            model.task,
            f"{height}x{width}",
            size,
            (entry.sha256 or "")[:10],
            "no" if cached(entry) is None else "yes",
        )
    Console().print(table)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Name of a model.")],
    file: Annotated[
        Path | None, typer.Option(help="Local weights file to use instead of a download.")
    ] = None,
) -> None:
    """Fetch and verify the weights of a model."""
    from common.progress import Stages
    from search.zoo.download import fetch as fetch_weights
    from search.zoo.registry import zoo_model

    with Stages() as stages:
        progress = stages.stage(f"fetching {name}")
        path = fetch_weights(
            zoo_model(name).weights,
            file=file,
            progress=progress,
            notify=lambda text: typer.echo(text, err=True),
        )
    typer.echo(path)


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(help="An ONNX file; or another model, as of `splitpoint search`.")
    ],
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    write_card: Annotated[
        bool,
        typer.Option(
            help="Write a first model card beside an ONNX file that has none, to be checked."
        ),
    ] = True,
) -> None:
    """Show inputs, outputs, operators and where each can run, cuts and memory of a network."""
    from rich.console import Console
    from rich.markdown import Markdown

    from search.inspection import inspect_network
    from search.reports.inspection import first_card, markdown
    from search.source import NetworkSource

    source = NetworkSource.parse(
        model, weights=weights, card=card, image_size=image_size, input=input
    )
    found = inspect_network(source)
    Console().print(Markdown(f"# {model}\n\n{markdown(found)}"))
    if write_card and source.model_file is not None and source.card_file is None:
        path = source.model_file.with_suffix(".toml")
        path.write_text(first_card(found), "utf-8")
        typer.echo(f"wrote {path}: check it before you search")
