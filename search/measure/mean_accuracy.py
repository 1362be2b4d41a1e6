"""Accuracy sources whose accuracy is a mean over images: classification and plain tensors.

Classification is judged by labels, or by agreement with the floating-point network's best class;
tensors by their relative error against the floating-point network's. What a plan loses is a mean of
differences image by image, so its interval is a bootstrap of those.
"""

import csv
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import CalibrationError, SettingsError
from common.tasks.base import Task, TaskResult
from common.tasks.classification import Classes
from common.tasks.tensors import Tensors, relative_error
from search.measure.intervals import mean_bound, mean_interval

Points = NDArray[np.float64]


class _MeanAccuracy(ABC):
    """Accuracy as the mean of a score of each image, 0 to 100; see `AccuracySource`."""

    def accuracy(self, detections: Sequence[TaskResult]) -> float:
        """Mean score on the first `len(detections)` images."""
        return float(self._scores(detections).mean()) if detections else 0.0

    def drop(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> tuple[float, float]:
        """Implement `AccuracySource.drop`."""
        low, high = mean_interval(self._lost(reference, detections), level=level)
        return low, (low + high) / 2

    def most_lost(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> float:
        """Implement `AccuracySource.most_lost`."""
        return mean_bound(self._lost(reference, detections), level=level)

    def _lost(self, reference: Sequence[TaskResult], results: Sequence[TaskResult]) -> Points:
        return self._scores(reference[: len(results)]) - self._scores(results)

    def _scores(self, results: Sequence[TaskResult]) -> Points:
        return np.array([100 * self._score(k, each) for k, each in enumerate(results)], float)

    @abstractmethod
    def _score(self, index: int, result: TaskResult) -> float:
        """Score of one image's result, 0 to 1."""


class LabelAccuracy(_MeanAccuracy):
    """Share of images whose label is among the best classes.

    Args:
        labels: Index of each image's class.
        top: How many of the best classes count.
    """

    def __init__(self, labels: Sequence[int], top: int = 1) -> None:
        self.metric = f"top-{top} accuracy"
        self._labels = labels
        self._top = top

    def _score(self, index: int, result: TaskResult) -> float:
        return float(self._labels[index] in _best(result, self._top))


class ClassAgreement(_MeanAccuracy):
    """Share of images for which the floating-point network's best class is among the best.

    Args:
        reference: The floating-point network's classes, one entry per evaluation image.
        top: How many of the best classes count.
    """

    def __init__(self, reference: Sequence[TaskResult], top: int = 1) -> None:
        self.metric = f"top-{top} agreement"
        self._reference = [_best(each, 1) for each in reference]
        self._top = top

    def _score(self, index: int, result: TaskResult) -> float:
        expected, found = self._reference[index], _best(result, self._top)
        return float(set(expected) <= set(found))


class TensorAgreement(_MeanAccuracy):
    """Mean relative error of the outputs against the floating-point network's, as 100 less percent.

    Args:
        reference: The floating-point network's outputs, one entry per evaluation image.
    """

    metric = "100 % less relative error"

    def __init__(self, reference: Sequence[TaskResult]) -> None:
        self._reference = [_tensors(each) for each in reference]

    def _score(self, index: int, result: TaskResult) -> float:
        pairs = zip(self._reference[index].tensors, _tensors(result).tensors, strict=True)
        errors = [min(relative_error(expected, found), 1.0) for expected, found in pairs]
        return 1 - sum(errors) / len(errors)


def class_labels(annotations: Path, names: Sequence[str], task: Task) -> list[int]:
    """Labels of images, from a CSV file or from the folders that they are in.

    Args:
        annotations: A file of lines `file name,class`; or the folder of class folders that the
            images were read from.
        names: Names of the images, within that folder.
        task: Has the names of classes; a class may also be given by its index.

    Raises:
        CalibrationError: If an image has no label, or there is no such class.
    """
    known = _by_folder(names) if annotations.is_dir() else _by_line(annotations)
    missing = [name for name in names if name not in known]
    if missing:
        raise CalibrationError(
            f"{annotations} has no class of {len(missing)} evaluation images, e.g. {missing[0]}: "
            "expected lines of file name and class, or a folder for each class"
        )
    try:
        return list(task.class_indices(known[name] for name in names))
    except SettingsError as error:
        raise CalibrationError(f"{annotations}: {error}") from error


def _by_folder(names: Sequence[str]) -> Mapping[str, str]:
    return {name: name.partition("/")[0] for name in names if "/" in name}


def _by_line(path: Path) -> Mapping[str, str]:
    try:
        with path.open(newline="") as file:
            return {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) > 1}
    except (OSError, ValueError, csv.Error) as error:
        raise CalibrationError(f"{path}: not a CSV file of labels: {error}") from error


def _best(result: TaskResult, top: int) -> list[int]:
    if not isinstance(result, Classes):
        raise TypeError(f"expected classes, got {type(result).__name__}")
    return [int(index) for index in result.indices[:top]]


def _tensors(result: TaskResult) -> Tensors:
    if not isinstance(result, Tensors):
        raise TypeError(f"expected tensors, got {type(result).__name__}")
    return result
