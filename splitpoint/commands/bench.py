"""`splitpoint bench`: measured comparisons, as their modules in `bench` run them."""

import typer

app = typer.Typer(help="Compare ways to run a network.", no_args_is_help=True)

_ITS_OWN = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command("latency", context_settings=_ITS_OWN)
def latency(context: typer.Context) -> None:
    """Every way to run YOLOv3-tiny, over bandwidths and slow edges; `--help` lists its options."""
    from bench.run_latency import main  # heavy: brings torch

    main(context.args)
