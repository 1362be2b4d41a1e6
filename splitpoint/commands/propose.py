"""`splitpoint propose`: search again with observed latencies and report the gain."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options

if TYPE_CHECKING:
    from collections.abc import Callable

    from common.errors import SplitpointError
    from search.proposal.propose import ProposalOutcome, ProposalSpec


def run(
    bundle: Annotated[Path, typer.Option(help="The bundle that is served.")],
    tables: Annotated[Path, typer.Option(help="Latency tables: JSON, or a cloud's --store file.")],
    calibration: options.Calibration,
    out: Annotated[
        Path,
        typer.Option(help="Where to write a better bundle: a folder, or a file ending in .zip."),
    ],
    link: Annotated[
        str | None, typer.Option(help="Link to search for; default: the link of the bundle.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device in the tables; default: the device of the bundle.")
    ] = None,
    threshold: Annotated[
        str, typer.Option(help="Minimum relative gain in latency for a new bundle.")
    ] = "5%",
    auto: Annotated[
        bool, typer.Option("--auto", help="Replace the served bundle by the better one.")
    ] = False,
    every: Annotated[
        str | None, typer.Option(help="Repeat forever with this pause in between, e.g. 24h.")
    ] = None,
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    evaluation: options.Evaluation = None,
    annotations: options.Annotations = None,
    max_images: options.MaxImages = 128,
    refined_cuts: options.RefinedCuts = 1,
    format_trials: options.FormatTrials = 3,
    adapt_steps: options.AdaptSteps = 200,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
) -> None:
    """Search again with latency tables; write a bundle if it is faster than the served one.

    Model, device, link and limits are those of the served bundle's search.
    """
    from common.link.link import parse_link
    from common.progress import Stages
    from search.proposal.propose import ProposalSpec, propose  # heavy: brings torch
    from search.source import parse_image_size, parse_input
    from splitpoint.durations import parse_duration, parse_percent

    every_s = None if every is None else parse_duration(every)
    spec = ProposalSpec(
        bundle=bundle,
        tables=tables,
        calibration=calibration,
        out=out,
        link=None if link is None else parse_link(link),
        device=device,
        threshold=parse_percent(threshold),
        deploy=auto,
        weights=weights,
        card=card,
        image_size=None if image_size is None else parse_image_size(image_size),
        input=None if input is None else parse_input(input),
        evaluation=evaluation,
        annotations=annotations,
        max_images=max_images,
        refined_cuts=refined_cuts,
        format_trials=format_trials,
        adapt_steps=adapt_steps,
        runtime=runtime,
        cache=options.cache_of(cache, no_cache),
    )

    def make() -> None:
        with Stages() as stages:
            outcome = propose(spec, stages)
        _report(outcome, spec)

    if every_s is None:
        make()
    else:
        _for_ever(make, every_s, every or "")


def _for_ever(make: "Callable[[], None]", every_s: float, every: str) -> NoReturn:
    import signal

    from search.proposal.propose import repeat

    def stop(_number: int, _frame: object) -> NoReturn:
        raise SystemExit(0)  # unwinds as an error would: partial output is removed

    def failed(error: "SplitpointError") -> None:
        typer.echo(f"error: {' '.join(str(error).split())}; again in {every}", err=True)

    signal.signal(signal.SIGTERM, stop)
    repeat(make, every_s, failed)


def _report(outcome: "ProposalOutcome", spec: "ProposalSpec") -> None:
    from search.proposal.difference import verdict

    difference = outcome.difference
    typer.echo(verdict(difference))
    for each in difference.assumptions()[:3]:
        typer.echo(f"  {each}")
    if outcome.written is None:
        typer.echo(
            f"{spec.bundle} is still the best: less than {spec.threshold:.1%} would be gained; "
            "nothing was written"
        )
        best, first = difference.old[0].plan.name, difference.first
        if best != first:
            typer.echo(f"  but its plan {best!r} is faster now than its first, {first!r}")
    elif outcome.previous is None:
        typer.echo(f"wrote {outcome.written}; its difference.md says what has changed")
    else:
        typer.echo(
            f"{outcome.written} is the new bundle, the old one is {outcome.previous}. Restart "
            f"`splitpoint cloud --bundle {outcome.written}` first, then every `splitpoint edge`: "
            "until then they serve what they have loaded"
        )
