"""The command line: one command per task, one line per error.

Commands are functions in `splitpoint.commands`; this module registers them and turns every
SplitpointError into `error: ...` on stderr with the error's exit code.
"""

import sys
from typing import Annotated

import typer

from bench.processes import ended_by_sigterm
from common.errors import SplitpointError
from common.version import __version__
from splitpoint.commands import (
    allocate,
    bench,
    cloud,
    demo,
    edge,
    evaluate,
    explain,
    models,
    profile,
    propose,
    quantize,
    search,
)

# What an installation without all extras may lack, and the extra that brings it.
_EXTRA_OF = {
    "av": "search,edge,cloud,bench",
    "fastapi": "edge,cloud",
    "httpx": "search,edge,cloud,bench",
    "matplotlib": "search",
    "networkx": "search",
    "onnx": "search",
    "pycocotools": "search",
    "scipy": "search",
    "torch": "search",
    "prometheus_client": "edge,cloud",
    "uvicorn": "edge,cloud",
    "yaml": "search",
}
_EX_UNAVAILABLE = 69

app = typer.Typer(
    name="splitpoint",
    help="Run one neural network on two machines: a quantized head on the edge, the tail in the "
    "cloud.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.run)
app.add_typer(models.app, name="models")
app.command("search")(search.run)
app.command("propose")(propose.run)
app.command("profile")(profile.run)
app.command("allocate")(allocate.run)
app.command("quantize")(quantize.run)
app.command("evaluate")(evaluate.run)
app.command("explain")(explain.run)
app.command("edge")(edge.run)
app.command("cloud")(cloud.run)
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"splitpoint {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code of a SplitpointError. Everything else raises SystemExit: success, wrong usage
        (2), Ctrl-C (130), SIGTERM (143), and a closed output pipe, as by `| head`.
    """
    try:
        with ended_by_sigterm():
            app(arguments)
    except SplitpointError as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        extra = _EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        typer.echo(
            f"error: this needs {error.name}, which is not installed: run "
            f"pip install -c constraints.txt -e '.[{extra}]' in the checkout",
            err=True,
        )
        return _EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main())
