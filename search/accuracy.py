"""Accuracy sources: how good the detections of a plan are.

With annotations, COCO average precision (AP over IoU 0.50 to 0.95). Without, *agreement*: the
detections of the floating-point network stand in for the truth, and AP at IoU 0.50 says how well a
plan reproduces them; the network itself then scores about 100. Both by pycocotools, in percent.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.coco import CATEGORY_IDS
from common.detections import Detections
from common.errors import CalibrationError
from search.confidence import WeightedAp, drop_interval

# Below this score, what the floating-point network reports is not taken for an object.
TRUTH_SCORE = 0.3
# Average precision integrates over all scores; lower ones do not change it any more.
EVALUATION_SCORE = 0.01


class AccuracySource(Protocol):
    """Judges one plan's detections on the evaluation images."""

    metric: str

    def accuracy(self, detections: Sequence[Detections]) -> float:
        """Accuracy in percent; one entry of `detections` per evaluation image, in order."""
        ...

    def drop(
        self, reference: Sequence[Detections], detections: Sequence[Detections], level: float
    ) -> tuple[float, float]:
        """What is lost against a reference, judged on the first images, as many as are given.

        Returns:
            (lower end of the confidence interval of that level, its middle) in points.
        """
        ...


class CocoAccuracy:
    """Average precision against annotations.

    Args:
        annotations: A COCO instances file.
        file_names: The evaluation images, in order; each must be in the file.

    Raises:
        CalibrationError: If the file is no COCO file, or an image is not in it.
    """

    metric = "COCO AP"

    def __init__(self, annotations: Path, file_names: Sequence[str]) -> None:
        try:
            dataset = json.loads(annotations.read_bytes())
            ids = {image["file_name"]: image["id"] for image in dataset["images"]}
            self._truth = _coco(dataset)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"{annotations}: not a COCO annotation file: {error}") from error
        missing = [name for name in file_names if name not in ids]
        if missing:
            raise CalibrationError(
                f"{annotations} does not list {len(missing)} evaluation images, e.g. {missing[0]}"
            )
        self._image_ids = [ids[name] for name in file_names]

    def accuracy(self, detections: Sequence[Detections]) -> float:
        """AP over IoU 0.50 to 0.95, in percent."""
        return _evaluate(self._truth, self._image_ids, detections)[0]

    def drop(
        self, reference: Sequence[Detections], detections: Sequence[Detections], level: float
    ) -> tuple[float, float]:
        """As `AccuracySource.drop`."""
        return _drop(self._truth, self._image_ids, reference, detections, level)


class Agreement:
    """Average precision against another network's detections.

    Args:
        reference: What the floating-point network found, one entry per evaluation image.

    Raises:
        CalibrationError: If it found nothing at all.
    """

    metric = "agreement AP50"

    def __init__(self, reference: Sequence[Detections]) -> None:
        self._image_ids = list(range(1, len(reference) + 1))
        objects = [
            {"image_id": image_id, **detection}
            for image_id, found in zip(self._image_ids, reference, strict=True)
            for detection in found.to_coco(image_id)
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
        self._truth = _coco(
            {
                "images": [{"id": image_id} for image_id in self._image_ids],
                "annotations": annotations,
                "categories": [{"id": category} for category in CATEGORY_IDS],
            }
        )

    def accuracy(self, detections: Sequence[Detections]) -> float:
        """AP at IoU 0.50, in percent."""
        return _evaluate(self._truth, self._image_ids, detections)[1]

    def drop(
        self, reference: Sequence[Detections], detections: Sequence[Detections], level: float
    ) -> tuple[float, float]:
        """As `AccuracySource.drop`."""
        return _drop(self._truth, self._image_ids, reference, detections, level, iou=0.5)


def _coco(dataset: dict[str, Any]) -> COCO:
    truth = COCO()
    truth.dataset = {"info": {}, **dataset}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def _drop(
    truth: COCO,
    image_ids: Sequence[int],
    reference: Sequence[Detections],
    detections: Sequence[Detections],
    level: float,
    iou: float | None = None,
) -> tuple[float, float]:
    """(lower end, middle) of the interval of what is lost on the first images."""
    whole = _evaluated(truth, image_ids[: len(reference)], reference)
    found = _evaluated(truth, image_ids[: len(detections)], detections)
    if whole is None:
        return 0.0, 0.0
    if found is None:
        everything = WeightedAp.of(whole).ap(iou=iou)
        return everything, everything
    low, high = drop_interval(WeightedAp.of(whole), WeightedAp.of(found), level=level, iou=iou)
    return low, (low + high) / 2


def _evaluate(
    truth: COCO, image_ids: Sequence[int], detections: Sequence[Detections]
) -> tuple[float, float]:
    """(AP, AP50) in percent."""
    evaluation = _evaluated(truth, image_ids, detections)
    if evaluation is None:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, 100 * evaluation.stats[0]), max(0.0, 100 * evaluation.stats[1])


def _evaluated(
    truth: COCO, image_ids: Sequence[int], detections: Sequence[Detections]
) -> COCOeval | None:
    """Detections matched with the truth; None if there are none."""
    found = [
        detection
        for image_id, each in zip(image_ids, detections, strict=True)
        for detection in each.to_coco(image_id)
    ]
    if not found:
        return None
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
    return evaluation
