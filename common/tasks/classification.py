"""Classification: from a classifier's output to the best classes.

    output (C,) -> probabilities -> the best few -> Classes -> Result, REST answer, drawing

Values that are not finite count as the lowest; nothing warns.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
from PIL import Image
from pydantic import Field

from common.errors import ModelError, PayloadError
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import (
    MAX_CLASSES,
    Agreement,
    Carrier,
    Floats,
    Integers,
    ResultSettings,
    ResultTable,
    Shapes,
    Task,
    TaskResult,
    in_words,
    label_of,
)
from common.tasks.draw import draw_lines

MAX_TOP: Final = 100


@dataclass(frozen=True, eq=False)
class Classes(TaskResult):
    """The best classes of one image, by falling score.

    Attributes:
        indices: (K,) into the network's classes.
        scores: (K,) probabilities in [0, 1].

    Raises:
        ValueError: If the two do not have these shapes.
    """

    indices: Integers
    scores: Floats

    def __post_init__(self) -> None:
        if self.indices.shape != self.scores.shape or self.indices.ndim != 1:
            raise ValueError(
                f"expected shapes (K,) and (K,), got {self.indices.shape} and {self.scores.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def size_bytes(self) -> int:
        """Memory that its arrays take."""
        return self.indices.nbytes + self.scores.nbytes

    def write(self, carrier: Carrier) -> None:
        """Put it into a message as columns."""
        carrier.classes.CopyFrom(
            pb.Classes(indices=self.indices.tolist(), scores=self.scores.tolist())
        )

    def to_json(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Records of a REST answer: `class_name`, `class_index` and `score`, the best first."""
        return [
            {
                "class_name": label_of(index, class_names),
                "class_index": index,
                "score": round(score, 4),
            }
            for index, score in zip(self.indices.tolist(), self.scores.tolist(), strict=True)
        ]

    def to_records(self, image_id: int, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Entries of a results file: the records with their `image_id`."""
        return [{"image_id": image_id, **each} for each in self.to_json(class_names)]

    def to_table(self, class_names: Sequence[str]) -> ResultTable:
        """Classes with their scores."""
        rows = [
            (row["class_name"], f"{row['score']:.3f}", str(row["class_index"]))
            for row in self.to_json(class_names)
        ]
        return ResultTable(("class", "score", "index"), tuple(rows))

    def draw(self, picture: Image.Image, class_names: Sequence[str]) -> None:
        """Write the classes onto the picture."""
        rows = [f"{r['class_name']} {r['score']:.2f}" for r in self.to_json(class_names)]
        draw_lines(picture, rows)

    def agreement(self, found: Self) -> Agreement:
        """Compare the best classes: one match, or one missing and one extra."""
        if not (len(self) and len(found)):
            return Agreement(0, min(len(self), 1), min(len(found), 1))
        same = int(self.indices[0]) == int(found.indices[0])
        return Agreement(1, 0, 0) if same else Agreement(0, 1, 1)


class ClassificationTask(Task):
    """Classification of a whole image.

    Attributes:
        output: Whether the network gives logits, of which the softmax is taken, or probabilities.
        top: Classes that are reported at the most.
    """

    kind: Literal["classification"] = "classification"
    output: Literal["logits", "probabilities"] = "logits"
    top: int = Field(default=5, ge=1, le=MAX_TOP)
    class_names: tuple[str, ...] = Field(min_length=1, max_length=MAX_CLASSES)
    message: ClassVar[str] = "classes"

    def misfit(self, shapes: Shapes) -> str | None:
        """Say in one line why outputs of these shapes are none of a classifier; None if they are.

        Sides of 1 do not count, as some networks give (C, 1, 1).
        """
        classes = len(self.class_names)
        sides = [side for side in shapes[0] if side != 1] if shapes else []
        if len(shapes) == 1 and (sides or [1]) in ([classes], [None]):
            return None
        return (
            f"classification: expected one output ({classes}) as there are {classes} class names, "
            f"found {in_words(shapes)}"
        )

    def empty(self) -> Classes:
        """No classes."""
        return Classes(np.zeros(0, np.int32), np.zeros(0, np.float32))

    def from_json(self, records: Iterable[Any]) -> Classes:
        """Read the records of a REST answer.

        Raises:
            PayloadError: If they are no classes of this network.
        """
        try:
            found = [(int(each["class_index"]), float(each["score"])) for each in records]
            message = pb.Classes(indices=[i for i, _ in found], scores=[s for _, s in found])
        except (KeyError, TypeError, ValueError) as error:
            raise PayloadError(f"classes: not those of this network: {error}") from error
        return self._read(message)

    def _decode(
        self, outputs: Sequence[Floats], where: Placement, settings: ResultSettings
    ) -> Classes:
        del where
        values = outputs[0].reshape(-1)
        if len(values) != len(self.class_names):
            raise ModelError(self.misfit([values.shape]) or "")
        scores = probabilities(values) if self.output == "logits" else _bounded(values)
        order = np.argsort(-scores, kind="stable")
        if settings.classes:
            order = order[np.isin(order, settings.classes)]
        order = order[: self.top]
        return Classes(order.astype(np.int32), scores[order])

    def _read(self, message: pb.Classes) -> Classes:
        count = len(message.scores)
        if max(count, len(message.indices)) > MAX_TOP:
            raise PayloadError(f"classes: expected at most {MAX_TOP}, got {count} scores")
        if len(message.indices) != count:
            raise PayloadError(
                f"classes: {count} scores and {len(message.indices)} indices do not belong together"
            )
        scores = np.asarray(message.scores, dtype=np.float32)
        indices = np.asarray(message.indices, dtype=np.int64)
        if not ((scores >= 0) & (scores <= 1)).all():
            raise PayloadError("classes: a score is outside [0, 1]")
        if (indices >= len(self.class_names)).any():
            raise PayloadError(
                f"classes: class {indices.max()}, the model has {len(self.class_names)}"
            )
        return Classes(indices.astype(np.int32), scores)


def probabilities(logits: Floats) -> Floats:
    """Softmax of logits (C,); those that are not finite count as the lowest."""
    usable = np.where(np.isfinite(logits), logits, np.finfo(np.float32).min)
    powers: Floats = np.exp((usable - usable.max()).clip(-100, 0).astype(np.float32))
    shares: Floats = powers / powers.sum()
    return shares


def _bounded(values: Floats) -> Floats:
    """Probabilities within [0, 1]; those that are not finite count as 0."""
    return np.where(np.isfinite(values), values, np.float32(0)).clip(0, 1)
