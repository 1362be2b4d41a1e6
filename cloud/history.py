"""What a stream's frames held, for later frames to look back at."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cloud.tails import Symbols
from common.errors import StaleReferenceError
from common.messages import reference_to
from common.rpc import splitpoint_pb2 as pb

FRAMES: Final = 16
"""Frames of one stream that are remembered: more than an edge may have under way."""


class History:
    """The symbols of one stream's last frames; may be used from several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[bytes, int, int], Sequence[Symbols]] = OrderedDict()

    def keep(self, frame: pb.Frame, symbols: Sequence[Symbols]) -> None:
        """Remember a frame; the oldest is forgotten."""
        with self._lock:
            self._frames[_key(frame.plan_digest, reference_to(frame))] = symbols
            while len(self._frames) > FRAMES:
                self._frames.popitem(last=False)

    def find(self, frame: pb.Frame) -> Sequence[Symbols] | None:
        """The symbols (C, H, W) that a frame looks back at; None if it stands alone.

        Raises:
            StaleReferenceError: If they are not remembered.
        """
        if not frame.HasField("reference"):
            return None
        with self._lock:
            symbols = self._frames.get(_key(frame.plan_digest, frame.reference))
        if symbols is None:
            raise StaleReferenceError(
                f"frame {frame.reference.frame_id} is not remembered: send this one without it"
            )
        return symbols


def _key(digest: bytes, reference: pb.Reference) -> tuple[bytes, int, int]:
    return digest, reference.frame_id, reference.crc32
