"""DETR and its like: a fixed number of queries, each with class logits and one box."""

from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import numpy as np

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    corners,
    finite,
    misfit,
    same,
    select,
    sigmoid,
    softmax,
)

_MOST_QUERIES = 1000


class Detr(Decoder):
    """Decoder of a DETR (Carion et al. 2020): logits (Q, C + 1), boxes (Q, 4); nothing suppressed.

    Attributes:
        scores: How logits become scores: by a softmax with a last class for "no object" (DETR), by
            a sigmoid without it (Deformable DETR, RT-DETR), or not at all.
        boxes_first: Whether boxes are the first output.
        first_class: Index of the logit of the first class; 1 where index 0 is not used, as with
            COCO's 91 categories.
    """

    kind: Literal["detr"] = "detr"
    scores: Literal["softmax", "sigmoid", "probabilities"] = "softmax"
    boxes_first: bool = False
    first_class: Literal[0, 1] = 0
    overlaps: ClassVar[bool] = False

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        del size
        width = self.first_class + classes + (self.scores == "softmax")
        expected = [(None, width), (None, 4)]
        if self.boxes_first:
            expected.reverse()
        pairs = len(shapes) == 2 and shapes[0][:1] == shapes[1][:1]
        if pairs and all(map(same, shapes, expected)):
            return None
        order = "boxes (Q, 4) and scores" if self.boxes_first else "boxes (Q, 4) after scores"
        return misfit("detr", f"{order} (Q, {width})", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: a softmax, with at most 1000 queries."""
        del names
        for first in (False, True):
            decoder = cls(boxes_first=first)
            classes = decoder.classes_in(shapes)
            queries = shapes[0][0] if shapes and shapes[0] else None
            few = queries is not None and queries <= _MOST_QUERIES
            if few and classes and classes > 0 and decoder.fits(shapes, size, classes) is None:
                return decoder
        return None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        if len(shapes) != 2 or len(shapes[self.boxes_first]) != 2:
            return None
        width = shapes[self.boxes_first][1]
        return None if width is None else width - self.first_class - (self.scores == "softmax")

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        logits, boxes = (outputs[1], outputs[0]) if self.boxes_first else (outputs[0], outputs[1])
        kept = finite(np.concatenate([logits, boxes], axis=1))
        logits, boxes = logits[kept], boxes[kept]
        scores = logits
        if self.scores == "softmax":
            scores = softmax(logits)
        elif self.scores == "sigmoid":
            scores = sigmoid(logits)
        row, found, labels = select(
            scores[:, self.first_class : self.first_class + classes], threshold
        )
        scale = np.array([size[1], size[0]], np.float32)
        unit = boxes[row].clip(-1e3, 1e3)
        return Candidates(corners(unit[:, :2] * scale, unit[:, 2:] * scale), found, labels)
