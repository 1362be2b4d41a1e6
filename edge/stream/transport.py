"""Transports of messages to the cloud: gRPC, an emulated link, or a function call.

    CloudClient -> Transport.send     -> EdgeMessage  -> cloud
    CloudClient <- Transport.receive  <- CloudMessage <- cloud

`GrpcTransport` is the real one: a single bidirectional stream. `InProcessTransport` calls a
function, so that nearly every test runs without a socket. `edge.stream.shaping.ShapedTransport`
wraps either of them and delays both directions as a slow link would.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from common.errors import (
    CloudFailedError,
    CloudOverloadedError,
    CloudUnavailableError,
    SettingsError,
)
from common.rpc.messages import channel_options
from common.rpc.splitpoint_pb2 import CloudMessage, EdgeMessage

_METHOD = "/splitpoint.v1.SplitService/Stream"
_NOT_OURS = "Failed parsing HTTP/2", "UNIMPLEMENTED"
"""What gRPC says of a server without HTTP/2, and of a gRPC server without our service."""


class Transport(Protocol):
    """One stream of messages to the cloud and back; a lost stream cannot be reopened.

    `send` may be called from several threads, `receive` from one at a time.
    """

    def send(self, message: EdgeMessage, gone: Callable[[], None] | None = None) -> None:
        """Hand a message over without waiting for an answer.

        Args:
            message: The message.
            gone: Called when the message is actually sent; perhaps from another thread.

        Raises:
            CloudUnavailableError: If the stream is lost.
        """

    def receive(self, timeout_s: float | None = None) -> CloudMessage:
        """Wait for the next message; a wait that times out loses the stream.

        Raises:
            CloudUnavailableError: If the stream is lost, or nothing came within `timeout_s`.
        """

    def close(self) -> None:
        """End the stream; a `receive` in another thread is woken. May be called again."""


class _Outgoing(NamedTuple):
    message: EdgeMessage
    gone: Callable[[], None] | None


class _StreamCall(Protocol):
    """The methods used of gRPC's call object, which has no public type."""

    def __next__(self) -> CloudMessage: ...

    def is_active(self) -> bool: ...

    def cancel(self) -> bool: ...


