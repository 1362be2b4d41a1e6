"""Bound on the size of an edge's messages, from the plans that it runs."""

import math
from collections.abc import Iterable

from common.bundle.manifest import Plan
from common.codec.spec import WireTensor
from common.rpc.messages import MAX_MEASUREMENTS, MAX_MESSAGE_BYTES

_LEAST_LARGEST_BYTES = 256 << 10
"""More than the largest message that carries no payloads: a ProfileReport of 2048 rows."""
_PICTURE_HEADER_BYTES = 4096
_FIELD_BYTES = 64
"""More than one submessage costs without its contents."""


def largest_message_bytes(plans: Iterable[Plan]) -> int:
    """A bound on the size of every honest EdgeMessage, for an edge with some of these plans.

    A picture's codec may double its pixels, at the worst, as the decoders of `common.codec.image`
    allow; the other codecs need at most a byte for a symbol, and one more.
    """
    frames = (sum(_payload_bytes(plan, tensor) for tensor in plan.wire) for plan in plans)
    measurements = MAX_MEASUREMENTS * 2 * _FIELD_BYTES
    largest = max(frames, default=0) + measurements + 2 * _FIELD_BYTES
    return min(max(largest, _LEAST_LARGEST_BYTES), MAX_MESSAGE_BYTES)


def _payload_bytes(plan: Plan, tensor: WireTensor) -> int:
    symbols = math.prod(tensor.shape)
    if plan.codec is not None and plan.codec.kind.codes == "pixels":
        return 2 * symbols + _PICTURE_HEADER_BYTES + _FIELD_BYTES
    return symbols + _FIELD_BYTES
