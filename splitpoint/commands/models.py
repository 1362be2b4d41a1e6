"""`splitpoint models`: list the models of the zoo and fetch their weights."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List the models of the zoo and fetch their weights.", no_args_is_help=True)


@app.command("list")
def list_models() -> None:
    """List the models, their weights and whether the cache has them."""
    from rich.console import Console
    from rich.table import Table

    from search.zoo.download import cached
    from search.zoo.registry import MODELS

    table = Table("model", "weights", "sha256", "in the cache")
    for model in MODELS.values():
        entry = model.weights
        path = cached(entry)
        table.add_row(
            model.name,
            f"{entry.size_bytes / 1e6:.1f} MB",
            (entry.sha256 or "not known")[:12],
            "no" if path is None else str(path),
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
