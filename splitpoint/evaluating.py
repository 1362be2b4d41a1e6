"""Evaluation as one call: a bundle and pictures in, the accuracy of its plans out.

    pictures -> DeployedPlans: reference and every plan -> results -> presets -> metrics -> scores

Each picture runs through all plans before the next one is read. Plans run once, by the weakest
thresholds of all presets; stricter ones leave a part of what was found (`TaskResult.within`).
"""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from common.bundle.bundle import Bundle
from common.errors import SettingsError
from common.progress import Reporter, Silent
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tasks.base import DEFAULTS, ResultSettings, Task, TaskResult
from edge.detector import find_plan
from search.measure.accuracy import EVALUATION_SCORE
from search.measure.intervals import KEEP_LEVEL, MAX_DETECTIONS
from search.measure.sources import (
    SOURCES,
    Basis,
    Metrics,
    accuracy_metrics,
    content_digest,
    truth_of,
)
from splitpoint.deployed import DeployedPlans
from splitpoint.evaluation import EvaluatedPlan, Evaluation, PlanScore
from splitpoint.evaluation_runs import PlanRuns, read_pictures, run_pictures

EVALUATION: Final = "evaluation"
SERVING: Final = "serving"

Found = Mapping[str, Sequence[TaskResult]]
"""Results of all pictures, by the name of a preset."""


