"""Settings that several ONNX operators share: axes, padding, constants."""

from collections.abc import Sequence

import numpy as np

from search.network.importers.calls import Array, Call

NO_PADS = (0, 0, 0, 0)


def as_float(array: Array) -> Array:
    """A constant as float32, laid out in the order of its axes."""
    return np.ascontiguousarray(array, np.float32)


def axis_of(call: Call, rank: int, usual: int = 0) -> int:
    """Axis of a call, of 1 to `rank`; 0 is the batch.

    Args:
        call: The call.
        rank: Number of axes of its tensor without the batch.
        usual: Axis where the call names none.

    Raises:
        UnsupportedCallError: If it is the batch.
    """
    axis = int(call.attributes.get("axis", usual)) % (rank + 1)
    if axis == 0:
        raise call.unsupported("along the batch")
    return axis


def pads_of(
    call: Call, shape: Sequence[int], spans: Sequence[int], stride: Sequence[int]
) -> tuple[int, int, int, int]:
    """Padding as (top, left, bottom, right).

    Args:
        call: A convolution or pooling.
        shape: (C, H, W) of what it reads.
        spans: Height and width of its window, dilation included.
        stride: Its steps down and right.
    """
    automatic = call.attributes.get("auto_pad", "NOTSET")
    if automatic in ("NOTSET", "VALID"):
        top, left, bottom, right = call.attributes.get("pads", NO_PADS)
        return int(top), int(left), int(bottom), int(right)
    totals = [
        max((-(-size // step) - 1) * step + span - size, 0)
        for size, span, step in zip(shape[1:], spans, stride, strict=True)
    ]
    halves = [total // 2 for total in totals]
    rests = [total - half for total, half in zip(totals, halves, strict=True)]
    if automatic == "SAME_LOWER":
        halves, rests = rests, halves
    return halves[0], halves[1], rests[0], rests[1]
