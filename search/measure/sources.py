"""Accuracy sources by task: what a plan's results are judged by, with and without annotations.

    task, images, truth or reference (Basis) -> SOURCES -> Metrics: the first one decides a search

`splitpoint search` judges candidates by the first metric, `splitpoint evaluate` the plans of a
bundle by all of them.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from common.errors import CalibrationError, SettingsError
from common.tasks.base import Task, TaskResult
from common.tasks.classification import ClassificationTask
from search.measure.accuracy import AccuracySource, AgreementAccuracy, CocoAccuracy
from search.measure.mean_accuracy import (
    ClassAgreement,
    LabelAccuracy,
    TensorAgreement,
    class_labels,
)

TruthOption = Literal["annotations", "labels"]
"""Name of the option that gives the truth about images."""
_USUAL_TOPS: Final = (1, 5)


@dataclass(frozen=True)
class Basis:
    """Everything that accuracy sources of a task are made of.

    Attributes:
        task: What the network is for.
        names: Names of the evaluation images.
        truth: The truth about them: a COCO instances file of a detector's images; of a
            classifier's a CSV file of labels, or their folder of class folders. Without, the
            reference stands in.
        reference: Results of the floating-point network, one per image; needed without a truth.
        classes: Indices of the only classes that count; all of them, if empty.
        tops: Numbers of a classifier's best classes that count, one metric each; None for the
            usual ones.
    """

    task: Task
    names: Sequence[str]
    truth: Path | None = None
    reference: Sequence[TaskResult] = ()
    classes: tuple[int, ...] = ()
    tops: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Metrics:
    """Metrics of a task's results.

    Attributes:
        sources: One per metric; the first one decides a search.
        warnings: Lines on what of the truth and the network does not match.
    """

    sources: tuple[AccuracySource, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskSources:
    """Sources of a task.

    Attributes:
        open: Opens the metrics; raises CalibrationError if the truth is not the task's.
        truth: The option that gives the truth; None if there is none.
        has_thresholds: Whether thresholds decide what a result holds.
    """

    open: Callable[[Basis], Metrics]
    truth: TruthOption | None
    has_thresholds: bool = False


def accuracy_metrics(basis: Basis) -> Metrics:
    """Open all metrics of a task.

    Raises:
        CalibrationError: If the truth is not the task's, or lacks an image.
        SettingsError: If `tops` are not the task's.
    """
    if basis.tops not in {None, (1,)} and not isinstance(basis.task, ClassificationTask):
        raise SettingsError(f"--top is for classifiers, and the task here is {basis.task.kind}")
    return SOURCES[basis.task.kind].open(basis)


def truth_of(task: Task, given: Mapping[TruthOption, Path | None]) -> Path | None:
    """The truth that a user gives for a task; None if none is given.

    Raises:
        SettingsError: If it is given by an option that is for another task.
    """
    wanted = SOURCES[task.kind].truth
    for option, path in given.items():
        if path is not None and option != wanted:
            instead = "leave it out" if wanted is None else f"give --{wanted}"
            raise SettingsError(f"--{option}: not the truth about {task.kind}: {instead}")
    return None if wanted is None else given.get(wanted)


def content_digest(annotations: Path | None) -> str | None:
    """SHA-256 of an annotation file; None for a folder of classes, whose names the images bear."""
    if annotations is None or annotations.is_dir():
        return None
    try:
        return hashlib.sha256(annotations.read_bytes()).hexdigest()
    except OSError as error:
        raise CalibrationError(f"{annotations}: cannot be read: {error.strerror}") from error


def _detection(basis: Basis) -> Metrics:
    names = basis.task.class_names
    if basis.truth is None:
        agreement = AgreementAccuracy(basis.reference, pooled=True, class_names=names)
        return Metrics((agreement, agreement.at("pooled agreement AP", None)))
    found = CocoAccuracy(basis.truth, basis.names, names, basis.classes)
    return Metrics((found, found.at("COCO AP50", 0.5)), found.warnings)


def _classification(basis: Basis) -> Metrics:
    if not isinstance(basis.task, ClassificationTask):
        raise TypeError(f"expected a classification task, got {basis.task.kind}")
    if basis.truth is None:
        tops = _tops(basis.task, basis.tops or (1,))
        return Metrics(tuple(ClassAgreement(basis.reference, top) for top in tops))
    labels = class_labels(basis.truth, basis.names, basis.task)
    tops = _tops(basis.task, basis.tops or _usual_tops(basis.task))
    return Metrics(tuple(LabelAccuracy(labels, top) for top in tops))


def _usual_tops(task: ClassificationTask) -> tuple[int, ...]:
    """Top-1 and, of more than five classes, top-5, if as many are reported."""
    return tuple(top for top in _USUAL_TOPS if top <= task.top and top < len(task.class_names)) or (
        1,
    )


def _tops(task: ClassificationTask, tops: tuple[int, ...]) -> tuple[int, ...]:
    """Require that a classifier reports as many classes as count.

    Raises:
        SettingsError: If it does not.
    """
    for top in tops:
        if not 1 <= top <= task.top:
            raise SettingsError(
                f"--top {top}: the network reports {task.top} classes at the most: give 1 to "
                f"{task.top}, or a larger `top` under [task] of its model card"
            )
    return tops


def _tensors(basis: Basis) -> Metrics:
    if basis.truth is not None:
        raise CalibrationError(f"{basis.truth}: tensors are judged without annotations: leave them")
    return Metrics((TensorAgreement(basis.reference),))


SOURCES: Final[Mapping[str, TaskSources]] = MappingProxyType(
    {
        "detection": TaskSources(_detection, "annotations", has_thresholds=True),
        "classification": TaskSources(_classification, "labels"),
        "tensors": TaskSources(_tensors, None),
    }
)
"""Sources by the kind of the task."""
