"""`splitpoint profile`: measure a network, a bundle or a remote edge; write latency tables."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

from common.errors import SettingsError
from common.runtime.registry import DEFAULT_RUNTIME
from splitpoint.commands import options

if TYPE_CHECKING:
    from common.bundle.bundle import Bundle
    from common.progress import Stages
    from common.tables.rows import LatencyRow, RuntimeTarget
    from search.source import NetworkSource

_T = TypeVar("_T")

_LARGEST = 8192

_USES: Mapping[str, frozenset[str]] = {
    "model": frozenset(
        {
            *("calibration", "out", "stats", "times", "weights", "max_images", "cloud_threads"),
            *("card", "image_size", "input"),
            *("runtime", "cache", "no_cache", "device", "tables"),
        }
    ),
    "bundle": frozenset(
        {"device", "tables", "threads", "runtime", "budget", "cloud_side", "picture"}
    ),
    "remote": frozenset({"cloud", "tables", "budget"}),
}
"""Options that are allowed with each kind of profile, by the option that selects it."""


def run(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="Profile a model, named as for `splitpoint search`."),
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="With --model: folder of calibration images.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --model: folder to write to.")] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="With --model: only the layers' statistics.")
    ] = False,
    times: Annotated[
        bool, typer.Option("--times", help="With --model: only the times of all cuts.")
    ] = False,
    weights: options.Weights = None,
    card: options.Card = None,
    image_size: options.ImageSize = None,
    input: options.Input = None,  # noqa: A002 - the option's name
    max_images: options.MaxImages = 128,
    cloud_threads: options.CloudThreads = 1,
    cache: options.Cache = None,
    no_cache: options.NoCache = False,
    bundle: Annotated[
        Path | None, typer.Option(help="Profile a bundle's plans: a folder or its zip file.")
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, max=options.MAX_THREADS, help="With --bundle: threads within one run."),
    ] = 1,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    cloud_side: Annotated[
        bool, typer.Option("--cloud-side", help="With --bundle: also time the cloud's stages.")
    ] = False,
    picture: Annotated[
        str,
        typer.Option(metavar="WIDTHxHEIGHT", help="With --bundle: size of the camera's pictures."),
    ] = "640x480",
    remote: Annotated[
        str | None, typer.Option(metavar="EDGE", help="Have a connected edge profile itself.")
    ] = None,
    cloud: Annotated[
        str | None,
        typer.Option(metavar="http://HOST:PORT", help="With --remote: the cloud's REST API."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Name of this machine in latency tables; default: its CPU model."),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(help="Latency table to write to: a .json file, or a cloud's --store file."),
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0.1, max=600, help="Time budget of the measurement, in seconds.")
    ] = 60.0,
) -> None:
    """Profile a model (--model), a bundle on this device (--bundle), or a remote edge (--remote).

    --model writes layers.csv and layers.json (a row per layer), statistics.npz (histograms),
    samples.npz (values of every tensor on some images) and cuts.csv (times of every cut, edge and
    cloud); without --stats or --times, all of them. --bundle times the edge's stages of every plan
    as they are deployed, and runs with the packages of an edge.
    """
    from splitpoint import tables as latency_tables

    use = _use(_given(context))
    if use == "model" and device is not None and tables is None:
        raise SettingsError("--device names the rows of --tables: give --tables FILE, too")
    if tables is not None:
        latency_tables.check_target(tables)
    if use == "model":
        rows = _model(
            _source(_required(model, "--model"), weights, card, image_size, input),
            _required(calibration, "--calibration"),
            _required(out, "--out"),
            stats=stats,
            times=times,
            max_images=max_images,
            cloud_threads=cloud_threads,
            cache=options.cache_of(cache, no_cache),
            device=_named(device) if tables is not None else None,
            runtime=runtime,
        )
    elif use == "bundle":
        named = _named(device)
        size = _size(picture)
        place = _place(named, threads, runtime)
        rows = _bundle(_required(bundle, "--bundle"), place, runtime, budget, cloud_side, size)
    else:
        rows = _remote(_required(remote, "--remote"), _required(cloud, "--cloud"), budget)
    if rows and (use != "model" or tables is not None):
        title = f"{rows[0].device}, {rows[0].runtime}"
        Console().print(latency_tables.as_table(rows, title))
    if tables is not None:
        latency_tables.keep(rows, tables)
        typer.echo(f"wrote {tables}")


def _source(
    model: str,
    weights: Path | None,
    card: Path | None,
    image_size: str | None,
    input: str | None,  # noqa: A002 - the option's name
) -> "NetworkSource":
    """Return the place that a network comes from."""
    from search.source import NetworkSource  # heavy: brings torch

    return NetworkSource.parse(
        model, weights=weights, card=card, image_size=image_size, input=input
    )


def _model(
    source: "NetworkSource",
    calibration: Path,
    out: Path,
    *,
    stats: bool,
    times: bool,
    max_images: int,
    cloud_threads: int,
    cache: Path | None,
    device: str | None,
    runtime: str,
) -> "list[LatencyRow]":
    """Write a model's statistics and times; returns latency table rows if a device is named."""
    from common.places import require_folder
    from common.progress import Stages
    from common.version import __version__
    from search.cache import Cache  # heavy: brings torch
    from search.prepare import prepare
    from search.stages.profile import cut_rows, time_cuts, write_cuts, write_statistics

    if stats and not times and device is not None:
        raise SettingsError("--tables keeps times, and --stats leaves them out: give one of them")
    require_folder(out)
    kept = Cache(cache, __version__)
    rows: list[LatencyRow] = []
    with Stages() as stages:
        prepared = prepare(source, calibration, kept, stages, max_images=max_images)
        written: list[Path] = []
        if stats or not times:
            written += write_statistics(prepared, out)
        if times or not stats:
            timed = time_cuts(prepared, cloud_threads, stages, runtime)
            written.append(write_cuts(timed, out))
            if device is not None:
                now_s = time.time()
                rows = cut_rows(timed, prepared.network, device, cloud_threads, now_s, runtime)
    for path in written:
        typer.echo(f"wrote {path}")
    return rows


