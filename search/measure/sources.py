"""Accuracy sources by task: what a plan's results are judged by, with and without annotations."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from common.errors import CalibrationError
from common.tasks.base import Task, TaskResult
from search.measure.accuracy import AccuracySource, AgreementAccuracy, CocoAccuracy
from search.measure.mean_accuracy import (
    ClassAgreement,
    LabelAccuracy,
    TensorAgreement,
    class_labels,
)

Opener = Callable[[Task, Sequence[TaskResult], Sequence[str], Path | None], AccuracySource]


def accuracy_source(
    task: Task, reference: Sequence[TaskResult], names: Sequence[str], annotations: Path | None
) -> AccuracySource:
    """Open the source of a task.

    Args:
        task: What the network is for.
        reference: Results of the floating-point network, one per evaluation image.
        names: Names of the images.
        annotations: The truth: a COCO instances file of a detector's images; of a classifier's a
            CSV file of labels, or their folder of class folders. Without, the reference stands in.

    Raises:
        CalibrationError: If the annotations are not the task's, or lack an image.
    """
    return SOURCES[task.kind](task, reference, names, annotations)


def content_digest(annotations: Path | None) -> str | None:
    """SHA-256 of an annotation file; None for a folder of classes, whose names the images bear."""
    if annotations is None or annotations.is_dir():
        return None
    try:
        return hashlib.sha256(annotations.read_bytes()).hexdigest()
    except OSError as error:
        raise CalibrationError(f"{annotations}: cannot be read: {error.strerror}") from error


def _detection(
    task: Task, reference: Sequence[TaskResult], names: Sequence[str], annotations: Path | None
) -> AccuracySource:
    if annotations is None:
        return AgreementAccuracy(reference, pooled=True, class_names=task.class_names)
    return CocoAccuracy(annotations, names, task.class_names)


def _classification(
    task: Task, reference: Sequence[TaskResult], names: Sequence[str], annotations: Path | None
) -> AccuracySource:
    if annotations is None:
        return ClassAgreement(reference)
    return LabelAccuracy(class_labels(annotations, names, task))


def _tensors(
    task: Task, reference: Sequence[TaskResult], names: Sequence[str], annotations: Path | None
) -> AccuracySource:
    del task, names
    if annotations is not None:
        raise CalibrationError(f"{annotations}: tensors are judged without annotations: leave them")
    return TensorAgreement(reference)


SOURCES: Final[Mapping[str, Opener]] = MappingProxyType(
    {"detection": _detection, "classification": _classification, "tensors": _tensors}
)
"""Openers by the kind of the task."""