class GrpcTransport:
    """A transport over one bidirectional gRPC stream.

    Opening is lazy: an unreachable cloud shows at the first `receive`.

    Args:
        address: HOST:PORT of the cloud.
        credentials: Credentials for TLS; unencrypted without.

    Raises:
        SettingsError: If the address is not HOST:PORT.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        check_address(address)
        self._address = address
        self._requests: queue.SimpleQueue[_Outgoing | None] = queue.SimpleQueue()
        self._closed = False
        # A private pool: a shared one would hold a new stream back while an older one's failed
        # connection sits out its retry interval, and a restarted cloud would seem gone for seconds.
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = (
            grpc.insecure_channel(address, options=options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options=options)
        )
        stream = self._channel.stream_stream(
            _METHOD,
            request_serializer=EdgeMessage.SerializeToString,
            response_deserializer=_parsed,
        )
        self._call: _StreamCall = stream(self._outgoing())

    def send(self, message: EdgeMessage, gone: Callable[[], None] | None = None) -> None:
        """Queue a message for the stream; see `Transport.send`."""
        if self._closed:
            raise self._lost("the stream is closed")
        if not self._call.is_active():
            # It ended before anything was read: its status has the reason.
            ended = cast("grpc.RpcError", self._call)
            raise self._lost(_reason(ended), _kind(ended))
        self._requests.put(_Outgoing(message, gone))

    def receive(self, timeout_s: float | None = None) -> CloudMessage:
        """Read the next message of the stream; see `Transport.receive`."""
        timer: threading.Timer | None = None
        if timeout_s is not None:
            # gRPC reads have no timeout of their own; ending the call is what wakes one.
            timer = threading.Timer(timeout_s, self._call.cancel)
            timer.daemon = True
            timer.start()
        try:
            return next(self._call)
        except StopIteration:
            raise self._lost("the cloud ended the stream") from None
        except grpc.RpcError as error:
            timed_out = timer is not None and timer.finished.is_set() and not self._closed
            why = f"no answer within {timeout_s:g} s" if timed_out else _reason(error)
            raise self._lost(why, CloudUnavailableError if timed_out else _kind(error)) from error
        finally:
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        """Cancel the call and close its channel."""
        if not self._closed:
            self._closed = True
            self._requests.put(None)
            self._call.cancel()
            self._channel.close()

    def _outgoing(self) -> Iterator[EdgeMessage]:
        while (next_one := self._requests.get()) is not None:
            if next_one.gone is not None:
                next_one.gone()  # in gRPC's thread, which a busy edge may be late to wake
            yield next_one.message

    def _lost(
        self, why: str, kind: type[CloudUnavailableError] = CloudUnavailableError
    ) -> CloudUnavailableError:
        # The request iterator waits in a thread of gRPC's: let it go.
        self._requests.put(None)
        if kind is not CloudUnavailableError:
            return kind(f"cloud at {self._address}: {why}")
        if any(each in why for each in _NOT_OURS):
            return CloudUnavailableError(
                f"cloud at {self._address}: what answers there does not speak Splitpoint's gRPC; "
                "is it the REST port? Give the port of `splitpoint cloud --grpc-port` (50051)"
            )
        # A server that refuses a certificate just hangs up.
        refused = "handshake" in why or "Socket closed" in why
        tls = ", with the TLS that this edge expects (--tls-ca, --tls-cert)" if refused else ""
        return CloudUnavailableError(
            f"cloud at {self._address}: {why}; is `splitpoint cloud` running there{tls}?"
        )


class InProcessTransport:
    """A transport to a function in place of a cloud: its answers are received in order.

    Args:
        handler: Gets every message as it is sent, returns the answers to it. If it raises
            CloudUnavailableError, the stream is lost.
    """

    def __init__(self, handler: Callable[[EdgeMessage], Iterable[CloudMessage]]) -> None:
        self._handler = handler
        self._answers: queue.SimpleQueue[CloudMessage | None] = queue.SimpleQueue()
        self._lost: str | None = None

    def send(self, message: EdgeMessage, gone: Callable[[], None] | None = None) -> None:
        """Call the handler; see `Transport.send`."""
        if self._lost is not None:
            raise CloudUnavailableError(self._lost)
        if gone is not None:
            gone()
        try:
            for answer in self._handler(message):
                self._answers.put(answer)
        except CloudUnavailableError as error:
            self._end(str(error))  # it was sent: `receive` raises the loss

    def receive(self, timeout_s: float | None = None) -> CloudMessage:
        """Take the next answer; see `Transport.receive`."""
        try:
            answer = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            self._end(f"no answer within {timeout_s} s")
            answer = None
        if answer is None:
            self._answers.put(None)
            raise CloudUnavailableError(self._lost or "the stream is closed")
        return answer

    def close(self) -> None:
        """End the stream."""
        self._end("the stream is closed")

    def _end(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
            self._answers.put(None)


def check_address(address: str) -> str:
    """Return the address if it is HOST:PORT.

    Raises:
        SettingsError: If it is not.
    """
    if "://" in address:
        raise SettingsError(
            f"cloud address {address!r}: expected HOST:PORT alone, like 127.0.0.1:50051: no URL, "
            "as edges speak gRPC"
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise SettingsError(f"cloud address {address!r}: expected HOST:PORT, like 127.0.0.1:50051")
    return address


def _call_of(error: grpc.RpcError) -> grpc.Call | None:
    """Return the call of an error: gRPC's errors are calls, which its types do not declare."""
    return cast("grpc.Call", error) if hasattr(error, "code") else None


def _kind(error: grpc.RpcError) -> type[CloudUnavailableError]:
    """Error class of a status: overloaded, message too large, or unavailable."""
    call = _call_of(error)
    code = None if call is None else call.code()
    if call is not None and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # gRPC has the same status for a message over the limit, which waiting does not cure.
        too_large = "larger than max" in (call.details() or "")
        return CloudFailedError if too_large else CloudOverloadedError
    return CloudUnavailableError


def _parsed(data: bytes) -> CloudMessage:
    """Parse a message; invalid bytes give a message without a kind, which no cloud sends.

    gRPC would log a stack trace for an error that is raised here.
    """
    try:
        return CloudMessage.FromString(data)
    except DecodeError:
        return CloudMessage()


def _reason(error: grpc.RpcError) -> str:
    """Reason of a status for an error message: its last cause, on one line."""
    call = _call_of(error)
    code = None if call is None else call.code()
    details = None if call is None else call.details()
    words = " ".join((details or "").split()).rpartition("Failed to connect to remote host: ")[2][
        :200
    ]
    if code is None:
        return words or "the stream was lost"
    if code is grpc.StatusCode.OK:
        return "the cloud ended the stream"
    if code is grpc.StatusCode.UNAVAILABLE:
        return words or "not reachable"
    return f"{code.name}: {words}" if words else code.name
