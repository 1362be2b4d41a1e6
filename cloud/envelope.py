"""The structure of an EdgeMessage, looked at before protobuf makes objects of it.

    bytes -> number of fields, at two levels -> EdgeMessage

An empty submessage takes two bytes on the wire and about a hundred in memory, so 1 MiB of empty
payloads would cost 24 MiB and a quarter of a second. A honest message has few fields, and how many
is known: a message with more is refused after reading as many field headers, none of its contents.
Whatever is deeper than two levels cannot be multiplied: it is scalars, or merged into one message.
"""

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import MAX_EXPECTATIONS, MAX_MEASUREMENTS
from common.tables.rows import MAX_PROFILE_ROWS

_KINDS: Final = {field.number: field.name for field in pb.EdgeMessage.DESCRIPTOR.fields}
_MOST_AT_TOP = 4
_SPARE = 32
"""Fields that are not repeated, and those that a later version may add."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SKIP = {_FIXED64: 8, _FIXED32: 4}


class TooManyFieldsError(DecodeError):
    """A message with more fields than any honest one has."""


def parse_edge_message(data: bytes, most_payloads: int) -> pb.EdgeMessage:
    """An EdgeMessage from its bytes.

    Args:
        data: What arrived.
        most_payloads: Payloads that a Frame may have.

    Raises:
        DecodeError: If the bytes are no EdgeMessage.
        TooManyFieldsError: If it has more fields than any honest one.
    """
    most = {
        "frame": most_payloads + MAX_MEASUREMENTS,
        "report": MAX_MEASUREMENTS,
        "switch": MAX_EXPECTATIONS,
        "profile": MAX_PROFILE_ROWS,
    }
    for number, start, end in _limited(data, 0, len(data), _MOST_AT_TOP, "a message"):
        kind = _KINDS.get(number)
        if kind is not None and end > start:
            for _ in _limited(data, start, end, most.get(kind, 0) + _SPARE, f"a {kind}"):
                pass
    return pb.EdgeMessage.FromString(data)


def _limited(
    data: bytes, start: int, end: int, most: int, what: str
) -> Iterator[tuple[int, int, int]]:
    for count, field in enumerate(_fields(data, start, end)):
        if count >= most:
            raise TooManyFieldsError(f"expected {what} of at most {most} fields, got more")
        yield field


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field; start and end are of a length-delimited field's content.

    Encoding: https://protobuf.dev/programming-guides/encoding
    """
    while position < end:
        tag, position = _varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _BYTES:
            length, position = _varint(data, position, end)
            start, position = position, position + length
        elif wire_type == _VARINT:
            _, position = _varint(data, position, end)
            start = position
        elif wire_type in _SKIP:
            position += _SKIP[wire_type]
            start = position
        else:  # groups, which are not used, or what is no type
            raise DecodeError(f"wire type {wire_type}")
        if position > end:
            raise DecodeError("a field is cut off")
        yield number, start, position


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise DecodeError("a number is cut off")
