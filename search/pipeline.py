"""The search: from a trained network and a set of limits to a bundle of plans.

    model -> graph -> calibration -> 8-bit network -> cuts -> ranking (rank.py) -> bundle

Every stage reports its progress.
"""

from dataclasses import asdict
from pathlib import Path

from common.coco import CLASS_NAMES
from common.detections import DetectorSpec, YoloHeadSpec
from common.errors import SettingsError
from common.manifest import Manifest
from search.cache import Cache, digest
from search.calibration import Statistics, observe
from search.cuts import enumerate_cuts
from search.deploy import write_plans
from search.examples import require_enough
from search.frames import load_frames
from search.heads import Heads
from search.importer import import_module
from search.passes import optimise
from search.quantization.recipe import recipe, rounded
from search.rank import Network, rank
from search.request import Found, Reporter, Request
from search.zoo.darknet import DarknetModule
from search.zoo.registry import load_model


def search(request: Request, out: Path, reporter: Reporter) -> tuple[Manifest, Found]:
    """Search and write the bundle to `out`.

    Raises:
        SplitpointError: A model, weights, images or limits that cannot be worked with; nothing is
            written then.
    """
    if request.annotations is not None and request.evaluation is None:
        raise SettingsError("--annotations needs --evaluation, the folder of the annotated images")
    if request.strategy == "cloud-only" and request.no_raw_image:
        raise SettingsError("--strategy cloud-only sends pixels, which --no-raw-image forbids")
    if request.quantizer is not None:
        recipe(request.quantizer)
    progress = reporter.stage("reading the model")
    module = load_model(request.model, weights=request.weights)
    graph = optimise(import_module(module, module.input_size))
    detector = detector_of(module)
    progress(1, 1)

    limit, size = request.max_images, module.input_size
    calibration = load_frames(
        request.calibration, size, limit, reporter.stage("reading calibration images")
    )
    if request.refined_cuts and request.strategy == "splitpoint":
        require_enough(len(calibration.names))
    evaluation = calibration
    if request.evaluation is not None:
        evaluation = load_frames(
            request.evaluation, size, limit, reporter.stage("reading evaluation images")
        )
    cache = Cache(request.cache, request.software_version)
    origin = digest(graph.nodes, calibration.pixels)
    progress = reporter.stage("observing activations")
    observed = Statistics.from_arrays(
        cache.arrays(
            "statistics",
            [origin],
            lambda: observe(graph, calibration.pixels, progress).to_arrays(),
        )
    )
    progress(1, 1)
    heads = Heads(rounded(graph, observed, reduced_range=request.device.reduced_range))
    network = Network(heads, observed, detector, enumerate_cuts(graph), origin)
    found = rank(request, network, calibration, evaluation, cache, reporter)

    progress = reporter.stage("writing the bundle")
    manifest = write_plans(out, heads, detector, calibration.pixels[:1], module.digest, found)
    progress(1, 1)
    return manifest, found


def detector_of(module: DarknetModule) -> DetectorSpec:
    """How the maps of a zoo model become boxes."""
    height, width = module.input_size
    return DetectorSpec(
        kind="yolov3",
        input_height=height,
        input_width=width,
        heads=tuple(YoloHeadSpec(**asdict(head)) for head in module.heads),
        class_names=CLASS_NAMES,
    )
