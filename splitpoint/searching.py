"""A search as one call: strings as users write them in, a bundle and its figures out."""

from pathlib import Path
from typing import Any, Unpack, cast

from common.link.link import Link, parse_link
from common.progress import Reporter, Silent
from common.tables.store_file import read_tables
from search.bundling import search_to
from search.constraints import CONSTRAINTS, Limits, constraints
from search.prediction.devices import device_profile
from search.prediction.table_calibration import calibrated_device
from search.request import Request, SearchResult
from search.source import NetworkSource
from search.strategies import known_strategy

_OF_SOURCE = frozenset({"weights", "card", "image_size", "input"})
"""Options that say where the network comes from."""


class SearchOptions(Limits, total=False):
    """Limits, and further options of a search.

    `search.request.Request` says what each means, and `search.source.NetworkSource`.
    """

    weights: Path | None
    card: Path | None
    image_size: str | None
    input: str | None
    evaluation: Path | None
    annotations: Path | None
    quantizer: str | None
    cloud_threads: int
    runtime: str
    accuracy: bool
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
    top: int


def search(
    model: str,
    *,
    calibration: Path | str,
    link: str,
    out: Path | str,
    device: str = "this-machine",
    strategy: str = "splitpoint",
    reporter: Reporter | None = None,
    **options: Unpack[SearchOptions],
) -> SearchResult:
    """Search the plans for a model, an edge and a link, and write them as a bundle.

    Args:
        model: Name in the zoo, path of an ONNX file, or a torch module's "package.module:factory".
        calibration: Folder of images like those to come; at least 32.
        link: Between edge and cloud, such as "3mbit/20ms".
        out: The bundle to write: a folder, or a zip file if its name ends so.
        device: Name of a device profile, or of an edge's device in `tables`.
        strategy: "splitpoint", or a baseline.
        reporter: Shows progress, if given.
        **options: Limits, such as `edge_memory="16MiB"`, and more: see `SearchOptions`.

    Returns:
        All candidates, those measured, and the plans of the bundle, fastest first.

    Raises:
        SplitpointError: If something cannot be worked with; nothing is written then.
    """
    request = request_of(model, calibration, link, device, strategy, **options)
    return search_to(Path(out), request, reporter or Silent())


def request_of(
    model: str,
    calibration: Path | str,
    link: str | Link,
    device: str = "this-machine",
    strategy: str = "splitpoint",
    **options: Unpack[SearchOptions],
) -> Request:
    """Request of a search; arguments are those of `search`.

    Raises:
        SettingsError: If a text cannot be read, or names nothing.
    """
    tables = options.get("tables")
    edge = (
        device_profile(device) if tables is None else calibrated_device(device, read_tables(tables))
    )
    limits = {name: each for name, each in options.items() if name in CONSTRAINTS}
    named = {name: each for name, each in options.items() if name in _OF_SOURCE}
    if not options.get("accuracy", True):
        limits.setdefault("max_drop", None)
    left = options.keys() - limits.keys() - named.keys()
    others: dict[str, Any] = {name: each for name, each in options.items() if name in left}
    return Request(
        source=NetworkSource.parse(model, **cast("dict[str, Any]", named)),
        link=parse_link(link) if isinstance(link, str) else link,
        device=edge,
        calibration=Path(calibration),
        strategy=known_strategy(strategy),
        constraints=constraints(**cast("Limits", limits)),
        **others,
    )
