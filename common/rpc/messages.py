"""The wire messages as both ends build and read them: limits, references and durations.

Results travel in the messages of their tasks; see `common.tasks.base.Task.read`.
"""

from typing import Final

from common.codec import seal
from common.rpc import splitpoint_pb2 as pb

MAX_MESSAGE_BYTES = 16 << 20
"""Largest message on the stream; a raw 1080p image fits twice."""

MAX_EDGE_ID_CHARACTERS = 128
DIGEST_BYTES = 32
MAX_PROBE_BYTES = 64 << 10
MAX_MEASUREMENTS: Final = 16
"""Most measurements in one message."""
MAX_EXPECTATIONS: Final = 256
"""Most expectations in one Switch."""

_KEEPALIVE_MS = 10_000


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


def reference_to(frame: pb.Frame) -> pb.Reference:
    """Build the reference by which a later frame names this one."""
    sums = b"".join(payload.crc32.to_bytes(4, "little") for payload in frame.payloads)
    return pb.Reference(frame_id=frame.frame_id, crc32=seal(sums))


def microseconds(milliseconds: float) -> int:
    """A duration as CloudTimes carries it, within its 32 bits."""
    return min(max(round(milliseconds * 1000), 0), 2**32 - 1)
