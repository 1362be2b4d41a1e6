"""CenterNet and CenterFace: a heat map of centres, with sizes and offsets."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from common.tasks.base import Floats, Shapes
from common.tasks.decoders.base import (
    Candidates,
    Decoder,
    Size,
    corners,
    expand,
    finite,
    logit,
    misfit,
    same,
    sigmoid,
)

_LANDMARKS = 10


class CenterNet(Decoder):
    """Decoder of a CenterNet (Zhou et al. 2019): heat (C, h, w), size (2, h, w), offset (2, h, w).

        x = (column + offset x + centre) * stride           w = size x * stride, or exp of it

    Further outputs, such as the landmarks (10, h, w) of CenterFace, are ignored. CenterFace (Xu et
    al. 2019) has `log_sizes`, `rows_first` and `centre` 0.5, and no `peaks`.

    Attributes:
        stride: Input pixels per cell.
        log_sizes: Whether sizes are logarithms.
        rows_first: Whether sizes and offsets are (height, width) and (y, x).
        centre: Place of a cell's point within it, in cells.
        peaks: Whether only cells count that are the highest of the 3 x 3 around them.
        logits: Whether the heat map has yet to pass a sigmoid.
    """

    kind: Literal["centernet"] = "centernet"
    stride: int = Field(default=4, ge=1, le=4096)
    log_sizes: bool = False
    rows_first: bool = False
    centre: float = Field(default=0.0, ge=0, le=1)
    peaks: bool = True
    logits: bool = False

    def check(self, size: Size) -> None:
        """Require that the input is a multiple of the stride."""
        if size[0] % self.stride or size[1] % self.stride:
            raise ValueError(
                f"the input {size[0]}x{size[1]} is no multiple of the stride {self.stride}"
            )

    def fits(self, shapes: Shapes, size: Size, classes: int) -> str | None:
        """Implement `Decoder.fits`."""
        cells = size[0] // self.stride, size[1] // self.stride
        expected = [(classes, *cells), (2, *cells), (2, *cells)]
        if len(shapes) >= len(expected) and all(map(same, shapes, expected)):
            return None
        return misfit("centernet", f"{expected}", shapes)

    @classmethod
    def preset(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.preset`: with landmarks CenterFace, else CenterNet."""
        del names
        is_face = len(shapes) == 4 and shapes[3][:1] == (_LANDMARKS,)
        face = cls(log_sizes=True, rows_first=True, centre=0.5, peaks=False)
        decoder = face if is_face else cls()
        classes = decoder.classes_in(shapes)
        if not classes or decoder.fits(shapes, size, classes) is not None:
            return None
        return decoder

    @classmethod
    def guess(cls, shapes: Shapes, names: Sequence[str], size: Size) -> Self | None:
        """Implement `Decoder.guess`: CenterFace alone, which its landmarks give away."""
        found = cls.preset(shapes, names, size)
        return found if found is not None and found.log_sizes and shapes[0][0] == 1 else None

    def classes_in(self, shapes: Shapes) -> int | None:
        """Implement `Decoder.classes_in`."""
        return shapes[0][0] if len(shapes) >= 3 and len(shapes[0]) == 3 else None

    def candidates(
        self, outputs: Sequence[Floats], size: Size, classes: int, threshold: float
    ) -> Candidates:
        """Implement `Decoder.candidates`."""
        del size, classes
        heat = outputs[0]
        above = (heat >= (logit(threshold) if self.logits else threshold)) & np.isfinite(heat)
        if self.peaks:
            above &= heat >= _highest_around(heat)
        label, row, column = above.nonzero()
        values = np.concatenate([outputs[1][:, row, column], outputs[2][:, row, column]]).T
        kept = finite(values)
        label, row, column, values = label[kept], row[kept], column[kept], values[kept]
        if self.rows_first:
            values = values[:, [1, 0, 3, 2]]
        cells = np.stack([column, row], axis=1).astype(np.float32)
        centres = cells + values[:, 2:].clip(-1e4, 1e4) + np.float32(self.centre)
        sizes = expand(values[:, :2]) if self.log_sizes else values[:, :2].clip(0, 1e6)
        stride = np.float32(self.stride)
        scores = heat[label, row, column]
        scores = sigmoid(scores) if self.logits else scores.clip(0, 1)
        return Candidates(corners(centres * stride, sizes * stride), scores, label.astype(np.int32))


def _highest_around(heat: Floats) -> Floats:
    """Highest of the 3 x 3 around each cell of (C, h, w); what is not a number counts as lowest."""
    known = np.where(np.isnan(heat), -np.inf, heat)
    padded = np.pad(known, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    highest: Floats = views.max(axis=(3, 4)).astype(np.float32)
    return highest
