"""The demo, step by step; a search that was finished before is kept.

weights, pictures -> a search per edge -> cloud and slow edges over emulated links -> the map
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from common.imaging.images import read_image
from common.link.link import parse_link
from common.progress import Stages
from common.tasks.base import Task
from common.tasks.draw import annotate, side_by_side
from splitpoint.demo.frames import DemoPictures, prepare_frames
from splitpoint.demo.grid import MapCell, measure_grid
from splitpoint.demo.prepare import MODEL, Aim, Effort, request_of
from splitpoint.demo.tables import map_markdown, map_table, verdicts

SHARE: Final = 0.25
SLOW_DEVICE: Final = "quarter-core"
LINKS: Final = ("0.1mbit/20ms", "1mbit/20ms", "10mbit/20ms")
SEARCHED_LINK: Final = "0.2mbit/20ms"
SMALL_BYTES: Final = 4 << 20
ROUNDS: Final = 1

# Less than a search's defaults, so that the demo takes minutes.
_EFFORT: Final = Effort(
    refined_cuts=1, narrow_cuts=0, format_trials=1, adapt_steps=25, context_steps=60
)
_MAX_DROP: Final = 10.0
_OFF: Final = 0.2


def cells() -> tuple[MapCell, ...]:
    """Cells to measure: a small edge on three links, an edge without limit on the slowest."""
    links = [parse_link(link) for link in LINKS]
    return (*(MapCell(SMALL_BYTES, link) for link in links), MapCell(None, links[0]))


def run_demo(folder: Path, json_file: Path | None = None) -> None:
    """Run the whole demo: fetch, search, measure, print the map, draw the annotated pictures.

    Args:
        folder: Folder for results kept between runs, and for the annotated pictures.
        json_file: JSON file for the figures; figures.json in `folder` if not given.

    Raises:
        SplitpointError: If a step fails; the results of earlier steps are kept.
    """
    console = Console()
    folder.mkdir(parents=True, exist_ok=True)
    with Stages() as stages:
        pictures = _fetch(folder, stages)
        bundle = _search(folder, pictures, stages)
        grid = measure_grid(
            cells(), bundle, pictures.shown, SHARE, rounds=ROUNDS, logs=folder, stages=stages
        )
        drawn = _draw(grid.cells[-1], grid.task, pictures.shown, folder / "pictures")
        grid.write_json(json_file or folder / "figures.json")
        (folder / "map.md").write_text(map_markdown(grid))
    console.print(map_table(grid))
    for line in verdicts(grid):
        console.print(line, highlight=False)
    if abs(grid.share - SHARE) > _OFF * SHARE:
        console.print(
            f"The edges were to have {SHARE:g} of a core: something else is at work here."
        )
    console.print(
        f"Boxes: class and place as the whole network in floating point finds them, on "
        f"{len(grid.truth)} pictures that no search has seen; "
        f"{ROUNDS * len(grid.truth)} requests a way.",
        highlight=False,
    )
    console.print(
        f"Pictures: {drawn}   Report of the search: {bundle / 'report.html'}",
        highlight=False,
    )


def _fetch(folder: Path, stages: Stages) -> DemoPictures:
    from search.zoo.download import fetch
    from search.zoo.registry import zoo_model

    def notify(text: str) -> None:
        Console(stderr=True).print(f"  {text}; trying the next source", style="dim", soft_wrap=True)

    fetch(zoo_model(MODEL).weights, progress=stages.stage("fetching weights"), notify=notify)
    return prepare_frames(folder / "frames", stages.stage("fetching pictures"), notify)


def _search(folder: Path, pictures: DemoPictures, stages: Stages) -> Path:
    from search.kept import search_unless_kept

    # Plans for edges of any memory: each edge takes those that fit it.
    aim = Aim(parse_link(SEARCHED_LINK), None, SLOW_DEVICE, _MAX_DROP)
    bundle = folder / "bundle"
    search_unless_kept(request_of(aim, _EFFORT, pictures), bundle, stages)
    return bundle


def _draw(cell: MapCell, task: Task, images: Sequence[Path], folder: Path) -> Path:
    """Draw one picture per image with the results of all ways side by side; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        pixels = read_image(image)
        drawn, captions = [], []
        for way in cell.ways:
            result = task.from_json(way.responses[image]["result"])
            drawn.append(annotate(pixels, result, task.class_names))
            captions.append(f"{way.title}: {way.latency_ms:.0f} ms, {way.kilobytes:.1f} kB")
        side_by_side(drawn, captions).save(folder / f"{image.stem}.png")
    return folder
