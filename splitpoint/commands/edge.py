"""`splitpoint edge`: run images through the split, play a camera, or serve REST."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from common.errors import ImageError, SettingsError
from common.runtime.registry import DEFAULT_RUNTIME
from common.sizes import parse_size
from splitpoint.commands import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.tasks.base import ResultSettings
    from edge.app import EdgeSettings
    from edge.capture.sources import Camera
    from edge.detector import Detector, Outcome


@dataclass(frozen=True)
class _Played:
    """Options of a camera: source to open, whether to loop, frames per second."""

    source: str
    loop: bool
    fps: float | None


@dataclass(frozen=True)
class _Reported:
    """Settings of what is reported, with the names of the only classes, if any.

    Attributes:
        settings: The settings, but for classes.
        classes: Names of the only classes; all, if empty.
        usual_iou: Whether the IoU threshold is that of the bundle.
    """

    settings: "ResultSettings"
    classes: tuple[str, ...]
    usual_iou: bool

    def of(self, detector: "Detector") -> "ResultSettings":
        """The settings for a bundle, which knows its classes and its IoU threshold."""
        usual = detector.bundle.manifest.settings if self.usual_iou else self.settings
        return replace(
            self.settings,
            iou_threshold=usual.iou_threshold,
            classes=detector.task.class_indices(self.classes),
        )


def run(
    bundle: Annotated[Path, typer.Option(help="The bundle: a folder or its zip file.")],
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE...", help="Images to run, in this order.")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Address of `splitpoint cloud`.")
    ] = None,
    link: Annotated[
        str | None,
        typer.Option(
            envvar="SPLITPOINT_LINK",
            help="Link to the cloud to emulate: 3mbit/20ms, or a trace.csv.",
        ),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option(help="Fixed plan, by name or start of its digest; default: adaptive."),
    ] = None,
    threads: options.HeadThreads = 1,
    runtime: options.Runtime = DEFAULT_RUNTIME,
    edge_id: Annotated[
        str | None,
        typer.Option(help="Name of this edge in the cloud; default: this machine's host name."),
    ] = None,
    report: Annotated[
        Literal["results", "times", "none"],
        typer.Option(help="What to report to the cloud about edge-only frames."),
    ] = "times",
    device: Annotated[
        str | None,
        typer.Option(help="Name of this edge in latency tables; default: its CPU model."),
    ] = None,
    tables: Annotated[
        Path | None,
        typer.Option(help="Latency tables with times of this edge: JSON, or a cloud's --store."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for all heads together, e.g. 4MiB; plans that do not fit are left out; "
            "default: the limit of the search."
        ),
    ] = None,
    score_threshold: Annotated[float, typer.Option(help="Lowest score of a detection.")] = 0.25,
    iou_threshold: options.IouThreshold = None,
    max_detections: Annotated[
        int, typer.Option(help="The most detections of a picture, best first.")
    ] = 100,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="Report only this class; may be repeated."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", help="Write results; detections in COCO's result format."),
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write pictures with their results drawn.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Source to play: a folder of pictures, a video file, rtsp://... or /dev/videoN."
        ),
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop", help="With --source: start again at its end.")
    ] = False,
    fps: Annotated[
        float | None,
        typer.Option(
            help="With --source: frames per second; default: the source's frame rate "
            "(2 for folders)."
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve REST here, alone or together with --source."),
    ] = None,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="With --listen or --source: JSON file, written once frames are served."),
    ] = None,
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            envvar="SPLITPOINT_TLS_CA",
            help="TLS to the cloud: CA certificate (PEM) that signed the cloud's.",
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(envvar="SPLITPOINT_TLS_CERT", help="TLS: this edge's certificate (PEM)."),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(envvar="SPLITPOINT_TLS_KEY", help="Private key of --tls-cert (PEM)."),
    ] = None,
) -> None:
    """Run the network through the split: on images, a camera's frames, or for REST clients."""
    from common.http.log_limits import quiet_grpc

    quiet_grpc()
    if bool(images) == (listen is not None or source is not None):
        raise SettingsError(
            "give images to run, or --source to play, or --listen HOST:PORT to serve REST: "
            "one of them, or the last two"
        )
    if source is None and (loop or fps is not None):
        raise SettingsError("--loop and --fps belong to --source")
    for option, value in (
        ("--score-threshold", score_threshold),
        ("--iou-threshold", iou_threshold),
    ):
        if value is not None and not 0 < value <= 1:
            raise SettingsError(f"{option} {value}: expected a number in (0, 1]")
    from common.link.trace import link_or_trace
    from common.rpc.tls import ClientTls
    from common.tasks.base import ResultSettings
    from edge.app import EdgeSettings, open_edge, own_name

    wanted = ResultSettings(score_threshold, max_detections=max_detections)
    if iou_threshold is not None:
        wanted = replace(wanted, iou_threshold=iou_threshold)
    reported = _Reported(wanted, tuple(classes or ()), iou_threshold is None)
    settings = EdgeSettings(
        cloud=cloud,
        link=None if link is None else link_or_trace(link),
        tls=ClientTls(tls_ca, tls_cert, tls_key),
        report=report,
        plan=plan,
        edge_id=own_name() if edge_id is None else edge_id,
        device=device,
        threads=threads,
        runtime=runtime,
        tables=tables,
        memory_bytes=None if memory is None else parse_size(memory),
    )
    if not images:
        if json_file is not None or annotate is not None:
            raise SettingsError("--json and --annotate belong to images")
        played = None if source is None else _Played(source, loop, fps)
        _serve(bundle, settings, reported, played, listen, ready_file)
        return
    if ready_file is not None:
        raise SettingsError("--ready-file belongs to --listen or --source")
    from common.bundle.bundle import Bundle

    with Bundle.open(bundle) as opened, closing(open_edge(opened, settings)) as detector:
        detector.check_ready()  # so that the first image does not pay for connecting
        failed = _run_images(detector, images, reported.of(detector), json_file, annotate)
    if failed:
        raise typer.Exit(ImageError.exit_code)


