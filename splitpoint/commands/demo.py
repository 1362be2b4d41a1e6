"""`splitpoint demo`: the whole product on this machine, on real pictures."""

from pathlib import Path
from typing import Annotated

import typer


def run(
    folder: Annotated[
        Path, typer.Option(help="For pictures, and for what is kept between runs.")
    ] = Path(".demo"),
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where the figures go; default: in the folder.")
    ] = None,
) -> None:
    """Map which way to run the network wins where: a slow edge, over three emulated links."""
    from splitpoint.demo.run import run_demo

    run_demo(folder, json_file)
