"""Ground truth of a detector's images, in COCO's format, and detections matched with it.

    annotation file, class names -> CocoTruth (category of each class, warnings) -+
    detections of a reference    -> agreed_truth                                  -+-> MatchedTruth

The matching is pycocotools', by the protocol of COCO but for area: all objects count, crowds are
neither found nor missed, and at most 100 detections per image and category are considered.
"""

import contextlib
import io
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.errors import CalibrationError
from common.tasks.base import TaskResult
from common.tasks.detections import as_detections
from common.tasks.labels import CATEGORY_IDS, CLASS_NAMES, category_ids
from search.measure.intervals import WeightedAp

NO_CATEGORY: Final = -1
"""Category of a class that the annotations do not have: its detections do not count."""
TRUTH_SCORE: Final = 0.3
"""Score below which a detection of the floating-point network is not taken for an object."""
_KEPT = 3
_NAMED = 8

Record = dict[str, Any]


class MatchedTruth:
    """Detections matched with one ground truth, and the average precision of them.

    Args:
        truth: The objects.
        image_ids: The images, in the order of detections.
        categories: Category of each class; `NO_CATEGORY` for a class without one.
        pooled: Whether detections of all categories are ranked together; else AP is the mean over
            categories.
        judged: The only categories that are judged; all of the truth's, if empty.
    """

    def __init__(
        self,
        truth: COCO,
        image_ids: Sequence[int],
        categories: Sequence[int],
        *,
        pooled: bool = False,
        judged: Sequence[int] = (),
    ) -> None:
        self._truth = truth
        self._image_ids = image_ids
        self._categories = categories
        self._pooled = pooled
        self._judged = judged
        self._matched: list[tuple[Sequence[TaskResult], WeightedAp]] = []

    def weighted(self, detections: Sequence[TaskResult]) -> WeightedAp:
        """AP of detections on the first `len(detections)` images; the last few are kept."""
        for index, (known, weighted) in enumerate(self._matched):
            if len(known) == len(detections) and all(map(operator.is_, known, detections)):
                self._matched.insert(0, self._matched.pop(index))
                return weighted
        made = WeightedAp.of(self._evaluated(detections), pooled=self._pooled)
        self._matched = [(tuple(detections), made), *self._matched][:_KEPT]
        return made

    def _evaluated(self, detections: Sequence[TaskResult]) -> COCOeval:
        image_ids = self._image_ids[: len(detections)]
        found = [
            detection
            for image_id, each in zip(image_ids, detections, strict=True)
            for detection in as_detections(each).to_coco(image_id, self._categories)
        ]
        with contextlib.redirect_stdout(io.StringIO()):
            results = self._truth.loadRes(found) if found else COCO()
            evaluation = COCOeval(self._truth, results, "bbox")
            evaluation.params.imgIds = list(image_ids)
            if self._judged:
                evaluation.params.catIds = list(self._judged)
            everything = evaluation.params.areaRngLbl.index("all")
            evaluation.params.areaRng = [evaluation.params.areaRng[everything]]
            evaluation.params.areaRngLbl = ["all"]
            evaluation.evaluate()
        return evaluation


@dataclass(frozen=True)
class CocoTruth:
    """Annotations of the evaluation images.

    Attributes:
        truth: The objects.
        image_ids: Their id in the file, in the order of the images.
        categories: Category of each class; `NO_CATEGORY` for a class without one.
        judged: The only categories that are judged; all of them, if empty.
        warnings: Lines on classes and categories that do not match.
    """

    truth: COCO
    image_ids: tuple[int, ...]
    categories: tuple[int, ...]
    judged: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    def matched(self) -> MatchedTruth:
        """The truth, to match detections with."""
        return MatchedTruth(self.truth, self.image_ids, self.categories, judged=self.judged)


def read_truth(
    path: Path,
    file_names: Sequence[str],
    class_names: Sequence[str] = CLASS_NAMES,
    classes: Sequence[int] = (),
) -> CocoTruth:
    """Read the annotations of images.

    Args:
        path: A COCO instances file.
        file_names: The evaluation images, in order; each must be in the file.
        class_names: Of the detector; a category of the same name is the class's.
        classes: Indices of the only classes that are judged; all of them, if empty.

    Raises:
        CalibrationError: If the file is no COCO file, does not list an image, has none of the
            classes, or no object of them in these images.
    """
    file = _read(path)
    missing = [name for name in file_names if name not in file.image_ids]
    if missing:
        raise CalibrationError(
            f"{path} does not list {len(missing)} of {len(file_names)} evaluation images, "
            f"e.g. {missing[0]}: give the file of these images"
        )
    categories = match_categories(file.categories, class_names)
    known = {category for category in categories if category != NO_CATEGORY}
    if not known:
        raise CalibrationError(
            f"{path}: no category of it is a class of the network; it has "
            f"{_list(file.categories.values())}, the network {_list(class_names)}: give the "
            "network the same names, as labels of its model card"
        )
    judged = {categories[index] for index in classes} - {NO_CATEGORY}
    image_ids = tuple(file.image_ids[name] for name in file_names)
    counts = file.counts(image_ids)
    if not any(counts[category] for category in (judged if classes else known)):
        raise CalibrationError(
            f"{path}: no object in these {len(image_ids)} images that the network could find"
        )
    warnings = [] if classes else _mismatches(file.categories, class_names, categories, counts)
    truth = coco_of(image_ids, file.objects, file.categories)
    return CocoTruth(truth, image_ids, categories, tuple(sorted(judged)), tuple(warnings))