def _serve(
    bundle: Path,
    settings: "EdgeSettings",
    reported: "_Reported",
    played: _Played | None,
    listen: str | None,
    ready_file: Path | None,
) -> None:
    """Serve REST, play a camera, or both in one process."""
    import os

    from common.bundle.bundle import Bundle
    from common.http.serving import (
        bind,
        check_ready_file,
        configure_logging,
        parse_address,
        port_of,
    )
    from edge.app import open_edge
    from edge.capture.player import GRACE_S, Player, play_until_stopped
    from edge.metrics import EdgeMetrics
    from edge.rest import create_app

    configure_logging()
    check_ready_file(ready_file)
    with ExitStack() as stack:
        # Before the models: a port in use or a missing camera fails at once.
        listener = (
            None
            if listen is None
            else stack.enter_context(bind(*parse_address(listen), "--listen"))
        )
        camera, period_s = (None, 0.0) if played is None else _camera(played)
        # REST clients may name any plan, so all of them are opened.
        every = listener is not None
        opened = stack.enter_context(Bundle.open(bundle))
        detector = stack.enter_context(closing(open_edge(opened, settings, every_plan=every)))
        wanted = reported.of(detector)
        metrics = EdgeMetrics(detector, camera)
        player = None
        if camera is not None:
            player = Player(detector, camera, metrics, wanted, period_s=period_s)
        app = create_app(
            detector,
            settings=wanted,
            metrics=metrics,
            player=player,
        )
        fields: dict[str, object] = {"pid": os.getpid()}
        if listener is not None:
            fields["rest"] = port_of(listener)
        play_until_stopped(player, detector, app, listener, fields, ready_file, grace_s=GRACE_S)


def _camera(played: _Played) -> "tuple[Camera, float]":
    """Open a camera, not started yet; returns it and its frame period in seconds."""
    from edge.capture.sources import Camera, open_feed

    feed = open_feed(played.source)
    camera = Camera(feed, loop=played.loop, fps=played.fps)
    return camera, 1 / (played.fps or feed.rate())


