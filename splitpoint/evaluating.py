"""Evaluation as one call: a bundle and pictures in, the accuracy of its plans out.

    pictures -> DeployedPlans: reference and every plan -> results -> presets -> metrics -> scores

Each picture runs through all plans before the next one is read. Plans run once, by the weakest
thresholds of all presets; stricter ones leave a part of what was found (`TaskResult.within`).
"""

import hashlib
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from common.bundle.bundle import Bundle
from common.errors import ImageError, SettingsError
from common.imaging.images import read_image
from common.progress import Reporter, Silent
from common.runtime.registry import DEFAULT_RUNTIME, runtime_name
from common.tasks.base import DEFAULTS, ResultSettings, Task, TaskResult
from edge.detector import find_plan
from search.measure.accuracy import EVALUATION_SCORE
from search.measure.frames import list_pictures, names_of, refuse_broken, spread
from search.measure.intervals import KEEP_LEVEL, MAX_DETECTIONS
from search.measure.sources import (
    SOURCES,
    Basis,
    Metrics,
    accuracy_metrics,
    content_digest,
    truth_of,
)
from splitpoint.deployed import DeployedPlans, DeployedResult
from splitpoint.evaluation import EvaluatedPlan, Evaluation, PlanScore

EVALUATION: Final = "evaluation"
SERVING: Final = "serving"
_MOST_RESULT_BYTES: Final = 2 << 30
_MS: Final = 1e3

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
    reporter = reporter or Silent()
    with ExitStack() as opened:
        if not isinstance(bundle, Bundle):
            bundle = opened.enter_context(Bundle.open(Path(bundle)))
        task = bundle.manifest.task
        truth = truth_of(task, {"annotations": _path(annotations), "labels": _path(labels)})
        wanted = list(dict.fromkeys(find_plan(bundle, name) for name in plans))
        serving = ResultSettings(
            score_threshold,
            bundle.manifest.settings.iou_threshold if iou_threshold is None else iou_threshold,
            max_detections,
            task.class_indices(classes),
        )
        presets = presets_of(task, serving)
        pictures = _read_pictures(Path(images), max_images, reporter)
        basis = Basis(task, pictures.names, truth, classes=serving.classes)
        # A truth that cannot be used is found out before the work.
        metrics = None if truth is None else accuracy_metrics(basis)
        deployed = DeployedPlans(bundle, wanted, threads=threads, runtime=runtime)
        runs = _run(deployed, task, pictures, presets, reporter, needs_reference=truth is None)
        reference = _by_preset(runs.reference, presets)
        if metrics is None:
            metrics = accuracy_metrics(replace(basis, reference=next(iter(reference.values()))))
        return Evaluation(
            bundle=bundle.digest.hex(),
            model=bundle.manifest.search.model,
            weights_sha256=bundle.manifest.search.weights_sha256,
            task=task.kind,
            images=len(pictures.paths),
            images_sha256=pictures.sha256,
            truth=None if truth is None else SOURCES[task.kind].truth,
            truth_sha256=content_digest(truth),
            presets=presets,
            reference=_scores(metrics, reference, reference) if runs.reference else (),
            plans=_judged(bundle, runs, metrics, presets, reference, reporter),
            left_out=tuple(
                plan.name
                for digest, plan in bundle.plans.items()
                if not wanted and digest not in deployed.digests
            ),
            warnings=metrics.warnings,
            runtime=runtime_name(threads, runtime),
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


@dataclass(frozen=True)
class _Pictures:
    """Pictures to evaluate on: their paths and names, and the digest of names and contents."""

    paths: Sequence[Path]
    names: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class _Runs:
    """Results of all pictures: of the network in floating point, and of each plan."""

    preprocess_ms: list[float] = field(default_factory=list)
    reference: list[TaskResult] = field(default_factory=list)
    plans: dict[bytes, list[DeployedResult]] = field(default_factory=dict)

    def check_size(self, pictures: int) -> None:
        """Require that the results of all pictures fit into memory, as one picture's take it.

        Raises:
            SettingsError: If they do not.
        """
        size = sum(each.size_bytes for each in self.reference[:1])
        size += sum(done[0].result.size_bytes for done in self.plans.values())
        if size * pictures > _MOST_RESULT_BYTES:
            raise SettingsError(
                f"results of {pictures} pictures by {len(self.plans)} plans take "
                f"{size * pictures >> 20} MiB, more than {_MOST_RESULT_BYTES >> 20}: give fewer "
                f"by --max-images {_MOST_RESULT_BYTES // size}, or one plan by --plan"
            )


def _path(given: Path | str | None) -> Path | None:
    return None if given is None else Path(given)


def _read_pictures(folder: Path, limit: int | None, reporter: Reporter) -> _Pictures:
    """Read all pictures once: a broken one is found out before the work."""
    progress = reporter.stage("reading pictures")
    paths = spread(list_pictures(folder), limit)
    names = names_of(folder, paths)
    state = hashlib.sha256()
    broken: list[ImageError] = []
    for done, (path, name) in enumerate(zip(paths, names, strict=True), 1):
        try:
            read_image(path)
        except ImageError as error:
            broken.append(error)
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256")
        state.update(f"{name}\n{content.hexdigest()}\n".encode("utf-8", "surrogateescape"))
        progress(done, len(paths))
    refuse_broken(folder, broken, len(paths))
    return _Pictures(paths, names, state.hexdigest())


def _run(
    deployed: DeployedPlans,
    task: Task,
    pictures: _Pictures,
    presets: Mapping[str, ResultSettings],
    reporter: Reporter,
    *,
    needs_reference: bool,
) -> _Runs:
    """Run all pictures through the plans, and through the network in floating point.

    Raises:
        SettingsError: If the network is needed and the bundle does not have it, or the results are
            too large.
    """
    if needs_reference and not deployed.has_reference:
        option = SOURCES[task.kind].truth
        raise SettingsError(
            "this bundle has no cloud-only plan, so there is no network in floating point to "
            "compare its plans with: "
            + ("search without --no-raw-image" if option is None else f"give --{option}")
        )
    weakest = _weakest(presets)
    runs = _Runs(plans={digest: [] for digest in deployed.digests})
    progress = reporter.stage("running plans")
    for done, path in enumerate(pictures.paths, 1):
        image = read_image(path)
        began_s = time.perf_counter()
        pixels = task.image.pixels(image)
        runs.preprocess_ms.append(_MS * (time.perf_counter() - began_s))
        where = task.image.place(image.shape[1], image.shape[0])
        if deployed.has_reference:
            runs.reference.append(deployed.reference(pixels, where, weakest))
        for digest, results in runs.plans.items():
            results.append(deployed.run(digest, pixels, where, weakest))
        if done == 1:
            runs.check_size(len(pictures.paths))
        progress(done, len(pictures.paths))
    return runs


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
    runs: _Runs,
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
