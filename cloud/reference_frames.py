"""Reference frames: symbols of a stream's last frames, for its later frames to look back at."""

import itertools
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from cloud.tails import Symbols
from common.errors import StaleReferenceError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import reference_to

FRAMES: Final = 16
"""Frames of one stream that are remembered: more than an edge may have under way."""
MOST_BYTES: Final = 128 << 20
"""Symbols that are remembered, of all streams."""

_FrameKey = tuple[bytes, int, int]


class ReferenceMemory:
    """The symbols of all streams; beyond the bound, those that were used longest ago are dropped.

    An edge whose frame is dropped early sends the next one without a reference. May be used from
    several threads at once.

    Args:
        most_bytes: Bound on symbols.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[int, _FrameKey], Sequence[Symbols]] = OrderedDict()
        self._streams: dict[int, OrderedDict[_FrameKey, None]] = {}
        self._ids = itertools.count()
        self._bytes = 0

    def open(self) -> int:
        """A new stream, by a number."""
        with self._lock:
            stream = next(self._ids)
            self._streams[stream] = OrderedDict()
            return stream

    def close(self, stream: int) -> None:
        """Forget a stream; frames of it that are still under way are not kept."""
        with self._lock:
            for key in list(self._streams.get(stream, ())):
                self._drop(stream, key)
            self._streams.pop(stream, None)

    def keep(self, stream: int, key: _FrameKey, symbols: Sequence[Symbols]) -> None:
        """Remember a frame."""
        with self._lock:
            own = self._streams.get(stream)
            if own is None:
                return
            if key in own:
                self._drop(stream, key)
            own[key] = None
            self._frames[stream, key] = symbols
            self._bytes += _size(symbols)
            while len(own) > FRAMES:
                self._drop(stream, next(iter(own)))
            while self._bytes > self._most_bytes:
                self._drop(*next(iter(self._frames)))

    def find(self, stream: int, key: _FrameKey) -> Sequence[Symbols] | None:
        """A frame, which counts as used."""
        with self._lock:
            if (stream, key) in self._frames:
                self._frames.move_to_end((stream, key))
            return self._frames.get((stream, key))

    def _drop(self, stream: int, key: _FrameKey) -> None:
        self._bytes -= _size(self._frames.pop((stream, key)))
        del self._streams[stream][key]


class ReferenceFrames:
    """The symbols of one stream's last frames; may be used from several threads at once.

    Args:
        memory: Shared by all streams; one of its own, if None.
    """

    def __init__(self, memory: ReferenceMemory | None = None) -> None:
        self._memory = ReferenceMemory() if memory is None else memory
        self._stream = self._memory.open()

    def close(self) -> None:
        """Forget everything, and keep nothing more."""
        self._memory.close(self._stream)

    def keep(self, frame: pb.Frame, symbols: Sequence[Symbols]) -> None:
        """Remember a frame; the oldest is forgotten."""
        key = _key(frame.plan_digest, reference_to(frame))
        self._memory.keep(self._stream, key, symbols)

    def find(self, frame: pb.Frame) -> Sequence[Symbols] | None:
        """The symbols (C, H, W) that a frame looks back at; None if it stands alone.

        Raises:
            StaleReferenceError: If they are not remembered.
        """
        if not frame.HasField("reference"):
            return None
        symbols = self._memory.find(self._stream, _key(frame.plan_digest, frame.reference))
        if symbols is None:
            raise StaleReferenceError(
                f"frame {frame.reference.frame_id} is not remembered: send this one without it"
            )
        return symbols


def _size(symbols: Sequence[Symbols]) -> int:
    return sum(each.nbytes for each in symbols)


def _key(digest: bytes, reference: pb.Reference) -> _FrameKey:
    return digest, reference.frame_id, reference.crc32
