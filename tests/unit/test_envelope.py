"""Messages are looked at before protobuf makes objects of them: fields are counted."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from cloud.envelope import TooManyFieldsError, parse_edge_message
from common.rpc import splitpoint_pb2 as pb
from common.tables.rows import MAX_PROFILE_ROWS

DIGEST = bytes(range(32))


def _within(number: int, content: bytes) -> bytes:
    """A length-delimited field."""
    length = len(content)
    size = b""
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.mark.parametrize(
    "message",
    [
        pb.EdgeMessage(),
        pb.EdgeMessage(hello=pb.Hello(edge_id="door", bundle_digest=DIGEST, instance=2**63)),
        pb.EdgeMessage(
            frame=pb.Frame(
                frame_id=2**63,
                plan_digest=DIGEST,
                payloads=[pb.Payload(data=b"x" * 1000, crc32=1)] * 3,
                score_threshold=0.5,
                reference=pb.Reference(frame_id=1, crc32=2),
                measured=[pb.Measurement(frame_id=1, times=pb.EdgeTimes(uplink_bps=1e6))] * 16,
            )
        ),
        pb.EdgeMessage(report=pb.Report(detections=pb.Detections(scores=[0.5] * 1000))),
        pb.EdgeMessage(probe=pb.Probe(padding=bytes(64 << 10))),
        pb.EdgeMessage(switch=pb.Switch(expected=[pb.Expectation(plan_digest=DIGEST)] * 256)),
        pb.EdgeMessage(
            profile=pb.ProfileReport(rows=[pb.StageTimes(stage="head")] * MAX_PROFILE_ROWS)
        ),
    ],
)
def test_the_largest_honest_messages_pass_as_they_are(message: pb.EdgeMessage) -> None:
    assert parse_edge_message(message.SerializeToString(), 3) == message


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(_within(2, _within(5, b"") * 1000), id="empty payloads"),
        pytest.param(_within(2, _within(8, b"") * 1000), id="empty measurements"),
        pytest.param(_within(5, _within(5, b"") * 1000), id="empty expectations"),
        pytest.param(_within(6, _within(2, b"") * 3000), id="empty rows"),
        pytest.param(_within(2, b"") * 1000, id="frames merged into one"),
        pytest.param((_within(2, b"") + _within(3, b"")) * 1000, id="frames and reports in turn"),
        pytest.param(_within(1, b"\x78\x00" * 1000), id="fields that nobody knows"),
    ],
)
def test_more_fields_than_any_honest_message_has_are_refused(data: bytes) -> None:
    with pytest.raises(TooManyFieldsError, match="at most"):
        parse_edge_message(data, 1)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x12", id="no length"),
        pytest.param(b"\x12\x05\x00", id="cut off"),
        pytest.param(b"\x13\x14", id="a group"),
        pytest.param(b"\xff" * 20, id="an endless number"),
        pytest.param(_within(2, b"\x2a\x05"), id="cut off within"),
        pytest.param(b"\x09\x00", id="half a number"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        parse_edge_message(data, 1)


@given(st.binary(max_size=200))
def test_whatever_comes_is_parsed_or_refused(data: bytes) -> None:
    found: Any = None
    try:
        found = parse_edge_message(data, 1)
    except DecodeError:
        return
    assert found == pb.EdgeMessage.FromString(data)
