"""Proposals: a new search if observed latencies promise a better bundle.

    served bundle's manifest --its search settings--> Request --+
    latency tables ---------------------------------------------+--> search --> difference
                                                                                     |
           gain below the threshold: nothing is written <----------------------------+
           else: the new bundle, with difference.md inside <-------------------------+
           and, if it is to be deployed, put in the place of the served one

A proposal is made on demand or by a timer, never while frames are served: a search takes minutes.
The bundle is searched for in a temporary folder and moved into place when it is whole. The
difference is one of its listed files, so it travels with it and is checked as all of it is.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from common.bundle.bundle import Bundle, BundleWriter, zip_bundle
from common.bundle.manifest import Manifest
from common.errors import SettingsError, SplitpointError, WeightsError
from common.link.link import Link
from common.places import require_bundle_place
from common.progress import Reporter
from common.runtime.registry import DEFAULT_RUNTIME
from common.tables.rows import LatencyRow
from common.tables.store_file import read_tables
from search.bundling import search_to
from search.constraints import find, restored
from search.constraints.no_raw_image import NoRawImage
from search.prediction.devices import DEVICES
from search.prediction.table_calibration import calibrated_device, require_device, rows_of
from search.proposal.difference import Difference, compare, markdown
from search.proposal.exchange import check_exchange, exchange
from search.request import Request, SearchResult
from search.source import NamedShape, NetworkSource

DIFFERENCE = "difference.md"

Searcher = Callable[[Path, Request, Reporter], SearchResult]
"""Signature of `search.bundling.search_to`."""


@dataclass(frozen=True)
class ProposalSpec:
    """Settings of a proposal: inputs, output and threshold.

    Attributes:
        bundle: Folder of the served bundle.
        tables: Latency tables.
        calibration: Folder of images.
        out: Path of a better bundle: a folder, or a zip file.
        link: Link, if not the one that the bundle was searched for.
        device: Device name in the tables, if it is not the one of the bundle.
        threshold: Least share of latency that is worth a new bundle.
        deploy: Whether it takes the place of the served one.
        weights: As `NetworkSource`.
        card: As `NetworkSource`.
        image_size: As `NetworkSource`; the bundle's, if it is None.
        input: As `NetworkSource`.
        evaluation: Folder of images to measure accuracy on.
        annotations: COCO instances file of them.
        max_images: Images used at the most, of each folder.
        refined_cuts: As `Request`.
        format_trials: As `Request`.
        adapt_steps: As `Request`.
        runtime: As `Request`; rows of edges with another are left out.
        cache: Folder for intermediate results.
    """

    bundle: Path
    tables: Path
    calibration: Path
    out: Path
    link: Link | None = None
    device: str | None = None
    threshold: float = 0.05
    deploy: bool = False
    weights: Path | None = None
    card: Path | None = None
    image_size: tuple[int, int] | None = None
    input: NamedShape | None = None
    evaluation: Path | None = None
    annotations: Path | None = None
    max_images: int = 128
    refined_cuts: int = 1
    format_trials: int = 3
    adapt_steps: int = 200
    runtime: str = DEFAULT_RUNTIME
    cache: Path | None = None


@dataclass(frozen=True)
class ProposalOutcome:
    """Result of a proposal: the difference, and the new bundle if it gains enough.

    Attributes:
        difference: Difference between the served bundle and the new plans.
        written: Path of the new bundle; None if its gain is below the threshold.
        previous: Path of the replaced bundle, if the new one was deployed.
    """

    difference: Difference
    written: Path | None = None
    previous: Path | None = None


def propose(
    spec: ProposalSpec, reporter: Reporter, search: Searcher = search_to
) -> ProposalOutcome:
    """Search again with latency tables, and write the new bundle if it gains enough.

    Args:
        spec: Settings of the proposal.
        reporter: Receives progress.
        search: Runs the search.

    Raises:
        SplitpointError: A bundle, tables or limits that cannot be worked with; nothing is written
            or replaced then.
    """
    with Bundle.open(spec.bundle) as bundle:
        present = bundle.manifest
    tables = read_tables(spec.tables)
    rows = rows_of(present.plans[0].network, tables, runtime=spec.runtime)
    request = request_of(spec, present, rows)
    _check_places(spec)
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        folder = Path(scratch) / "bundle"
        result = search(folder, request, reporter)
        with Bundle.open(folder) as bundle:
            proposed = bundle.manifest
        if proposed.search.weights_sha256 != present.search.weights_sha256:
            raise WeightsError(
                f"{spec.bundle} holds a {request.model} of other weights: give theirs by --weights"
            )
        difference = compare(present, proposed, result)
        if difference.gain < spec.threshold:
            return ProposalOutcome(difference)
        _write(spec.out, folder, proposed, markdown(difference))
    if not spec.deploy:
        return ProposalOutcome(difference, spec.out)
    return ProposalOutcome(difference, spec.bundle, exchange(spec.bundle, spec.out))


def request_of(spec: ProposalSpec, present: Manifest, rows: list[LatencyRow]) -> Request:
    """Request of the present bundle's search, with latency tables added.

    A bundle without any plan that sends pixels, whatever it was searched for, is not followed by
    one that does.

    Raises:
        SettingsError: If the tables do not know the device.
        BundleError: If the bundle was searched under a limit that is unknown here.
    """
    search = present.search
    name = spec.device or search.device
    require_device(name, rows)
    profile = DEVICES.get(search.device)
    reduced_range = search.reduced_range or (profile is not None and profile.reduced_range)
    limits = restored(search.limits)
    if find(NoRawImage, limits) is None and all(plan.head is not None for plan in present.plans):
        limits = (*limits, NoRawImage())
    size = spec.image_size or present.task.image.size
    return Request(
        source=NetworkSource(search.model, spec.weights, spec.card, size, spec.input),
        link=spec.link or Link(search.uplink_bps, search.uplink_bps, search.rtt_ms),
        device=calibrated_device(name, rows, reduced_range=reduced_range),
        calibration=spec.calibration,
        evaluation=spec.evaluation,
        annotations=spec.annotations,
        constraints=limits,
        accuracy=search.accuracy_metric is not None,
        cloud_threads=search.cloud_threads,
        max_images=spec.max_images,
        refined_cuts=spec.refined_cuts,
        format_trials=spec.format_trials,
        adapt_steps=spec.adapt_steps,
        runtime=spec.runtime,
        video=search.video,
        iou_threshold=search.iou_threshold,
        max_detections=search.max_detections,
        classes=search.classes,
        top=search.top,
        tables=spec.tables,
        cache=spec.cache,
    )


def repeat(
    make: Callable[[], None],
    every_s: float,
    failed: Callable[[SplitpointError], None],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Make proposals for ever.

    An error in the first round is raised, since somebody is watching; later errors are reported
    and the round is tried again, as a store may be away for a while.

    Args:
        make: Makes one proposal.
        every_s: Seconds between the end of one and the beginning of the next.
        failed: Called with the error of a failed round.
        pause: Waits for some seconds.
    """
    make()
    while True:
        pause(every_s)
        try:
            make()
        except SplitpointError as error:
            failed(error)


