"""The gRPC front end: one stream per edge, served by `cloud.sessions`.

    HTTP/2 -> checked, then parsed (cloud.envelope) -> EdgeSessions -> messages, or a status

It says how gRPC's streams are read, written and ended, and what a connection may cost before it is
an edge's stream; the protocol of an edge's stream is in `cloud.sessions`.
"""

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from cloud.envelope import TooManyFieldsError, parse_edge_message
from cloud.message_sizes import largest_message_bytes
from cloud.sessions import EdgeSessions
from cloud.statuses import status_of
from cloud.streams import ProtocolError, StreamLimits
from common.bundle.bundle import Bundle
from common.errors import AddressInUseError, SplitpointError
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import channel_options
from common.rpc.splitpoint_pb2_grpc import SplitServiceServicer
from common.rpc.tls import certificate_name

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[pb.EdgeMessage, pb.CloudMessage]

_LOG = logging.getLogger("splitpoint.cloud")
_HANDSHAKE_MS: Final = 10_000
_IDLE_CONNECTION_MS: Final = 30_000
_METADATA_BYTES: Final = 8192
_MOST_UNREAD_BYTES: Final = 1 << 20
_SPARE_DESCRIPTORS: Final = 128
"""Descriptors kept for files, models, the store and REST, before gRPC gets any."""


class SplitService(SplitServiceServicer):
    """The gRPC service of a bundle's tails.

    Args:
        bundle: Its plans bound the structure of a message.
        sessions: Serves the streams.
    """

    def __init__(self, bundle: Bundle, sessions: EdgeSessions) -> None:
        self._bundle = bundle
        self._sessions = sessions

    def handler(self) -> grpc.GenericRpcHandler:
        """Handler for `grpc.aio.Server.add_generic_rpc_handlers` that checks messages, then parses.

        The generated `add_SplitServiceServicer_to_server` would parse whatever comes.
        """
        plans = self._bundle.plans.values()
        most_payloads = max((len(plan.wire) for plan in plans), default=0)
        stream = grpc.stream_stream_rpc_method_handler(
            self.Stream,
            request_deserializer=partial(parse_edge_message, most_payloads=most_payloads),
            response_serializer=pb.CloudMessage.SerializeToString,
        )
        name = pb.DESCRIPTOR.services_by_name["SplitService"].full_name
        return grpc.method_handlers_generic_handler(name, {"Stream": stream})

    async def Stream(  # noqa: N802
        self,
        request_iterator: AsyncIterable[pb.EdgeMessage],  # noqa: ARG002 - read by context.read
        context: "Context",
    ) -> None:
        """Serve one edge; see `EdgeSessions.serve`."""
        await self._sessions.serve(_GrpcStream(context))


class GrpcServer:
    """The service on a port.

    Args:
        bundle: The opened bundle.
        sessions: Serves the streams.
        limits: Limits on streams.
        descriptors: Files and sockets that the process may open.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        credentials: Credentials for TLS; unencrypted without.

    Attributes:
        port: The port that was bound.

    Raises:
        AddressInUseError: If the port cannot be bound.
    """

    def __init__(
        self,
        bundle: Bundle,
        sessions: EdgeSessions,
        *,
        limits: StreamLimits,
        descriptors: int,
        host: str,
        port: int,
        credentials: grpc.ServerCredentials | None,
    ) -> None:
        self._sessions = sessions
        self._server = grpc.aio.server(
            options=server_options(bundle, limits, descriptors),
            maximum_concurrent_rpcs=limits.streams,
        )
        self._server.add_generic_rpc_handlers((SplitService(bundle, sessions).handler(),))
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise AddressInUseError(
                f"{where} cannot be bound: choose another port with --grpc-port"
            ) from error

    async def start(self) -> None:
        """Serve from now on."""
        await self._server.start()

    async def stop(self, grace_s: float | None) -> None:
        """Answer the frames under way for as long as the grace, then end; at once without one."""
        if grace_s is not None:
            self._sessions.drain()
        await self._server.stop(grace_s)


class _GrpcStream:
    """One gRPC stream, as `cloud.sessions.EdgeStream`."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self.peer = peer_of(context.peer())

    @property
    def certified(self) -> str | None:
        # Without TLS there are no properties at all, which gRPC's types leave out.
        found: Mapping[str, object] | None = self._context.auth_context()
        return certificate_name(found or {})

    async def read(self) -> pb.EdgeMessage | None:
        try:
            with _left_means_gone():
                message: object = await self._context.read()
        except TooManyFieldsError as error:
            raise ProtocolError(str(error)) from error
        except DecodeError as error:
            raise ProtocolError("expected an EdgeMessage, got bytes that are none") from error
        return message if isinstance(message, pb.EdgeMessage) else None

    async def write(self, message: pb.CloudMessage) -> None:
        with _left_means_gone():
            await self._context.write(message)

    async def end(self, why: SplitpointError) -> None:
        await self._context.abort(status_of(why).grpc, str(why))


@contextmanager
def _left_means_gone() -> Iterator[None]:
    """Raise ConnectionError in place of what gRPC raises when a peer has left."""
    try:
        yield
    except (asyncio.InvalidStateError, grpc.aio.BaseError) as error:
        raise ConnectionError("the peer has left") from error


def peer_of(address: str) -> str:
    """Return whose stream it is, from `ServicerContext.peer()`: an address, of IPv6 its network."""
    kind, _, rest = unquote(address).partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return kind
    host = rest.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return str(found)


def server_options(bundle: Bundle, limits: StreamLimits, descriptors: int) -> list[tuple[str, int]]:
    """Options of the gRPC server: what a connection may cost before it is an edge's stream.

    Args:
        bundle: Its plans bound the size of a message.
        limits: Of streams.
        descriptors: Files and sockets that the process may open.
    """
    connections = max(1, (descriptors - _SPARE_DESCRIPTORS) // 2)
    if connections < limits.edges:
        _LOG.warning(
            "%d files may be open, enough for %d connections of edges and not for --max-edges %d: "
            "raise `ulimit -n`",
            descriptors,
            connections,
            limits.edges,
        )
    largest = largest_message_bytes(bundle.plans.values())
    return [
        *channel_options(largest),
        # What a stream may send before it is read: a frame, so that a distant edge need not wait.
        # By itself gRPC lets this grow, to 50 MB a stream where a peer reads no answers.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", min(largest, _MOST_UNREAD_BYTES)),
        # Without this option a second server would bind the same port and take half of the edges.
        ("grpc.so_reuseport", 0),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", limits.edges),
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
        # An edge's connection has a stream and is not idle, whatever it sends.
        ("grpc.max_connection_idle_ms", _IDLE_CONNECTION_MS),
        ("grpc.max_metadata_size", _METADATA_BYTES),
    ]
