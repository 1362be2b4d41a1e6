"""Accuracy sources of detectors: average precision of the detections of a plan.

With annotations, COCO average precision (AP over IoU 0.50 to 0.95, or one IoU). Without,
*agreement*: the detections of the floating-point network stand in for the truth, and AP at IoU 0.50
says how well a plan reproduces them; the network itself then scores about 100. Both by pycocotools,
in percent.

Agreement may pool the categories: few pictures hold a category once or twice, where its AP is all
or nothing, and mostly all. The mean over categories then jumps by whole points, and a loss looks
half of what it is on many pictures.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.tasks.base import TaskResult
from common.tasks.labels import CLASS_NAMES
from search.measure.coco_truth import MatchedTruth, agreed_truth, read_truth
from search.measure.intervals import drop_bound, drop_interval

# Average precision integrates over all scores; lower ones change it by less than 0.1 points.
EVALUATION_SCORE = 0.01


class AccuracySource(Protocol):
    """Judges one plan's detections on the evaluation images."""

    metric: str

    def accuracy(self, detections: Sequence[TaskResult]) -> float:
        """Accuracy in percent; one entry of `detections` per evaluation image, in order."""
        ...

    def drop(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> tuple[float, float]:
        """Accuracy lost against a reference, on the first `len(detections)` images.

        Returns:
            (lower end of the confidence interval of that level, its middle) in points.
        """
        ...

    def most_lost(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> float:
        """Upper confidence bound of the accuracy lost against a reference, on all images.

        Returns:
            The end of the one-sided confidence interval of that level, in points.
        """
        ...


class DetectionAccuracy:
    """Average precision of detections; see `AccuracySource`.

    Args:
        metric: Name of the metric.
        truth: What detections are judged by; metrics of one truth share its matches.
        iou: One IoU; None for the mean from 0.50 to 0.95.
    """

    def __init__(self, metric: str, truth: MatchedTruth, iou: float | None = None) -> None:
        self.metric = metric
        self._truth = truth
        self._iou = iou

    def at(self, metric: str, iou: float | None) -> "DetectionAccuracy":
        """Another metric of the same truth."""
        return DetectionAccuracy(metric, self._truth, iou)

    def accuracy(self, detections: Sequence[TaskResult]) -> float:
        """AP in percent on the first `len(detections)` images."""
        return self._truth.weighted(detections).ap(iou=self._iou)

    def drop(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> tuple[float, float]:
        """Implement `AccuracySource.drop`."""
        whole, found = self._truth.weighted(reference), self._truth.weighted(detections)
        low, high = drop_interval(whole, found, level=level, iou=self._iou)
        return low, (low + high) / 2

    def most_lost(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> float:
        """Implement `AccuracySource.most_lost`."""
        whole, found = self._truth.weighted(reference), self._truth.weighted(detections)
        return drop_bound(whole, found, level=level, iou=self._iou)


class CocoAccuracy(DetectionAccuracy):
    """Average precision against annotations.

    Args:
        annotations: A COCO instances file.
        file_names: The evaluation images, in order; each must be in the file.
        class_names: Of the detector; see `search.measure.coco_truth.match_categories`.
        classes: Indices of the only classes that are judged; all of them, if empty.

    Attributes:
        warnings: Lines on classes and categories that do not match.

    Raises:
        CalibrationError: If the annotations are not those of the images or of the network.
    """

    def __init__(
        self,
        annotations: Path,
        file_names: Sequence[str],
        class_names: Sequence[str] = CLASS_NAMES,
        classes: Sequence[int] = (),
    ) -> None:
        truth = read_truth(annotations, file_names, class_names, classes)
        self.warnings = truth.warnings
        super().__init__("COCO AP", truth.matched())


class AgreementAccuracy(DetectionAccuracy):
    """Average precision against another network's detections.

    Args:
        reference: What the floating-point network found, one entry per evaluation image.
        pooled: Whether detections of all categories are ranked together; else AP is the mean over
            categories.
        class_names: Of the detector.

    Raises:
        CalibrationError: If it found nothing at all.
    """

    def __init__(
        self,
        reference: Sequence[TaskResult],
        *,
        pooled: bool = False,
        class_names: Sequence[str] = CLASS_NAMES,
    ) -> None:
        metric = "pooled agreement AP50" if pooled else "agreement AP50"
        super().__init__(metric, agreed_truth(reference, class_names, pooled=pooled), 0.5)
