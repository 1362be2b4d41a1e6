"""`splitpoint edge`: run images through the split, play a camera, or serve REST."""

import json
import platform
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from common.errors import ImageError, SettingsError
from common.sizes import parse_size
from splitpoint.commands import options

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from common.bundle.bundle import Bundle
    from common.latency import PlanCost
    from common.rpc.tls import ClientTls
    from edge.capture.sources import Camera
    from edge.detector import Detector, Outcome
    from edge.stream.client import CloudClient


@dataclass(frozen=True)
class _Cloud:
    """Options of the cloud: HOST:PORT, link to emulate, files for TLS, content of reports."""

    address: str | None
    link: str | None
    tls: "ClientTls"
    report: Literal["detections", "times", "none"]


@dataclass(frozen=True)
class _Played:
    """Options of a camera: source to open, whether to loop, frames per second."""

    source: str
    loop: bool
    fps: float | None


@dataclass(frozen=True)
class _Identity:
    """Options that describe this edge.

    Attributes:
        edge_id: Its name.
        device: Its name in latency tables; its CPU model, if None.
        threads: Threads within one run of a head.
        tables: Latency tables with its times.
        memory_bytes: Limit on its heads together; that of the search, if None.
    """

    edge_id: str
    device: str | None
    threads: int
    tables: Path | None
    memory_bytes: int | None = None


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
    edge_id: Annotated[
        str | None,
        typer.Option(help="Name of this edge in the cloud; default: this machine's host name."),
    ] = None,
    report: Annotated[
        Literal["detections", "times", "none"],
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
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write detections in COCO's result format.")
    ] = None,
    annotate: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write pictures with boxes drawn.")
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
    """Detect objects through the split: in images, in a camera's frames, or for REST clients."""
    from common.http.log_limits import quiet_grpc

    quiet_grpc()
    if bool(images) == (listen is not None or source is not None):
        raise SettingsError(
            "give images to run, or --source to play, or --listen HOST:PORT to serve REST: "
            "one of them, or the last two"
        )
    if source is None and (loop or fps is not None):
        raise SettingsError("--loop and --fps belong to --source")
    if not 0 < score_threshold <= 1:
        raise SettingsError(f"--score-threshold {score_threshold}: expected a number in (0, 1]")
    identity = _Identity(
        own_name() if edge_id is None else edge_id,
        device,
        threads,
        tables,
        None if memory is None else parse_size(memory),
    )
    from common.rpc.tls import ClientTls

    way = _Cloud(cloud, link, ClientTls(tls_ca, tls_cert, tls_key), report)
    if not images:
        if json_file is not None or annotate is not None:
            raise SettingsError("--json and --annotate belong to images")
        played = None if source is None else _Played(source, loop, fps)
        _serve(bundle, way, plan, identity, score_threshold, played, listen, ready_file)
        return
    if ready_file is not None:
        raise SettingsError("--ready-file belongs to --listen or --source")
    from common.bundle.bundle import Bundle

    detector = _detector(Bundle.open(bundle), way, plan, identity)
    try:
        detector.check_ready()  # so that the first image does not pay for connecting
        failed = _run_images(detector, images, score_threshold, json_file, annotate)
    finally:
        detector.close()
    if failed:
        raise typer.Exit(ImageError.exit_code)


