"""`splitpoint demo`: the whole product on this machine, on real pictures."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    folder: Annotated[
        Path, typer.Option(help="Folder for pictures and for results kept between runs.")
    ] = Path(".demo"),
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="JSON file for results; default: figures.json in --folder."),
    ] = None,
) -> None:
    """Compare split, image upload and edge-only on a slow edge over three emulated links."""
    from splitpoint.demo.run import run_demo

    run_demo(folder, json_file)