def _run_images(
    detector: "Detector",
    images: list[Path],
    settings: "ResultSettings",
    json_file: Path | None,
    annotated: Path | None,
) -> int:
    """Run images one by one; returns how many could not be read or written."""
    from common.imaging.images import EDGE_LIMITS, read_image

    console = Console()
    records: list[dict[str, object]] = []
    failed = 0
    ids, names = image_ids(images), file_names(images)
    for path, image_id, name in zip(images, ids, names, strict=True):
        try:
            image = read_image(path, EDGE_LIMITS)
            outcome = detector.detect(image, settings=settings)
        except ImageError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            failed += 1
            continue
        _show(console, path, outcome, detector)
        # COCO's tools read `image_id` and ignore the file name, which is for human readers.
        found = outcome.result.to_records(image_id, detector.task.class_names)
        records += [{**each, "file_name": str(path)} for each in found]
        if annotated is not None:
            _save_annotated(image, annotated / name, outcome, detector)
    if json_file is not None:
        _write(json_file, json.dumps(records, indent=1) + "\n")
    return failed


def _show(console: Console, path: Path, outcome: "Outcome", detector: "Detector") -> None:
    title = f"{path.name}: {outcome.plan.name} ({outcome.plan.kind})"
    result = outcome.result.to_table(detector.task.class_names)
    found = Table(*result.columns, title=title, title_justify="left")
    for row in result.rows:
        found.add_row(*row)
    times = Table("stage", "ms")
    times.columns[1].justify = "right"
    for stage, value in outcome.times_ms.items():
        times.add_row(stage, f"{value:.2f}")
    times.add_section()
    times.add_row("latency", f"{outcome.latency_ms:.2f}")
    console.print(found)
    console.print(times)
    console.print(f"{outcome.uplink_bytes} bytes sent\n")


def image_ids(images: Sequence[Path]) -> list[int]:
    """Assign every picture a unique id.

    COCO names its files by image id: such a number is kept if it is unique among the pictures. The
    others are numbered from 1, skipping the numbers that are in a name.
    """
    pictures = [path.absolute() for path in images]
    claims = {picture: int(picture.stem) for picture in pictures if _is_number(picture.stem)}
    claimed = Counter(claims.values())
    ids = {picture: claim for picture, claim in claims.items() if claimed[claim] == 1}
    free = (number for number in count(1) if number not in claimed)
    for picture in pictures:
        if picture not in ids:
            ids[picture] = next(free)
    return [ids[picture] for picture in pictures]


def file_names(images: Sequence[Path]) -> list[str]:
    """Assign every picture's annotated copy a unique .jpg name within one folder."""
    stems = Counter(path.stem.casefold() for path in images)
    taken = {stem for stem, times in stems.items() if times == 1}
    return [
        f"{path.stem if stems[path.stem.casefold()] == 1 else _free_name(path.stem, taken)}.jpg"
        for path in images
    ]


def _free_name(stem: str, taken: set[str]) -> str:
    """Return the stem, with the first number that makes it unique if needed; marks it as taken."""
    candidates: Iterator[str] = (stem if n == 1 else f"{stem}-{n}" for n in count(1))
    name = next(each for each in candidates if each.casefold() not in taken)
    taken.add(name.casefold())
    return name


def _is_number(stem: str) -> bool:
    return stem.isdecimal() and stem.isascii()


def _save_annotated(
    image: "NDArray[np.uint8]", file: Path, outcome: "Outcome", detector: "Detector"
) -> None:
    from common.tasks.draw import annotate

    names = detector.task.class_names
    caption = f"{outcome.plan.name}  {outcome.latency_ms:.0f} ms  {outcome.uplink_bytes} B"
    picture = annotate(image, outcome.result, names, caption=caption)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file, quality=90)
    except OSError as error:
        raise SettingsError(f"{file}: cannot be written: {error.strerror or error}") from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}") from error