def _bundle(
    path: Path,
    place: "RuntimeTarget",
    runtime: str,
    budget_s: float,
    cloud_side: bool,
    picture: tuple[int, int],
) -> "list[LatencyRow]":
    """Time a bundle's plans on this machine."""
    from common.bundle.bundle import Bundle
    from common.progress import Stages

    with Bundle.open(path) as opened, Stages() as stages:
        return _timed(opened, place, runtime, budget_s, cloud_side, picture, stages)


def _timed(
    bundle: "Bundle",
    place: "RuntimeTarget",
    runtime: str,
    budget_s: float,
    cloud_side: bool,
    picture: tuple[int, int],
    stages: "Stages",
) -> "list[LatencyRow]":
    from common.tables.rows import profiled
    from edge.head import open_plans
    from edge.profile import frame_of, frames_of, profile

    plans = open_plans(bundle, threads=place.threads, runtime=runtime)
    frame = frame_of(bundle)
    each_s = budget_s / 2 if cloud_side else budget_s
    show = stages.stage("timing the edge's stages")
    times = profile(plans, frame, budget_s=each_s, picture=picture, progress=show)
    rows = profiled(times, bundle.plans, "edge", place, time.time())
    if cloud_side:
        from cloud import profile as cloud
        from cloud.tails import Tails

        show = stages.stage("timing the cloud's stages")
        tails = Tails(bundle, threads=place.threads, runtime=runtime)
        times = cloud.profile(tails, frames_of(plans, frame), budget_s=each_s, progress=show)
        rows += profiled(times, bundle.plans, "cloud", place, time.time())
    return rows


def _place(device: str, threads: int, runtime: str) -> "RuntimeTarget":
    """Return what a bundle's plans are timed on."""
    from common.runtime.registry import runtime_name
    from common.tables.rows import RuntimeTarget

    return RuntimeTarget(device, runtime_name(threads, runtime), threads)


def _remote(edge: str, cloud: str, budget_s: float) -> "list[LatencyRow]":
    """Have a remote edge time its plans."""
    from splitpoint.remote import profile_edge

    with Console(stderr=True).status(f"waiting for {edge} to time its plans"):
        return profile_edge(cloud, edge, budget_s)


def _size(text: str) -> tuple[int, int]:
    """Parse a picture's width and height.

    Raises:
        SettingsError: If it is not WIDTHxHEIGHT, each from 1 to 8192.
    """
    found = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (0, 0) if found is None else (int(found[1]), int(found[2]))
    if not 0 < min(size) <= max(size) <= _LARGEST:
        raise SettingsError(f"--picture {text}: expected WIDTHxHEIGHT, such as 1280x720")
    return size


def _given(context: typer.Context) -> set[str]:
    """Names of the options that were given on the command line."""
    return {
        name
        for name in context.params
        if (source := context.get_parameter_source(name)) and source.name == "COMMANDLINE"
    }


def _use(given: set[str]) -> str:
    """Return the kind of profile: model, bundle or remote.

    Raises:
        SettingsError: If not exactly one is given, or an option does not belong to it.
    """
    uses = [use for use in _USES if use in given]
    if len(uses) != 1:
        raise SettingsError(
            "give one of --model NAME, --bundle DIR (on this device) and --remote "
            f"EDGE (through its cloud), got {' and '.join(f'--{u}' for u in uses) or 'none'}"
        )
    (use,) = uses
    for name in sorted(given - _USES[use] - {use}):
        belongs = " or ".join(f"--{u}" for u, names in _USES.items() if name in names)
        raise SettingsError(f"--{name.replace('_', '-')} belongs to {belongs}, not to --{use}")
    return use


def _required(value: _T | None, option: str) -> _T:
    if value is None:
        raise SettingsError(f"{option} is missing; see `splitpoint profile --help`")
    return value


def _named(device: str | None) -> str:
    """Return this machine's name in latency tables: `device`, or its CPU model if None."""
    from common.machine import cpu_name
    from common.rpc.messages import MAX_EDGE_ID_CHARACTERS

    name = cpu_name()[:MAX_EDGE_ID_CHARACTERS] if device is None else device
    if not 1 <= len(name) <= MAX_EDGE_ID_CHARACTERS:
        raise SettingsError(f"--device: expected 1 to {MAX_EDGE_ID_CHARACTERS} characters")
    return name
