"""The demo, step by step; a step that was finished before is kept."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.bundle import Bundle
from common.coco import CLASS_NAMES
from common.draw import annotate, side_by_side
from common.errors import BundleError
from common.images import read_image
from common.link import parse_link
from common.manifest import Manifest
from splitpoint import __version__
from splitpoint.demo.comparison import compare
from splitpoint.demo.frames import prepare_frames
from splitpoint.demo.tables import detections_table, plan_lines, stages_table, verdict, ways_table
from splitpoint.demo.ways import KINDS, Way, to_detections
from splitpoint.progress import Stages

MODEL = "yolov3-tiny"
LINK = "3mbit/20ms"
SMALL_EDGE_BYTES = 4 << 20
ROUNDS = 3

_HOST = "127.0.0.1"
_ROOMS = ("common", "search")
# Fewer than a search takes by itself: nobody should wait long for a first impression.
_FORMAT_TRIALS = 2
_ADAPT_STEPS = 60


def run_demo(folder: Path, json_file: Path | None = None) -> None:
    """Everything: weights, pictures, search, two processes, measurements, tables, pictures.

    Args:
        folder: For what is kept between runs, and for the annotated pictures.
        json_file: For the figures; in `folder` if not given.

    Raises:
        SplitpointError: If a step cannot be done; what was finished before it is kept.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        calibration, images = _fetch(folder, stages)
        bundle = folder / "bundle"
        manifest = _search(bundle, calibration, stages)
        comparison = compare(
            bundle, manifest, images, parse_link(LINK), rounds=ROUNDS, logs=folder, stages=stages
        )
        ways = comparison.ways
        pictures = _draw(ways[: len(KINDS)], images, folder / "pictures")
        comparison.write_json(json_file or folder / "figures.json")
    shown = next((way for way in ways if way.plan.kind == "split"), ways[0])
    console.print(detections_table(shown))
    console.print(stages_table(ways))
    console.print(ways_table(comparison))
    console.print(plan_lines(ways), highlight=False)
    console.print(verdict(ways, SMALL_EDGE_BYTES))
    if shown.plan.kind != "split":
        console.print(
            "No split kept its accuracy here; see the report for those that were measured."
        )
    console.print(
        f"Same boxes: class and place as the whole network in floating point finds them, "
        f"{len(images)} pictures; medians of {ROUNDS * len(images)} requests each."
    )
    console.print(f"Pictures: {pictures}   Report of the search: {bundle / 'report.md'}")


def _fetch(folder: Path, stages: Stages) -> tuple[Path, list[Path]]:
    from search.weights import fetch
    from search.zoo.registry import zoo_model

    def notify(text: str) -> None:
        Console(stderr=True).print(f"  {text}; trying the next source", style="dim", soft_wrap=True)

    fetch(zoo_model(MODEL).weights, progress=stages.stage("fetching weights"), notify=notify)
    return prepare_frames(folder / "frames", stages.stage("fetching pictures"), notify)


def _search(bundle: Path, calibration: Path, stages: Stages) -> Manifest:
    """The bundle of an earlier run, if the same search made it; else search."""
    key_file = bundle.with_suffix(".key")
    key = _search_key(calibration)
    if key_file.is_file() and key_file.read_text() == key:
        try:
            manifest = Bundle.open(bundle).manifest
        except BundleError:
            pass  # damaged since: search again
        else:
            stages.stage("searching plans (kept)")(1, 1)
            return manifest
    from search.devices import device_profile
    from search.pipeline import search
    from search.request import Request

    request = Request(
        model=MODEL,
        link=parse_link(LINK),
        device=device_profile("this-machine"),
        calibration=calibration,
        format_trials=_FORMAT_TRIALS,
        adapt_steps=_ADAPT_STEPS,
        software_version=__version__,
    )
    manifest, _ = search(request, bundle, stages)
    key_file.write_text(key)
    return manifest


def _search_key(calibration: Path) -> str:
    """Digest of what the search depends on: its images and its own code."""
    root = Path(__file__).resolve().parents[2]
    sources = sorted(
        path for room in _ROOMS for kind in ("*.py", "*.c") for path in (root / room).rglob(kind)
    )
    digest = hashlib.sha256(f"{MODEL} {LINK} {__version__}".encode())
    for path in (*sources, *sorted(calibration.iterdir())):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _draw(ways: Sequence[Way], images: Sequence[Path], folder: Path) -> Path:
    """One picture per image with all ways side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        pixels = read_image(image)
        drawn, captions = [], []
        for way in ways:
            response = way.responses[image]
            drawn.append(annotate(pixels, to_detections(response), CLASS_NAMES))
            sent = (
                f"{response['uplink_bytes'] / 1e3:.1f} kB" if response["uplink_bytes"] else "0 kB"
            )
            captions.append(f"{way.title}: {way.latency_ms:.0f} ms, {sent}")
        side_by_side(drawn, captions).save(folder / f"{image.stem}.png")
    return folder
