"""A search as one call: strings as users write them in, a bundle and its figures out."""

from pathlib import Path
from typing import TypedDict, Unpack

from common.link.link import parse_link
from common.progress import Progress, Reporter
from common.sizes import parse_size
from common.tables.store_file import read_tables
from common.version import __version__
from search.bundling import search_to
from search.prediction.devices import device_profile
from search.prediction.table_calibration import learned_device
from search.request import Request, SearchResult
from search.strategies import known_strategy


class SearchOptions(TypedDict, total=False):
    """Further options of a search; `search.request.Request` says what each means."""

    weights: Path | None
    evaluation: Path | None
    annotations: Path | None
    quantizer: str | None
    max_drop: float
    no_raw_image: bool
    cloud_threads: int
    runtime: str
    max_images: int
    narrow_cuts: int
    refined_cuts: int
    format_trials: int
    adapt_steps: int
    context_steps: int
    video: bool
    tables: Path | None
    cache: Path | None
    iou_threshold: float
    max_detections: int
    classes: tuple[str, ...]


def search(
    model: str,
    *,
    calibration: Path | str,
    link: str,
    out: Path | str,
    device: str = "this-machine",
    edge_memory: str | None = None,
    strategy: str = "splitpoint",
    reporter: Reporter | None = None,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Search the plans for a model, an edge and a link, and write them as a bundle.

    Args:
        model: Name in the zoo.
        calibration: Folder of images like those to come; at least 32.
        link: Between edge and cloud, such as "3mbit/20ms".
        out: The bundle to write: a folder, or a zip file if its name ends so.
        device: Name of a device profile, or of an edge's device in `tables`.
        edge_memory: Limit on weights and activations of the head, such as "16MiB".
        strategy: "splitpoint", or a baseline.
        reporter: Shows progress, if given.
        **options: See `SearchOptions`.

    Returns:
        All candidates, those measured, and the plans of the bundle, fastest first.

    Raises:
        SplitpointError: If something cannot be worked with; nothing is written then.
    """
    tables = options.get("tables")
    edge = device_profile(device) if tables is None else learned_device(device, read_tables(tables))
    request = Request(
        model=model,
        link=parse_link(link),
        device=edge,
        calibration=Path(calibration),
        strategy=known_strategy(strategy),
        edge_memory_bytes=None if edge_memory is None else parse_size(edge_memory),
        software_version=__version__,
        **options,
    )
    return search_to(Path(out), request, reporter or _Silent())


class _Silent:
    """Shows nothing."""

    def stage(self, title: str, /) -> Progress:
        del title
        return self._show

    @staticmethod
    def _show(done: int, total: int, note: str = "", /) -> None:
        pass
