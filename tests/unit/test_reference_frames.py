"""What streams' frames held: bounded by frames in each stream and by bytes in all."""

import numpy as np
import pytest

from cloud.reference_frames import FRAMES, ReferenceFrames, ReferenceMemory
from common.errors import StaleReferenceError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import reference_to

DIGEST = bytes(32)
SIZE = 1000


def _frame(frame_id: int) -> pb.Frame:
    return pb.Frame(frame_id=frame_id, plan_digest=DIGEST, payloads=[pb.Payload(crc32=frame_id)])


def _keep(references: ReferenceFrames, frame_id: int) -> None:
    references.keep(_frame(frame_id), [np.full(SIZE, frame_id, np.uint8)])


def _known(references: ReferenceFrames, frame_id: int) -> bool:
    later = pb.Frame(plan_digest=DIGEST, reference=reference_to(_frame(frame_id)))
    try:
        found = references.find(later)
    except StaleReferenceError:
        return False
    assert found is not None
    assert found[0][0] == frame_id
    return True


def test_a_streams_last_frames_are_known() -> None:
    references = ReferenceFrames()
    for frame_id in range(FRAMES + 2):
        _keep(references, frame_id)
    assert [_known(references, k) for k in (0, 1, 2, FRAMES + 1)] == [False, False, True, True]


def test_a_frame_that_stands_alone_needs_none() -> None:
    assert ReferenceFrames().find(_frame(1)) is None


def test_streams_do_not_see_each_others_frames() -> None:
    memory = ReferenceMemory()
    first, second = ReferenceFrames(memory), ReferenceFrames(memory)
    _keep(first, 1)
    assert not _known(second, 1)


def test_beyond_the_bound_what_was_used_longest_ago_goes() -> None:
    memory = ReferenceMemory(most_bytes=3 * SIZE)
    first, second = ReferenceFrames(memory), ReferenceFrames(memory)
    _keep(first, 1)
    _keep(second, 2)
    _keep(second, 3)
    assert _known(first, 1)
    _keep(second, 4)
    assert [_known(second, k) for k in (2, 3, 4)] == [False, True, True]
    assert _known(first, 1)


def test_a_frame_that_comes_twice_counts_once() -> None:
    references = ReferenceFrames(ReferenceMemory(most_bytes=2 * SIZE))
    _keep(references, 2)
    _keep(references, 1)
    _keep(references, 1)
    assert _known(references, 2)


@pytest.mark.parametrize("late", [False, True])
def test_a_stream_that_ends_holds_nothing(late: bool) -> None:
    memory = ReferenceMemory()
    references = ReferenceFrames(memory)
    _keep(references, 1)
    references.close()
    if late:  # its worker was not done when it ended
        _keep(references, 2)
    assert not memory._frames
    assert not _known(references, 1)