def evaluate(
    bundle: Bundle | Path | str,
    images: Path | str,
    *,
    annotations: Path | str | None = None,
    labels: Path | str | None = None,
    plans: Sequence[str] = (),
    score_threshold: float = DEFAULTS.score_threshold,
    iou_threshold: float | None = None,
    max_detections: int = DEFAULTS.max_detections,
    classes: Sequence[str] = (),
    max_images: int | None = None,
    threads: int = 1,
    runtime: str = DEFAULT_RUNTIME,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure the accuracy of the plans of a bundle as they are deployed.

    Heads, payloads, messages, tails and decoders are those that edge and cloud run, in this
    process. Without a truth, plans are judged by the network in floating point.

        >>> found = evaluate(bundle, images)
        >>> [plan.name for plan in found.plans]
        ['split-4', 'cloud-only-png', 'edge-only']
        >>> lossless = found.plans[1].scores[0]
        >>> lossless.preset, lossless.metric, lossless.lost, lossless.lost_at_most
        ('evaluation', 'pooled agreement AP50', 0.0, 0.0)

    Args:
        bundle: A bundle's folder or zip file, or an opened one, which stays open.
        images: Folder of pictures, or of folders of them, one per class.
        annotations: COCO instances file of a detector's pictures.
        labels: Labels of a classifier's pictures: lines of file name and class, or the folder of
            class folders.
        plans: Names of the plans to evaluate, or starts of their digests; all, if empty.
        score_threshold: Lowest score of the preset "serving".
        iou_threshold: A detection that overlaps a better one of its class by more is dropped; as in
            the bundle's search, if None.
        max_detections: The most detections of the preset "serving".
        classes: Names of the only classes that count; all, if empty.
        max_images: The most pictures, spread evenly over the folder; all, if None.
        threads: Threads within one run of a model.
        runtime: Runtime of heads and tails: "onnxruntime" or "openvino".
        reporter: Shows progress, if given.

    Raises:
        SplitpointError: If the bundle, a plan, the pictures or the truth cannot be used.
    """
    with ExitStack() as opened:
        if not isinstance(bundle, Bundle):
            bundle = opened.enter_context(Bundle.open(Path(bundle)))
        task = bundle.manifest.task
        iou = bundle.manifest.settings.iou_threshold if iou_threshold is None else iou_threshold
        wanted = task.class_indices(classes)
        serving = ResultSettings(score_threshold, iou, max_detections, wanted)
        spec = _Spec(
            images=Path(images),
            max_images=max_images,
            truth=truth_of(task, {"annotations": _path(annotations), "labels": _path(labels)}),
            presets=presets_of(task, serving),
            classes=wanted,
            plans=tuple(dict.fromkeys(find_plan(bundle, name) for name in plans)),
            threads=threads,
            runtime=runtime,
        )
        return _evaluate(bundle, spec, reporter or Silent())


@dataclass(frozen=True)
class _Spec:
    """Settings of an evaluation, as checked against the bundle.

    Attributes:
        images: Folder of pictures.
        max_images: The most pictures; all, if None.
        truth: File or folder with the truth; None if the reference stands in.
        presets: Settings of results by name.
        classes: Indices of the only classes that count; all, if empty.
        plans: Digests of the plans to evaluate; all, if empty.
        threads: Threads within one run of a model.
        runtime: Name of the runtime.
    """

    images: Path
    max_images: int | None
    truth: Path | None
    presets: Mapping[str, ResultSettings]
    classes: tuple[int, ...]
    plans: tuple[bytes, ...]
    threads: int
    runtime: str


def _evaluate(bundle: Bundle, spec: _Spec, reporter: Reporter) -> Evaluation:
    task, search = bundle.manifest.task, bundle.manifest.search
    pictures = read_pictures(spec.images, spec.max_images, reporter)
    basis = Basis(task, pictures.names, spec.truth, classes=spec.classes)
    # A truth that cannot be used is found out before the work.
    metrics = None if spec.truth is None else accuracy_metrics(basis)
    deployed = DeployedPlans(bundle, spec.plans, threads=spec.threads, runtime=spec.runtime)
    if spec.truth is None:
        _require_reference(deployed, task)
    runs = run_pictures(deployed, task, pictures, _weakest(spec.presets), reporter)
    reference = _by_preset(runs.reference, spec.presets)
    if metrics is None:
        metrics = accuracy_metrics(replace(basis, reference=next(iter(reference.values()))))
    left_out = () if spec.plans else tuple(bundle.plans.keys() - set(deployed.digests))
    return Evaluation(
        bundle=bundle.digest.hex(),
        model=search.model,
        weights_sha256=search.weights_sha256,
        task=task.kind,
        images=len(pictures.paths),
        images_sha256=pictures.sha256,
        truth=None if spec.truth is None else SOURCES[task.kind].truth,
        truth_sha256=content_digest(spec.truth),
        presets=spec.presets,
        reference=_scores(metrics, reference, reference) if runs.reference else (),
        plans=_judged(bundle, runs, metrics, spec.presets, reference, reporter),
        left_out=tuple(sorted(bundle.plans[digest].name for digest in left_out)),
        warnings=metrics.warnings,
        runtime=runtime_name(spec.threads, spec.runtime),
    )


def presets_of(task: Task, serving: ResultSettings) -> dict[str, ResultSettings]:
    """Settings of results by the names of presets; where thresholds decide nothing, only one.

    Raises:
        SettingsError: If edge and cloud cannot serve with them.
    """
    serving.check_on_the_wire()
    if not SOURCES[task.kind].has_thresholds:
        return {SERVING: serving}
    protocol = replace(serving, score_threshold=EVALUATION_SCORE, max_detections=MAX_DETECTIONS)
    return {EVALUATION: protocol, SERVING: serving}


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


def _require_reference(deployed: DeployedPlans, task: Task) -> None:
    """Require the network in floating point, where no truth is given.

    Raises:
        SettingsError: If the bundle does not have it.
    """
    if not deployed.has_reference:
        option = SOURCES[task.kind].truth
        raise SettingsError(
            "this bundle has no cloud-only plan, so there is no network in floating point to "
            "compare its plans with: "
            + ("search without --no-raw-image" if option is None else f"give --{option}")
        )


def _weakest(presets: Mapping[str, ResultSettings]) -> ResultSettings:
    """Settings that leave out nothing that one of the presets reports."""
    every = list(presets.values())
    return replace(
        every[0],
        score_threshold=min(each.score_threshold for each in every),
        max_detections=max(each.max_detections for each in every),
    )


def _by_preset(results: Sequence[TaskResult], presets: Mapping[str, ResultSettings]) -> Found:
    return {name: [each.within(settings) for each in results] for name, settings in presets.items()}


def _judged(
    bundle: Bundle,
    runs: PlanRuns,
    metrics: Metrics,
    presets: Mapping[str, ResultSettings],
    reference: Found,
    reporter: Reporter,
) -> tuple[EvaluatedPlan, ...]:
    """Compute accuracies, bytes and times of the plans."""
    progress = reporter.stage("computing accuracies")
    judged = []
    for digest, results in runs.plans.items():
        plan = bundle.plans[digest]
        found = _by_preset([each.result for each in results], presets)
        sizes = [each.uplink_bytes for each in results]
        stages = {
            stage: statistics.median(each.stages_ms[stage] for each in results)
            for stage in results[0].stages_ms
        }
        judged.append(
            EvaluatedPlan(
                name=plan.name,
                kind=plan.kind,
                digest=digest.hex(),
                scores=_scores(metrics, found, reference if runs.reference else None),
                uplink_bytes=statistics.fmean(sizes),
                uplink_bytes_p95=float(np.percentile(sizes, 95)),
                stages_ms={"preprocess": statistics.median(runs.preprocess_ms), **stages},
            )
        )
        progress(len(judged), len(runs.plans))
    return tuple(judged)


def _scores(metrics: Metrics, found: Found, reference: Found | None) -> tuple[PlanScore, ...]:
    """Score results by every preset and metric, against the network's where there are any."""
    scores = []
    for preset, results in found.items():
        for source in metrics.sources:
            accuracy, lost, lost_at_most = source.accuracy(results), None, None
            if reference is not None:
                lost = source.accuracy(reference[preset]) - accuracy
                lost_at_most = source.most_lost(reference[preset], results, KEEP_LEVEL)
            scores.append(PlanScore(preset, source.metric, accuracy, lost, lost_at_most))
    return tuple(scores)
