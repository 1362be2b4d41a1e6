"""One table from the product's errors to what each protocol calls them.

    SplitpointError -> status_of -> Status: gRPC status, reason of a Rejection, HTTP status

An error that has no row of its own is what the nearest of its base classes is. The HTTP status is
the error's own, as `common.errors` gives it, since edges answer by HTTP too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import grpc

from cloud.streams import HelloTimeoutError, ProtocolError, ReplacedError, TooManyStreamsError
from common.errors import (
    CloudUnavailableError,
    ImageError,
    OverloadedError,
    PayloadError,
    SettingsError,
    SplitpointError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.rpc import splitpoint_pb2 as pb

_Row = tuple[grpc.StatusCode, "pb.Rejection.Reason"]

_TABLE: Final[Mapping[type[SplitpointError], _Row]] = {
    SplitpointError: (grpc.StatusCode.INTERNAL, pb.Rejection.REASON_INTERNAL),
    SettingsError: (grpc.StatusCode.INVALID_ARGUMENT, pb.Rejection.REASON_BAD_PAYLOAD),
    ImageError: (grpc.StatusCode.INVALID_ARGUMENT, pb.Rejection.REASON_BAD_PAYLOAD),
    PayloadError: (grpc.StatusCode.INVALID_ARGUMENT, pb.Rejection.REASON_BAD_PAYLOAD),
    StaleReferenceError: (
        grpc.StatusCode.FAILED_PRECONDITION,
        pb.Rejection.REASON_STALE_REFERENCE,
    ),
    UnknownPlanError: (grpc.StatusCode.NOT_FOUND, pb.Rejection.REASON_UNKNOWN_PLAN),
    CloudUnavailableError: (grpc.StatusCode.UNAVAILABLE, pb.Rejection.REASON_INTERNAL),
    OverloadedError: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.Rejection.REASON_OVERLOADED),
    # Errors that end a whole stream.
    ProtocolError: (grpc.StatusCode.INVALID_ARGUMENT, pb.Rejection.REASON_BAD_PAYLOAD),
    HelloTimeoutError: (grpc.StatusCode.DEADLINE_EXCEEDED, pb.Rejection.REASON_BAD_PAYLOAD),
    TooManyStreamsError: (grpc.StatusCode.RESOURCE_EXHAUSTED, pb.Rejection.REASON_OVERLOADED),
    ReplacedError: (grpc.StatusCode.ABORTED, pb.Rejection.REASON_INTERNAL),
}


@dataclass(frozen=True)
class Status:
    """Names of an error in each protocol.

    Attributes:
        grpc: Status of a call or stream that the error ends.
        rejection: Reason of the Rejection that answers one message of an edge's stream.
        http: Status of an HTTP response.
    """

    grpc: grpc.StatusCode
    rejection: "pb.Rejection.Reason"
    http: int


def status_of(error: SplitpointError) -> Status:
    """Return what each protocol calls an error."""
    nearest = next(kind for kind in type(error).__mro__ if kind in _TABLE)
    return Status(*_TABLE[nearest], error.http_status)