def _check_places(spec: ProposalSpec) -> None:
    """Validate `out` before hours of work."""
    bundle, out = spec.bundle.resolve(), spec.out.resolve()
    if out == bundle or bundle in out.parents or out in bundle.parents:
        raise SettingsError(
            f"{spec.out} is not beside the bundle that is served: choose another --out"
            + ("" if spec.deploy else "; --auto puts a better one in its place")
        )
    if spec.deploy:
        check_exchange(spec.bundle, spec.out)
    require_bundle_place(spec.out)


def _write(out: Path, folder: Path, manifest: Manifest, difference: str) -> None:
    """Write the bundle of a folder to `out`, with the difference inside."""
    if out.suffix.lower() != ".zip":
        _copy(out, folder, manifest, difference)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        copied = Path(scratch) / "bundle"
        _copy(copied, folder, manifest, difference)
        zip_bundle(copied, out)


def _copy(out: Path, folder: Path, manifest: Manifest, difference: str) -> None:
    writer = BundleWriter(out)
    try:
        for name in manifest.files:
            writer.add(name, (folder / name).read_bytes())
        writer.add(DIFFERENCE, difference.encode())
        writer.finish(task=manifest.task, search=manifest.search, plans=manifest.plans)
    except BaseException:
        writer.discard()
        raise
