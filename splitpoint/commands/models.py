"""`splitpoint models`: list the models of the zoo and fetch their weights."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List the models of the zoo and fetch their weights.", no_args_is_help=True)


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