def _serve(
    bundle: Path,
    way: _Cloud,
    plan: str | None,
    identity: _Identity,
    score_threshold: float,
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
    from common.version import __version__
    from edge.capture.player import GRACE_S, Player, play_until_stopped
    from edge.metrics import EdgeMetrics
    from edge.rest import create_app

    configure_logging()
    check_ready_file(ready_file)
    with ExitStack() as stack:
        # Before the models: a port in use or a missing camera fails at once.
        listener = None if listen is None else stack.enter_context(bind(*parse_address(listen)))
        camera, period_s = (None, 0.0) if played is None else _camera(played)
        # REST clients may name any plan, so all of them are opened.
        every = listener is not None
        detector = _detector(Bundle.open(bundle), way, plan, identity, every=every)
        stack.callback(detector.close)
        metrics = EdgeMetrics(detector, camera)
        player = None
        if camera is not None:
            player = Player(detector, camera, metrics, score_threshold, period_s=period_s)
        app = create_app(
            detector,
            score_threshold=score_threshold,
            version=__version__,
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


def own_name() -> str:
    """Return this machine's host name, cut to the length that the cloud accepts."""
    from common.rpc.messages import MAX_EDGE_ID_CHARACTERS

    return platform.node()[:MAX_EDGE_ID_CHARACTERS] or "edge"


def _detector(
    bundle: "Bundle",
    way: _Cloud,
    plan: str | None,
    identity: _Identity,
    *,
    every: bool = False,
) -> "Detector":
    """Open the detector for a fixed plan, or an adaptive one for the plans that fit together."""
    from edge.detector import Detector, find_plan
    from edge.head import fitting_together

    client = _client(bundle, way, identity)
    adaptive = client is not None and plan is None
    digests = fitting_together(bundle, identity.memory_bytes)
    if not adaptive:
        wanted = digests[0] if plan is None else find_plan(bundle, plan)
        if identity.memory_bytes is not None and wanted not in digests:
            raise SettingsError(f"--plan {plan}: does not fit --memory {identity.memory_bytes}")
        others = [digest for digest in digests if digest != wanted] if every else []
        digests = [wanted, *others]
    return Detector(
        bundle,
        client,
        plans=digests,
        threads=identity.threads,
        costs=_costs(bundle, identity),
        adaptive=adaptive,
        report=way.report,
        required=() if plan is None else digests[:1],
    )


def _costs(bundle: "Bundle", identity: _Identity) -> "list[PlanCost]":
    """Predicted costs of the plans on this edge, before the first frame."""
    from bench.machine import cpu_name
    from common.latency import costs
    from common.tables.store_file import read_tables

    if identity.tables is None:
        return costs(bundle.plans)
    device = cpu_name() if identity.device is None else identity.device
    rows = read_tables(identity.tables)
    known = sorted({row.device for row in rows if row.side == "edge"})
    if device not in known:
        raise SettingsError(
            f"{identity.tables}: nothing about device {device!r}; it knows "
            f"{', '.join(known) or 'none'}: give --device"
        )
    return costs(bundle.plans, rows, device)


def _client(bundle: "Bundle", way: _Cloud, identity: _Identity) -> "CloudClient | None":
    """Create the client of the cloud, not connected yet; None without an address."""
    from bench.machine import cpu_name
    from common.link.trace import link_or_trace
    from common.rpc.messages import MAX_EDGE_ID_CHARACTERS
    from common.rpc.splitpoint_pb2 import Hello
    from common.rpc.tls import channel_credentials
    from common.runtime.session import runtime_name
    from common.version import __version__
    from edge.stream.client import CloudClient
    from edge.stream.shaping import ShapedTransport
    from edge.stream.transport import GrpcTransport, Transport, check_address

    emulated = None if way.link is None else link_or_trace(way.link)
    credentials = channel_credentials(way.tls)
    device = cpu_name()[:MAX_EDGE_ID_CHARACTERS]
    device = device if identity.device is None else identity.device
    for option, name in (("--edge-id", identity.edge_id), ("--device", device)):
        if not 1 <= len(name) <= MAX_EDGE_ID_CHARACTERS:
            raise SettingsError(f"{option}: expected 1 to {MAX_EDGE_ID_CHARACTERS} characters")
        if not name.isprintable():
            raise SettingsError(f"{option}: expected printable characters, got {name!a}")
    if way.address is None:
        for option, given in (("--link", emulated), ("--tls-ca", credentials)):
            if given is not None:
                raise SettingsError(f"{option} is for the way to a cloud: give --cloud HOST:PORT")
        return None
    address = check_address(way.address)

    started_s: float | None = None

    def connect() -> Transport:
        nonlocal started_s
        transport = GrpcTransport(address, credentials)
        if emulated is None:
            return transport
        # A trace goes on where it is when a lost stream is opened again.
        started_s = time.monotonic() if started_s is None else started_s
        return ShapedTransport(transport, emulated, start_s=started_s)

    hello = Hello(
        edge_id=identity.edge_id,
        bundle_digest=bundle.digest,
        software_version=__version__,
        device=device,
        runtime=runtime_name(identity.threads),
        threads=identity.threads,
        instance=secrets.randbits(64) or 1,
    )
    return CloudClient(connect, hello)


def _run_images(
    detector: "Detector",
    images: list[Path],
    score_threshold: float,
    json_file: Path | None,
    annotated: Path | None,
) -> int:
    """Run images one by one; returns how many could not be read or written."""
    from common.imaging.images import EDGE_LIMITS, read_image
    from common.tasks import labels as coco

    category_ids = coco.category_ids(detector.bundle.manifest.detector.class_names)
    console = Console()
    records: list[dict[str, object]] = []
    failed = 0
    ids, names = image_ids(images), file_names(images)
    for path, image_id, name in zip(images, ids, names, strict=True):
        try:
            image = read_image(path, EDGE_LIMITS)
            outcome = detector.detect(image, score_threshold=score_threshold)
        except ImageError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            failed += 1
            continue
        _show(console, path, outcome, detector)
        # COCO's tools read `image_id` and ignore the file name, which is for human readers.
        found = outcome.detections.to_coco(image_id, category_ids)
        records += [{**each, "file_name": str(path)} for each in found]
        if annotated is not None:
            _save_annotated(image, annotated / name, outcome, detector)
    if json_file is not None:
        _write(json_file, json.dumps(records, indent=1) + "\n")
    return failed


def _show(console: Console, path: Path, outcome: "Outcome", detector: "Detector") -> None:
    names = detector.bundle.manifest.detector.class_names
    title = f"{path.name}: {outcome.plan.name} ({outcome.plan.kind})"
    found = Table("object", "score", "x", "y", "width", "height", title=title, title_justify="left")
    for row in outcome.detections.to_json(names):
        x, y, width, height = row["bbox"]
        cells = (f"{value:.0f}" for value in (x, y, width, height))
        found.add_row(row["class_name"], f"{row['score']:.2f}", *cells)
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

    names = detector.bundle.manifest.detector.class_names
    caption = f"{outcome.plan.name}  {outcome.latency_ms:.0f} ms  {outcome.uplink_bytes} B"
    picture = annotate(image, outcome.detections, names, caption=caption)
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
