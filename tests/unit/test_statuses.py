"""What each protocol calls an error: one table, and every error has its row or its base's."""

from collections.abc import Iterator

import grpc
import pytest

from cloud.data_plane import FrameFailedError
from cloud.edges import EdgeFailedError
from cloud.statuses import status_of
from cloud.streams import HelloTimeoutError, ProtocolError, ReplacedError, TooManyStreamsError
from common.errors import (
    CloudOverloadedError,
    ImageTooLargeError,
    OverloadedError,
    PayloadError,
    SplitpointError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.rpc import splitpoint_pb2 as pb


@pytest.mark.parametrize(
    ("error", "code", "reason", "http"),
    [
        (PayloadError, "INVALID_ARGUMENT", "BAD_PAYLOAD", 400),
        (StaleReferenceError, "FAILED_PRECONDITION", "STALE_REFERENCE", 400),
        (UnknownPlanError, "NOT_FOUND", "UNKNOWN_PLAN", 409),
        (OverloadedError, "RESOURCE_EXHAUSTED", "OVERLOADED", 503),
        (FrameFailedError, "INTERNAL", "INTERNAL", 500),
        (ImageTooLargeError, "INVALID_ARGUMENT", "BAD_PAYLOAD", 413),  # by its base
        (EdgeFailedError, "UNAVAILABLE", "INTERNAL", 504),
        (ProtocolError, "INVALID_ARGUMENT", "BAD_PAYLOAD", 400),
        (HelloTimeoutError, "DEADLINE_EXCEEDED", "BAD_PAYLOAD", 408),
        (TooManyStreamsError, "RESOURCE_EXHAUSTED", "OVERLOADED", 503),
        (ReplacedError, "ABORTED", "INTERNAL", 409),
    ],
)
def test_an_error_has_a_name_in_each_protocol(
    error: type[SplitpointError], code: str, reason: str, http: int
) -> None:
    status = status_of(error("why"))
    assert status.grpc is grpc.StatusCode[code]
    assert status.rejection == pb.Rejection.Reason.Value(f"REASON_{reason}")
    assert status.http == http


def every(error: type[SplitpointError]) -> Iterator[type[SplitpointError]]:
    yield error
    for kind in error.__subclasses__():
        yield from every(kind)


def test_no_error_passes_for_a_success() -> None:
    for kind in every(SplitpointError):
        status = status_of(kind("why"))
        assert status.grpc is not grpc.StatusCode.OK
        assert status.rejection != pb.Rejection.REASON_UNSPECIFIED
        assert status.http >= 400
    assert status_of(CloudOverloadedError("why", retry_after_s=1)).http == 503
