"""The search: from a trained network and a set of limits to a bundle of plans.

    prepare (prepare.py) -> 8-bit network -> cuts -> ranking (search_run.py) -> bundle

Plans are judged on pictures that nothing was fitted to (held_out.py): those of an evaluation
folder, or else a part of the calibration pictures; or not at all, if the request says so. Every
stage reports its progress.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from common.bundle.manifest import Manifest
from common.errors import SettingsError
from common.places import require_bundle_place
from common.progress import Reporter
from common.runtime.registry import runtime_named
from common.tables.store_file import read_tables
from common.version import __version__
from search.cache import Cache
from search.constraints import find
from search.constraints.max_drop import MaxDrop
from search.export import write_plans
from search.measure.frames import MIN_IMAGES, Frames
from search.measure.held_out import Division, fit_all, set_aside
from search.network.cuts import find_cuts, undominated
from search.prediction.table_calibration import calibrated_device
from search.prepare import prepare
from search.quantization.heads import Heads
from search.quantization.recipes import recipe
from search.ranking.search_run import Network, rank
from search.request import Request, SearchResult
from search.wire.training_data import MIN_FRAMES, require_enough


def search(request: Request, out: Path, reporter: Reporter) -> tuple[Manifest, SearchResult]:
    """Search and write the bundle to `out`.

    Raises:
        SplitpointError: A model, weights, images or limits that cannot be worked with; nothing is
            written then.
    """
    _check(request)
    runtime_named(request.runtime)
    if request.tables is not None:
        calibrated_device(request.device.name, read_tables(request.tables))  # before hours of work
    require_bundle_place(out)
    cache = Cache(request.cache, __version__)
    prepared = prepare(
        request.source,
        request.calibration,
        cache,
        reporter,
        max_images=request.max_images,
        divide=partial(_divide, request),
    )
    judging = None
    if request.accuracy:
        judging = prepared.judging(request.evaluation, reporter, request.max_images)
    rounder = prepared.rounder(reduced_range=request.device.reduced_range)
    found = find_cuts(prepared.graph)
    cuts = undominated(prepared.graph, found.cuts)
    network = Network(prepared, Heads(rounder.nearest({})), cuts)
    result = rank(request, network, judging, reporter)
    result = replace(result, every_cut=found.complete, tuned_to=prepared.tuned_to)

    progress = reporter.stage("writing the bundle")
    vector, weights = prepared.calibration.pixels[:1], prepared.weights_sha256
    manifest = write_plans(out, network.heads, prepared.task, vector, weights, result)
    progress(1, 1)
    return manifest, result


def _divide(request: Request, frames: Frames) -> Division:
    """Divide the calibration pictures into fitting and judging ones, before any fitting."""
    if not request.accuracy:
        return fit_all(frames)
    if request.evaluation is None:
        least = MIN_FRAMES if request.refines else MIN_IMAGES
        return set_aside(frames, least_fitting=least, video=request.video)
    if request.refines:
        require_enough(len(frames.names))
    return fit_all(frames)


def _check(request: Request) -> None:
    """Refuse options that contradict each other, before anything is read."""
    if request.annotations is not None and request.evaluation is None:
        raise SettingsError("--annotations needs --evaluation, the folder of the annotated images")
    if not request.accuracy and (request.evaluation or find(MaxDrop, request.constraints)):
        raise SettingsError(
            "--no-accuracy measures none: leave out --evaluation, --annotations and --max-drop"
        )
    for constraint in request.constraints:
        conflict = constraint.conflict(request.strategy)
        if conflict is not None:
            raise SettingsError(conflict)
    if request.video and request.strategy != "splitpoint":
        raise SettingsError(f"--video: {request.strategy} does not look back at the last frame")
    if request.quantizer is not None:
        how = recipe(request.quantizer)
        if how.joint and request.strategy == "splitpoint":
            raise SettingsError(
                f"--quantizer {request.quantizer} gives each head ranges of its own, and plans of "
                "one bundle share them: use it with --strategy auto-split-v2 or `quantize`"
            )
