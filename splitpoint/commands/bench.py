"""`splitpoint bench`: benchmarks, run by their modules in `bench`."""

import typer

app = typer.Typer(help="Run benchmarks: compare ways to run a network.", no_args_is_help=True)

_ITS_OWN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("latency", context_settings=_ITS_OWN)
def latency(context: typer.Context) -> None:
    """Compare all ways to run YOLOv3-tiny over bandwidths and slow edges; see its own `--help`."""
    from bench.run_latency import main  # heavy: brings torch

    main(context.args)
