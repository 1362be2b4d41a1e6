"""Non-maximum suppression: of detections that overlap, the best one is kept.

    candidates -> suppress -> indices of those that are kept

The cost grows with the square of the number, so only the best candidates enter.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.tasks.base import Floats, Integers

# Candidates that enter non-maximum suppression, best first: bounds its cost, N^2, on hostile maps.
MAX_CANDIDATES: Final = 1000


def best(scores: Floats) -> NDArray[np.intp]:
    """Indices of the best `MAX_CANDIDATES` of scores (N,), by falling score; ties in order."""
    candidates = np.arange(len(scores))
    if len(scores) > MAX_CANDIDATES:
        lowest = np.partition(scores, -MAX_CANDIDATES)[-MAX_CANDIDATES]
        candidates = np.flatnonzero(scores >= lowest)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:MAX_CANDIDATES]


def suppress(
    boxes: Floats, scores: Floats, classes: Integers, iou_threshold: float
) -> NDArray[np.intp]:
    """Greedy non-maximum suppression within each class, among the best `MAX_CANDIDATES`.

    Args:
        boxes: (N, 4) corners.
        scores: (N,); of equal scores the earlier wins.
        classes: (N,).
        iou_threshold: A box is dropped when its IoU with a better kept one is above this.

    Returns:
        (K,) indices of what is kept, by falling score.
    """
    order = best(scores)
    boxes, classes = boxes[order], classes[order]
    drops = (box_iou(boxes, boxes) > iou_threshold) & (classes[:, None] == classes)
    drops &= np.arange(len(order))[:, None] < np.arange(len(order))  # only worse ones
    kept = np.ones(len(order), np.bool_)
    for index in drops.any(axis=1).nonzero()[0]:
        if kept[index]:
            kept[drops[index]] = False
    return order[kept]


def box_iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union of every pair of boxes; 0 where both are without area.

    Args:
        first: (N, 4) corners.
        second: (M, 4) corners.

    Returns:
        (N, M) in [0, 1].
    """
    x1, y1, x2, y2 = np.ascontiguousarray(first.T)[:, :, None]
    u1, v1, u2, v2 = np.ascontiguousarray(second.T)
    shared: Floats = (np.minimum(x2, u2) - np.maximum(x1, u1)).clip(0)
    shared *= (np.minimum(y2, v2) - np.maximum(y1, v1)).clip(0)
    union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - shared
    shared /= np.where(union > 0, union, np.float32(1))
    return shared
