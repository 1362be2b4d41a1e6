"""Detection: from a detector's outputs to boxes.

    outputs -> Decoder.candidates -> suppression -> Detections -> Result, COCO file, REST, drawing

The cloud decodes the tail's outputs, an edge-only plan decodes on the edge, and the search judges
plans by the same code, so a plan's accuracy is that of what is deployed. A network may be fed
anything: values that are not finite are ignored, huge ones are clamped, and nothing warns.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from common.errors import ModelError, PayloadError, WrongTaskError
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.tasks import labels as coco
from common.tasks.base import (
    Agreement,
    Carrier,
    Floats,
    Integers,
    ResultSettings,
    ResultTable,
    Shapes,
    Task,
    TaskResult,
)
from common.tasks.decoders.registry import AnyDecoder, with_near_presets
from common.tasks.draw import draw_boxes
from common.tasks.suppression import MAX_CANDIDATES, best, box_iou, suppress

MAX_DETECTIONS: Final = MAX_CANDIDATES
"""Most detections of a frame: no more enter NMS, so no honest end finds more."""


@dataclass(frozen=True, eq=False)
class Detections(TaskResult):
    """Detections of one image, by falling score.

    Attributes:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels of the source image.
        scores: (N,) in [0, 1].
        classes: (N,) indices into the detector's class names.

    Raises:
        ValueError: If the three do not have these shapes.
    """

    boxes: Floats
    scores: Floats
    classes: Integers

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = self.boxes.shape, self.scores.shape, self.classes.shape
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f"expected shapes (N, 4), (N,) and (N,), got {shapes}")

    @classmethod
    def empty(cls) -> Self:
        """Nothing found."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def size_bytes(self) -> int:
        """Memory that its arrays take."""
        return self.boxes.nbytes + self.scores.nbytes + self.classes.nbytes

    def write(self, carrier: Carrier) -> None:
        """Put it into a message as columns."""
        carrier.detections.CopyFrom(
            pb.Detections(
                boxes=self.boxes.ravel().tolist(),
                scores=self.scores.tolist(),
                classes=self.classes.tolist(),
            )
        )

    def to_records(self, image_id: int, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Entries of a COCO results file, with the ids of these classes."""
        return self.to_coco(image_id, coco.category_ids(class_names))

    def to_table(self, class_names: Sequence[str]) -> ResultTable:
        """Objects with their score and place, in whole pixels."""
        rows = [
            (row["class_name"], f"{row['score']:.2f}", *(f"{side:.0f}" for side in row["bbox"]))
            for row in self.to_json(class_names)
        ]
        return ResultTable(("object", "score", "x", "y", "width", "height"), tuple(rows))

    def draw(self, picture: Image.Image, class_names: Sequence[str]) -> None:
        """Draw boxes and labels."""
        columns = self.boxes.tolist(), self.scores.tolist(), self.classes.tolist()
        draw_boxes(picture, *columns, class_names)

    def within(self, settings: ResultSettings) -> Self:
        """Implement `TaskResult.within`."""
        kept = np.flatnonzero(self.scores >= settings.score_threshold)[: settings.max_detections]
        return type(self)(self.boxes[kept], self.scores[kept], self.classes[kept])

    def agreement(self, found: Self, iou: float = 0.5) -> Agreement:
        """Pair up with what was found in the same image, greedily, best expected score first.

        Args:
            found: What is compared with these.
            iou: Least intersection over union of a pair; both must be of the same class.
        """
        overlap = box_iou(self.boxes, found.boxes)
        overlap[self.classes[:, None] != found.classes] = 0
        matched = 0
        for row in np.argsort(-self.scores, kind="stable") if len(found) else ():
            nearest = int(overlap[row].argmax())
            if overlap[row, nearest] >= iou and overlap[row, nearest] > 0:
                matched += 1
                overlap[:, nearest] = 0
        return Agreement(matched, len(self) - matched, len(found) - matched)

    def to_coco(
        self, image_id: int, category_ids: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """Entries of a COCO results file: `image_id`, `category_id`, `bbox` [x, y, w, h], `score`.

        Args:
            image_id: The image's id in the annotation file.
            category_ids: The id of each class; COCO's own 80 unless given.

        Raises:
            ModelError: If a class has no id.
        """
        ids = coco.CATEGORY_IDS if category_ids is None else category_ids
        return [
            {"image_id": image_id, "category_id": ids[index], "bbox": bbox, "score": score}
            for index, score, bbox in self._rounded(len(ids))
        ]

    def to_json(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Records of a REST answer: `class_name`, `category_id`, `score` and `bbox` [x, y, w, h].

        Raises:
            ModelError: If a class has no name.
        """
        ids = coco.category_ids(class_names)
        return [
            {
                "class_name": class_names[index],
                "category_id": ids[index],
                "score": score,
                "bbox": bbox,
            }
            for index, score, bbox in self._rounded(len(ids))
        ]

    def _rounded(self, known: int) -> Iterator[tuple[int, float, list[float]]]:
        """(class, score to 4 decimals, [x, y, w, h] to 2 decimals) of each detection."""
        if len(self) and not 0 <= self.classes.min() <= self.classes.max() < known:
            raise ModelError(
                f"expected classes below {known}, got {self.classes.min()} to {self.classes.max()}"
            )
        for index, score, (x1, y1, x2, y2) in zip(
            self.classes.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
        ):
            bbox = [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)]
            yield index, round(score, 4), bbox


