"""The demo, step by step; a search that was finished before is kept.

weights, pictures -> a search per edge -> cloud and slow edges over emulated links -> the map
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from bench.slow import slowed
from common.bundle import Bundle
from common.coco import CLASS_NAMES
from common.draw import annotate, side_by_side
from common.images import read_image
from common.link import parse_link
from splitpoint.demo.frames import Pictures, prepare_frames
from splitpoint.demo.grid import SLOWING, Cell, Grid, Scene, measure_scene
from splitpoint.demo.prepare import MODEL, Aim, Effort, request_of
from splitpoint.demo.tables import map_markdown, map_table, verdicts
from splitpoint.demo.ways import to_detections
from splitpoint.progress import Stages

SHARE: Final = 0.25
SLOW_DEVICE: Final = "quarter-core"
LINKS: Final = ("0.5mbit/20ms", "2mbit/20ms", "10mbit/20ms")
SEARCHED_LINK: Final = "1mbit/20ms"
SMALL_BYTES: Final = 4 << 20
ROUNDS: Final = 2

# Less than a search takes by itself: nobody should wait long for a first impression.
_EFFORT: Final = Effort(
    refined_cuts=1, narrow_cuts=0, format_trials=1, adapt_steps=40, context_steps=120
)
_MAX_DROP: Final = 5.0


def scenes() -> tuple[Scene, ...]:
    """The rows of the map."""
    links = tuple(parse_link(link) for link in LINKS)
    return (
        Scene(f"{SMALL_BYTES >> 20} MiB for the model", SMALL_BYTES, links),
        Scene("room for all of it", None, links[1:2]),
    )


def run_demo(folder: Path, json_file: Path | None = None) -> None:
    """Everything: weights, pictures, searches, processes, measurements, the map, pictures.

    Args:
        folder: For what is kept between runs, and for the annotated pictures.
        json_file: For the figures; in `folder` if not given.

    Raises:
        SplitpointError: If a step cannot be done; what was finished before it is kept.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        pictures = _fetch(folder, stages)
        bundles = [_search(folder, scene, pictures, stages) for scene in scenes()]
        grid = _measure(folder, bundles, pictures.shown, stages)
        drawn = _draw(grid.cells[0], pictures.shown, folder / "pictures")
        grid.write_json(json_file or folder / "figures.json")
        (folder / "map.md").write_text(map_markdown(grid))
    console.print(map_table(grid, SHARE))
    for line in verdicts(grid):
        console.print(line, highlight=False)
    console.print(
        f"Boxes: class and place as the whole network in floating point finds them, on "
        f"{len(grid.truth)} pictures that no search has seen; "
        f"{ROUNDS * len(grid.truth)} requests a way.",
        highlight=False,
    )
    console.print(
        f"Pictures: {drawn}   Report of the search: {bundles[0] / 'report.html'}",
        highlight=False,
    )


def _fetch(folder: Path, stages: Stages) -> Pictures:
    from search.weights import fetch
    from search.zoo.registry import zoo_model

    def notify(text: str) -> None:
        Console(stderr=True).print(f"  {text}; trying the next source", style="dim", soft_wrap=True)

    fetch(zoo_model(MODEL).weights, progress=stages.stage("fetching weights"), notify=notify)
    return prepare_frames(folder / "frames", stages.stage("fetching pictures"), notify)


def _search(folder: Path, scene: Scene, pictures: Pictures, stages: Stages) -> Path:
    from search.kept import search_unless_kept

    bundle = folder / ("bundle" if scene.edge_memory_bytes else "bundle-roomy")
    aim = Aim(parse_link(SEARCHED_LINK), scene.edge_memory_bytes, SLOW_DEVICE, _MAX_DROP)
    search_unless_kept(request_of(aim, _EFFORT, pictures), bundle, stages)
    return bundle


def _measure(folder: Path, bundles: Sequence[Path], images: Sequence[Path], stages: Stages) -> Grid:
    cells: list[Cell] = []
    searches = []
    with slowed(SHARE, SLOWING, strict=False) as slow:
        for scene, bundle in zip(scenes(), bundles, strict=True):
            found, truth = measure_scene(
                scene, bundle, images, slow, rounds=ROUNDS, logs=folder, stages=stages
            )
            cells += found
            with Bundle.open(bundle) as opened:
                searches.append(opened.manifest.search)
    return Grid(tuple(cells), truth, ROUNDS, slow.measured, tuple(searches))


def _draw(cell: Cell, images: Sequence[Path], folder: Path) -> Path:
    """One picture per image with the boxes of all ways side by side."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        pixels = read_image(image)
        drawn, captions = [], []
        for way in cell.ways:
            response = way.responses[image]
            drawn.append(annotate(pixels, to_detections(response), CLASS_NAMES))
            captions.append(f"{way.title}: {way.latency_ms:.0f} ms, {way.kilobytes:.1f} kB")
        side_by_side(drawn, captions).save(folder / f"{image.stem}.png")
    return folder
