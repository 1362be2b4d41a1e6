"""The search: from a trained network and a set of limits to a bundle of plans.

    model -> graph -> calibration -> 8-bit network -> cuts -> latency table + wire sizes
          -> candidates -> shortlist -> measured accuracy -> plans worth keeping -> bundle

Every stage reports its progress. What is ranked is measured: prefix and suffix times, coded bytes,
accuracy of the plan as deployed.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.coco import CLASS_NAMES
from common.detections import Detections, DetectorSpec, YoloHeadSpec
from common.errors import NoFeasiblePlanError, SettingsError
from common.manifest import Manifest
from search.accuracy import AccuracySource, Agreement, CocoAccuracy
from search.calibration import observe
from search.candidates import Candidate, Judged, World, judge, shortlist, worth_keeping
from search.cuts import Cut, enumerate_cuts
from search.deploy import write_plans
from search.evaluate import Evaluator
from search.formats import FormatTable, allowed_cuts
from search.frames import Frames, load_frames
from search.importer import import_module
from search.latency import MeasuredLatency
from search.passes import optimise
from search.quantize import QuantizedGraph, quantize
from search.request import Found, Progress, Reporter, Request
from search.sampling import sample
from search.zoo.darknet import DarknetModule
from search.zoo.registry import load_model

_EVALUATION_THREADS = 2


def search(request: Request, out: Path, reporter: Reporter) -> tuple[Manifest, Found]:
    """Search and write the bundle to `out`.

    Raises:
        SplitpointError: A model, weights, images or limits that cannot be worked with; nothing is
            written then.
    """
    if request.annotations is not None and request.evaluation is None:
        raise SettingsError("--annotations needs --evaluation, the folder of the annotated images")
    progress = reporter.stage("reading the model")
    module = load_model(request.model, weights=request.weights)
    graph = optimise(import_module(module, module.input_size))
    detector = _detector(module)
    progress(1, 1)

    limit, size = request.max_images, module.input_size
    calibration = load_frames(
        request.calibration, size, limit, reporter.stage("reading calibration images")
    )
    evaluation = calibration
    if request.evaluation is not None:
        evaluation = load_frames(
            request.evaluation, size, limit, reporter.stage("reading evaluation images")
        )
    observed = observe(graph, calibration.pixels, reporter.stage("observing activations"))
    network = quantize(graph, observed, reduced_range=request.device.reduced_range)
    every_cut = enumerate_cuts(graph)
    found = _rank(request, network, detector, every_cut, calibration, evaluation, reporter)

    progress = reporter.stage("writing the bundle")
    manifest = write_plans(out, network, detector, calibration.pixels[:1], module.digest, found)
    progress(1, 1)
    return manifest, found


def _rank(
    request: Request,
    network: QuantizedGraph,
    detector: DetectorSpec,
    every_cut: Sequence[Cut],
    calibration: Frames,
    evaluation: Frames,
    reporter: Reporter,
) -> Found:
    """Measure what the limits allow and keep the plans worth it."""
    cuts = allowed_cuts(
        network,
        every_cut,
        request.link,
        edge_memory_bytes=request.edge_memory_bytes,
        no_raw_image=request.no_raw_image,
    )
    tensors = list(dict.fromkeys(name for cut in cuts if cut.head for name in cut.tensors))
    samples = sample(network, tensors, calibration.pixels, reporter.stage("sampling the wire"))
    with tempfile.TemporaryDirectory(prefix="splitpoint-") as scratch:
        folder = Path(scratch)
        evaluator = Evaluator(
            network,
            detector,
            evaluation.pixels,
            evaluation.letterboxes,
            folder,
            threads=_EVALUATION_THREADS,
        )
        reference, postprocess_ms = evaluator.reference(every_cut[0])
        source = _accuracy_source(request, evaluation, reference)
        times = MeasuredLatency(network, folder, tail_threads=request.cloud_threads).times(
            cuts, reporter.stage("timing heads and tails")
        )
        world = World(request.link, request.device, calibration.letterbox_ms, postprocess_ms)
        table = FormatTable(network, samples, times, world)
        progress = reporter.stage("coding tensors")
        candidates: list[Candidate] = []
        for done, cut in enumerate(cuts, 1):
            candidates += table.candidates(cut)
            progress(done, len(cuts))
        accuracy = _measure(
            shortlist(candidates, times, world),
            evaluator,
            source,
            reporter.stage("measuring accuracy as deployed"),
        )
    judged = judge(candidates, times, world)
    measured = [
        Judged(j.candidate, j.latency_ms, j.times, accuracy[j.candidate.name])
        for j in judged
        if j.candidate.name in accuracy
    ]
    best = source.accuracy(reference)
    kept = worth_keeping([j for j in measured if best - (j.accuracy or 0.0) <= request.max_drop])
    if not kept:
        raise NoFeasiblePlanError(_nothing_fits(measured, best, request))
    return Found(
        request=request,
        metric=source.metric,
        reference_accuracy=best,
        cuts=len(every_cut),
        calibration_images=len(calibration.names),
        evaluation_images=evaluation.names,
        world=world,
        judged=tuple(judged),
        measured=tuple(measured),
        kept=tuple(kept),
    )


def _detector(module: DarknetModule) -> DetectorSpec:
    height, width = module.input_size
    return DetectorSpec(
        kind="yolov3",
        input_height=height,
        input_width=width,
        heads=tuple(YoloHeadSpec(**asdict(head)) for head in module.heads),
        class_names=CLASS_NAMES,
    )


def _accuracy_source(
    request: Request, evaluation: Frames, reference: Sequence[Detections]
) -> AccuracySource:
    if request.annotations is not None:
        return CocoAccuracy(request.annotations, evaluation.names)
    return Agreement(reference)


def _measure(
    candidates: Sequence[Candidate],
    evaluator: Evaluator,
    source: AccuracySource,
    progress: Progress,
) -> dict[str, float]:
    """Accuracy by candidate name; candidates of one cut follow each other."""
    accuracy = {}
    by_cut = sorted(candidates, key=lambda c: c.cut.name)
    for done, candidate in enumerate(by_cut, 1):
        accuracy[candidate.name] = source.accuracy(evaluator.detections(candidate))
        progress(done, len(by_cut))
    return accuracy


def _nothing_fits(measured: Sequence[Judged], best: float, request: Request) -> str:
    closest = max(measured, key=lambda j: j.accuracy or 0.0)
    drop = best - (closest.accuracy or 0.0)
    return (
        f"no plan keeps its accuracy within {request.max_drop:g} points of {best:.1f}; the "
        f"closest, {closest.candidate.name}, loses {drop:.2f}: raise --max-drop or --edge-memory"
    )
