"""The wire messages as both ends build and read them: detections in columns, sealed payloads.

    Detections -> detections_to_message -> Result or Report -> detections_from_message -> Detections

Nothing that arrives is believed: a message of the right type may still hold lists of unequal
length, NaN, or a class that the model does not have.
"""

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from common.bundle.manifest import Plan
from common.codec import seal
from common.codec.spec import WireTensor
from common.errors import PayloadError
from common.rpc import splitpoint_pb2 as pb
from common.tasks.detections import MAX_CANDIDATES, Detections

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message on the stream; a raw 1080p image fits twice."""

MAX_EDGE_ID_CHARACTERS = 128
DIGEST_BYTES = 32
MAX_PROBE_BYTES = 64 << 10
MAX_DETECTIONS: Final = MAX_CANDIDATES
"""Most detections of a frame: no more enter NMS, so no honest end finds more."""
MAX_MEASUREMENTS: Final = 16
"""Most measurements in one message."""
MAX_EXPECTATIONS: Final = 256
"""Most expectations in one Switch."""

_KEEPALIVE_MS = 10_000
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


def channel_options(max_receive_bytes: int = MAX_MESSAGE_BYTES) -> list[tuple[str, int]]:
    """Options that both ends of the stream must share, for `grpc.*_channel` and `grpc.*server`.

    Args:
        max_receive_bytes: The largest message to accept.
    """
    return [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", max_receive_bytes),
        # A link that goes silent is noticed within twice this time, on either side.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ]


def detections_to_message(detections: Detections) -> pb.Detections:
    """Detections as columns."""
    return pb.Detections(
        boxes=detections.boxes.ravel().tolist(),
        scores=detections.scores.tolist(),
        classes=detections.classes.tolist(),
    )


def detections_from_message(message: pb.Detections, classes: int) -> Detections:
    """Detections from columns.

    Args:
        message: What arrived.
        classes: Number of classes of the model.

    Raises:
        PayloadError: If there are too many, lengths disagree, a number is not finite, a score is
            outside [0, 1] or a class is none of the model's.
    """
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
    if (indices >= classes).any():
        raise PayloadError(f"detections: class {indices.max()}, the model has {classes}")
    return Detections(boxes=boxes, scores=scores, classes=indices.astype(np.int32))


def reference_to(frame: pb.Frame) -> pb.Reference:
    """Build the reference by which a later frame names this one."""
    sums = b"".join(payload.crc32.to_bytes(4, "little") for payload in frame.payloads)
    return pb.Reference(frame_id=frame.frame_id, crc32=seal(sums))


def checked_threshold(value: float, default: float) -> float:
    """The score threshold that a Frame asks for; 0 stands for the default.

    Raises:
        PayloadError: If it is outside [0, 1].
    """
    if not (math.isfinite(value) and 0 <= value <= 1):
        raise PayloadError(
            f"score threshold {value}: expected a number in (0, 1], or 0 for default"
        )
    return value or default


def microseconds(milliseconds: float) -> int:
    """A duration as CloudTimes carries it, within its 32 bits."""
    return min(max(round(milliseconds * 1000), 0), 2**32 - 1)
