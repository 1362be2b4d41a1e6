"""Accuracy sources: accuracy of the detections of a plan.

With annotations, COCO average precision (AP over IoU 0.50 to 0.95). Without, *agreement*: the
detections of the floating-point network stand in for the truth, and AP at IoU 0.50 says how well a
plan reproduces them; the network itself then scores about 100. Both by pycocotools, in percent.

Agreement may pool the categories: few pictures hold a category once or twice, where its AP is all
or nothing, and mostly all. The mean over categories then jumps by whole points, and a loss looks
half of what it is on many pictures.
"""

import contextlib
import io
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.errors import CalibrationError
from common.tasks.base import TaskResult
from common.tasks.detections import as_detections
from common.tasks.labels import CLASS_NAMES, category_ids
from search.measure.intervals import WeightedAp, drop_bound, drop_interval

# Below this score, what the floating-point network reports is not taken for an object.
TRUTH_SCORE = 0.3
# Average precision integrates over all scores; lower ones do not change it any more.
EVALUATION_SCORE = 0.01
_KEPT = 3


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


class _Judge:
    """Average precision against one ground truth, and losses of it.

    Args:
        truth: The objects.
        image_ids: The images, in the order of detections.
        ids: Category of each class.
        iou: One IoU; None for the mean from 0.50 to 0.95.
        pooled: As for `AgreementAccuracy`.
    """

    def __init__(
        self,
        truth: COCO,
        image_ids: Sequence[int],
        ids: Sequence[int],
        *,
        iou: float | None = None,
        pooled: bool = False,
    ) -> None:
        self._truth = truth
        self._image_ids = image_ids
        self._ids = ids
        self._iou = iou
        self._pooled = pooled
        self._matched: list[tuple[Sequence[TaskResult], WeightedAp | None]] = []

    def accuracy(self, detections: Sequence[TaskResult]) -> float:
        """AP in percent on the first `len(detections)` images."""
        found = self._weighted(detections)
        return 0.0 if found is None else found.ap(iou=self._iou)

    def drop(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> tuple[float, float]:
        """Implement `AccuracySource.drop`."""
        whole, found = self._weighted(reference), self._weighted(detections)
        if whole is None:
            return 0.0, 0.0
        if found is None:
            everything = whole.ap(iou=self._iou)
            return everything, everything
        low, high = drop_interval(whole, found, level=level, iou=self._iou)
        return low, (low + high) / 2

    def most_lost(
        self, reference: Sequence[TaskResult], detections: Sequence[TaskResult], level: float
    ) -> float:
        """Implement `AccuracySource.most_lost`."""
        whole, found = self._weighted(reference), self._weighted(detections)
        if whole is None:
            return 0.0
        if found is None:
            return 100.0
        return drop_bound(whole, found, level=level, iou=self._iou)

    def _weighted(self, detections: Sequence[TaskResult]) -> WeightedAp | None:
        """Match detections with the truth, cached for the last few; None without detections."""
        for known, weighted in self._matched:
            if len(known) == len(detections) and all(map(operator.is_, known, detections)):
                return weighted
        ids = self._image_ids[: len(detections)]
        evaluation = _evaluated(self._truth, ids, detections, self._ids)
        made = None if evaluation is None else WeightedAp.of(evaluation, pooled=self._pooled)
        self._matched = [(tuple(detections), made), *self._matched][:_KEPT]
        return made


class CocoAccuracy(_Judge):
    """Average precision against annotations.

    Args:
        annotations: A COCO instances file.
        file_names: The evaluation images, in order; each must be in the file.
        class_names: Of the detector; a category of the same name is the class's.

    Raises:
        CalibrationError: If the file is no COCO file, or an image is not in it.
    """

    metric = "COCO AP"

    def __init__(
        self,
        annotations: Path,
        file_names: Sequence[str],
        class_names: Sequence[str] = CLASS_NAMES,
    ) -> None:
        try:
            dataset = json.loads(annotations.read_bytes())
            ids = {image["file_name"]: image["id"] for image in dataset["images"]}
            truth = _coco(dataset)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{annotations}: not a COCO annotation file: {error}") from error
        missing = [name for name in file_names if name not in ids]
        if missing:
            raise CalibrationError(
                f"{annotations} does not list {len(missing)} evaluation images, e.g. {missing[0]}"
            )
        categories = _categories(dataset, class_names)
        super().__init__(truth, [ids[name] for name in file_names], categories)


class AgreementAccuracy(_Judge):
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
        self.metric = "pooled agreement AP50" if pooled else "agreement AP50"
        image_ids = list(range(1, len(reference) + 1))
        categories = category_ids(class_names)
        objects = [
            {"image_id": image_id, **detection}
            for image_id, found in zip(image_ids, reference, strict=True)
            for detection in as_detections(found).to_coco(image_id, categories)
            if detection["score"] >= TRUTH_SCORE
        ]
        if not objects:
            raise CalibrationError(
                "the network detects nothing on the evaluation images: give images with objects "
                "that it knows, or annotations"
            )
        annotations = [
            {
                "id": number,
                "image_id": found["image_id"],
                "category_id": found["category_id"],
                "bbox": found["bbox"],
                "area": found["bbox"][2] * found["bbox"][3],
                "iscrowd": 0,
            }
            for number, found in enumerate(objects, 1)
        ]
        truth = _coco(
            {
                "images": [{"id": image_id} for image_id in image_ids],
                "annotations": annotations,
                "categories": [{"id": category} for category in categories],
            }
        )
        super().__init__(truth, image_ids, categories, iou=0.5, pooled=pooled)


def _categories(dataset: dict[str, Any], class_names: Sequence[str]) -> tuple[int, ...]:
    """Category of each class: that of its name, or COCO's order where a name is not there."""
    named = {each.get("name"): each["id"] for each in dataset.get("categories", ())}
    if all(name in named for name in class_names):
        return tuple(named[name] for name in class_names)
    return category_ids(class_names)


def _coco(dataset: dict[str, Any]) -> COCO:
    truth = COCO()
    truth.dataset = {"info": {}, **dataset}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _evaluated(
    truth: COCO,
    image_ids: Sequence[int],
    detections: Sequence[TaskResult],
    ids: Sequence[int],
) -> COCOeval | None:
    """Match detections with the truth; None without detections."""
    found = [
        detection
        for image_id, each in zip(image_ids, detections, strict=True)
        for detection in as_detections(each).to_coco(image_id, ids)
    ]
    if not found:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.imgIds = list(image_ids)
        everything = evaluation.params.areaRngLbl.index("all")
        evaluation.params.areaRng = [evaluation.params.areaRng[everything]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    return evaluation