def agreed_truth(
    reference: Sequence[TaskResult], class_names: Sequence[str], *, pooled: bool = False
) -> MatchedTruth:
    """Truth made of what the floating-point network finds.

    Args:
        reference: Its detections, one entry per evaluation image.
        class_names: Of the detector.
        pooled: As for `MatchedTruth`.

    Raises:
        CalibrationError: If it found nothing at all.
    """
    image_ids = tuple(range(1, len(reference) + 1))
    categories = category_ids(class_names)
    objects = [
        detection
        for image_id, found in zip(image_ids, reference, strict=True)
        for detection in as_detections(found).to_coco(image_id, categories)
        if detection["score"] >= TRUTH_SCORE
    ]
    if not objects:
        raise CalibrationError(
            "the network detects nothing on the evaluation images: give images with objects "
            "that it knows, or annotations"
        )
    numbered = [_object(number, each) for number, each in enumerate(objects, 1)]
    truth = coco_of(image_ids, numbered, categories)
    return MatchedTruth(truth, image_ids, categories, pooled=pooled)


def match_categories(named: Mapping[int, str], class_names: Sequence[str]) -> tuple[int, ...]:
    """Category of each class of a network.

    A class is the category of its name. Classes of COCO whose names a file does not have, or has
    in another spelling, keep COCO's official ids (1 to 90, with gaps), if the file numbers its
    categories as COCO does.

    Args:
        named: Names of the file's categories by their ids.
        class_names: Of the network.

    Returns:
        One id per class; `NO_CATEGORY` for a class without a category.
    """
    by_name = {name: identity for identity, name in named.items() if name}
    found = [by_name.get(name, NO_CATEGORY) for name in class_names]
    if tuple(class_names) == CLASS_NAMES and all(
        mine in {official, NO_CATEGORY} for mine, official in zip(found, CATEGORY_IDS, strict=True)
    ):
        return tuple(each if each in named else NO_CATEGORY for each in CATEGORY_IDS)
    return tuple(found)


def coco_of(image_ids: Iterable[int], objects: Sequence[Record], categories: Iterable[int]) -> COCO:
    """Index objects of images as pycocotools does, without its prints."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": each} for each in image_ids],
        "annotations": objects,
        "categories": [{"id": each} for each in categories],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


@dataclass(frozen=True)
class _InstancesFile:
    """Content of an annotation file: images by name, objects, and names of categories by id."""

    image_ids: Mapping[str, int]
    objects: Sequence[Record]
    categories: Mapping[int, str]

    def counts(self, image_ids: Iterable[int]) -> Counter[int]:
        """Objects to be found in some images, by category."""
        seen = set(image_ids)
        return Counter(
            each["category_id"]
            for each in self.objects
            if each["image_id"] in seen and not each["iscrowd"]
        )


def _read(path: Path) -> _InstancesFile:
    try:
        data = json.loads(path.read_bytes())
        return _InstancesFile(
            {image["file_name"]: _number(image["id"]) for image in data["images"]},
            [_object(number, each) for number, each in enumerate(data["annotations"], 1)],
            {_number(each["id"]): str(each.get("name", "")) for each in data["categories"]},
        )
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read: {error.strerror}") from error
    except KeyError as error:
        raise CalibrationError(f"{path}: not a COCO annotation file: no {error} in it") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{path}: not a COCO annotation file: {error}") from error


def _object(number: int, annotation: Mapping[str, Any]) -> Record:
    """One object with all that pycocotools reads of it.

    Numbers begin at 1: pycocotools takes an object whose number is 0 for none.
    """
    x, y, width, height = (float(each) for each in annotation["bbox"])
    return {
        "id": number,
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": [x, y, width, height],
        "area": float(annotation.get("area", width * height)),
        "iscrowd": int(annotation.get("iscrowd", 0)),
    }


def _number(identity: object) -> int:
    if not isinstance(identity, int):
        raise TypeError(f"expected ids that are whole numbers, got {identity!r}")
    return identity


def _mismatches(
    named: Mapping[int, str],
    class_names: Sequence[str],
    categories: Sequence[int],
    counts: Mapping[int, int],
) -> Iterator[str]:
    """Lines on classes without a category, and on categories with objects and without a class."""
    pairs = zip(class_names, categories, strict=True)
    unknown = [name for name, category in pairs if category == NO_CATEGORY]
    if unknown:
        yield (
            f"{len(unknown)} of the network's {len(class_names)} classes are no category of the "
            f"annotations, so what is found of them does not count: {_list(unknown)}"
        )
    foreign = [name for each, name in named.items() if counts[each] and each not in categories]
    if foreign:
        yield (
            f"{len(foreign)} categories of the annotations are no class of the network, so their "
            f"objects count as missed: {_list(foreign)}"
        )


def _list(names: Iterable[str]) -> str:
    """The first few names."""
    every = list(names)
    return ", ".join(every[:_NAMED]) + ", ..." * (len(every) > _NAMED) or "none"