class DetectionTask(Task):
    """Detection of objects.

    Attributes:
        decoder: How the network writes boxes into its outputs.
    """

    kind: Literal["detection"] = "detection"
    decoder: AnyDecoder
    class_names: tuple[str, ...] = Field(min_length=1)
    message: ClassVar[str] = "detections"

    @model_validator(mode="after")
    def _decoder_suits_the_input(self) -> Self:
        self.decoder.check(self.image.size)
        return self

    def misfit(self, shapes: Shapes) -> str | None:
        """Say in one line why outputs of these shapes are not the decoder's; None if they are."""
        wrong = self.decoder.fits(shapes, self.image.size, len(self.class_names))
        return None if wrong is None else with_near_presets(wrong, shapes, self.image.size)

    def empty(self) -> Detections:
        """No detections."""
        return Detections.empty()

    def from_json(self, records: Iterable[Any]) -> Detections:
        """Read the records of a REST answer.

        Raises:
            PayloadError: If they are no detections of these classes.
        """
        try:
            found = list(records)
            boxes = np.array([each["bbox"] for each in found], np.float32).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            return Detections(
                boxes=boxes,
                scores=np.array([each["score"] for each in found], np.float32),
                classes=np.array(
                    [self.class_names.index(each["class_name"]) for each in found], np.int32
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PayloadError(f"detections: not those of this network: {error}") from error

    def _decode(
        self, outputs: Sequence[Floats], where: Placement, settings: ResultSettings
    ) -> Detections:
        """Decode boxes and suppress duplicates; only the best `MAX_CANDIDATES` enter."""
        boxes, scores, classes = self.decoder.candidates(
            outputs, self.image.size, len(self.class_names), settings.score_threshold
        )
        if settings.classes:
            wanted = np.isin(classes, settings.classes)
            boxes, scores, classes = boxes[wanted], scores[wanted], classes[wanted]
        if self.decoder.overlaps:
            kept = suppress(boxes, scores, classes, settings.iou_threshold)
        else:
            kept = best(scores)
        # A box may lie in the padding altogether: clipped to the image, nothing of it remains.
        corners = where.to_image(boxes[kept])
        visible = np.flatnonzero((corners[:, 2:] > corners[:, :2]).all(axis=1))
        visible = visible[: settings.max_detections]
        kept = kept[visible]
        return Detections(corners[visible], scores[kept], classes[kept])

    def _read(self, message: pb.Detections) -> Detections:
        count = len(message.scores)
        if max(count, len(message.classes), len(message.boxes) // 4) > MAX_DETECTIONS:
            raise PayloadError(f"detections: expected at most {MAX_DETECTIONS}, got {count} scores")
        if len(message.boxes) != 4 * count or len(message.classes) != count:
            raise PayloadError(
                f"detections: {len(message.boxes)} box coordinates, {count} scores and "
                f"{len(message.classes)} classes do not belong together"
            )
        boxes = np.asarray(message.boxes, dtype=np.float32).reshape(count, 4)
        scores = np.asarray(message.scores, dtype=np.float32)
        indices = np.asarray(message.classes, dtype=np.int64)
        if not np.isfinite(boxes).all():
            raise PayloadError("detections: a box coordinate is not finite")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise PayloadError("detections: a score is outside [0, 1]")
        if (indices >= len(self.class_names)).any():
            raise PayloadError(
                f"detections: class {indices.max()}, the model has {len(self.class_names)}"
            )
        return Detections(boxes=boxes, scores=scores, classes=indices.astype(np.int32))


def require_detection(task: Task, instead: str) -> None:
    """Require a detector where only detections make sense.

    Args:
        task: The bundle's task.
        instead: What serves every task, such as "POST /v1/infer".

    Raises:
        WrongTaskError: If the task is another one.
    """
    if not isinstance(task, DetectionTask):
        raise WrongTaskError(f"this bundle's task is {task.kind}, not detection: use {instead}")


def as_detections(result: TaskResult) -> Detections:
    """A result as detections.

    Raises:
        WrongTaskError: If it is of another task.
    """
    if not isinstance(result, Detections):
        raise WrongTaskError(
            f"this result holds {type(result).__name__.lower()}, no detections: read `result`"
        )
    return result
