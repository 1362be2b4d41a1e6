"""Connecting: one attempt that all share, each waits as long as it likes, pauses after failures."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import grpc
import pytest

from common.errors import CloudFailedError, CloudOverloadedError, CloudUnavailableError
from common.rpc import splitpoint_pb2 as pb
from edge.stream.client import CloudClient
from edge.stream.transport import GrpcTransport, InProcessTransport, Transport

PLAN = bytes(range(32))
HELLO = pb.Hello(edge_id="test", bundle_digest=bytes(32))
LONG_S = 60.0


def answering(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
    """A cloud that holds one plan and finds nothing."""
    if message.HasField("hello"):
        return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=[PLAN]))]
    frame_id = message.frame.frame_id or message.probe.frame_id
    return [pb.CloudMessage(result=pb.Result(frame_id=frame_id))]


class Slow:
    """Streams that open when the test says so."""

    def __init__(self) -> None:
        self.attempts = 0
        self.begun = threading.Semaphore(0)
        self.may_open = threading.Event()

    def connect(self) -> Transport:
        self.attempts += 1
        self.begun.release()
        self.may_open.wait(LONG_S)
        return InProcessTransport(answering)


class Absent:
    """A cloud that is not there, and a clock in the hands of the test."""

    def __init__(self, error: CloudUnavailableError | None = None) -> None:
        self.error = CloudUnavailableError("not there") if error is None else error
        self.now_s = 100.0
        self.attempts_s: list[float] = []
        self.back = False

    def connect(self) -> Transport:
        self.attempts_s.append(self.now_s)
        if self.back:
            return InProcessTransport(answering)
        raise self.error

    def client(self) -> CloudClient:
        return CloudClient(self.connect, HELLO, clock=lambda: self.now_s)


def frame() -> pb.Frame:
    return pb.Frame(plan_digest=PLAN)


def test_callers_share_one_attempt() -> None:
    slow = Slow()
    client = CloudClient(slow.connect, HELLO)
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.request, frame(), LONG_S, LONG_S) for _ in range(4)]
        assert slow.begun.acquire(timeout=LONG_S)
        slow.may_open.set()
        assert all(call.result(LONG_S).result.frame_id for call in calls)
    assert slow.attempts == 1
    client.close()


def test_a_caller_that_is_in_a_hurry_does_not_wait_for_the_patient() -> None:
    slow = Slow()
    client = CloudClient(slow.connect, HELLO)
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(client.request, frame(), LONG_S, LONG_S)
        assert slow.begun.acquire(timeout=LONG_S)
        with pytest.raises(CloudUnavailableError, match="no stream to the cloud within 0 s"):
            client.request(frame(), LONG_S, connect_s=0.0)
        assert not patient.done()
        slow.may_open.set()
        assert patient.result(LONG_S).result.frame_id == 1
    client.close()


def test_an_attempt_goes_on_without_the_caller_that_began_it() -> None:
    slow = Slow()
    client = CloudClient(slow.connect, HELLO)
    with pytest.raises(CloudUnavailableError, match="no stream"):
        client.request(frame(), LONG_S, connect_s=0.0)
    slow.may_open.set()
    assert client.connect(LONG_S) == {PLAN}
    assert slow.attempts == 1
    client.close()


def test_closing_lets_no_caller_wait_for_a_stream() -> None:
    slow = Slow()
    client = CloudClient(slow.connect, HELLO)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.request, frame(), LONG_S, LONG_S)
        assert slow.begun.acquire(timeout=LONG_S)
        client.close()
        with pytest.raises(CloudUnavailableError, match="closed"):
            call.result(LONG_S)
    slow.may_open.set()


def test_a_failed_attempt_is_followed_by_a_pause_in_which_callers_fail_at_once() -> None:
    absent = Absent()
    client = absent.client()
    for _ in range(3):
        with pytest.raises(CloudUnavailableError, match="not there"):
            client.request(frame())
    assert len(absent.attempts_s) == 1
    absent.now_s += 1.0
    with pytest.raises(CloudUnavailableError, match="not there"):
        client.request(frame())
    assert len(absent.attempts_s) == 2


def test_pauses_grow_but_a_cloud_that_is_back_is_found_within_a_second() -> None:
    absent = Absent()
    client = absent.client()
    for _ in range(500):
        with pytest.raises(CloudUnavailableError):
            client.request(frame())
        absent.now_s += 0.01
    pauses = [after - before for before, after in pairwise(absent.attempts_s)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.2
    assert 0.5 < pauses[-1] < 1.0
    absent.back = True
    absent.now_s += 1.0
    client.request(frame())


def test_a_cloud_that_turns_streams_away_is_left_alone_for_longer() -> None:
    absent = Absent(CloudOverloadedError("full"))
    client = absent.client()
    for _ in range(60):
        with pytest.raises(CloudOverloadedError):
            client.request(frame())
        absent.now_s += 1.0
    assert 5 < len(absent.attempts_s) < 15
    absent.back = True
    absent.now_s += 10.0
    client.request(frame())


def test_after_a_frame_that_was_shed_none_is_sent_for_a_while() -> None:
    now_s = 100.0
    frames = 0
    full = True

    def shedding(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        nonlocal frames
        if not message.HasField("frame"):
            return answering(message)
        frames += 1
        if not full:
            return answering(message)
        rejection = pb.Rejection(frame_id=message.frame.frame_id, message="no room")
        rejection.MergeFromString(b"\x10\x05")  # REASON_OVERLOADED
        return [pb.CloudMessage(rejection=rejection)]

    client = CloudClient(lambda: InProcessTransport(shedding), HELLO, clock=lambda: now_s)
    for _ in range(3):
        with pytest.raises(CloudOverloadedError):
            client.request(frame())
    assert frames == 1
    assert client.quiet_until_s > now_s
    client.request(pb.Probe())  # a ping may still ask whether it is there
    full, now_s = False, client.quiet_until_s
    client.request(frame())
    client.request(frame())
    client.close()


def test_a_bug_in_an_attempt_is_one_failure_more_and_traced_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s = 0.0

    def connect() -> Transport:
        raise ZeroDivisionError("boom")

    client = CloudClient(connect, HELLO, clock=lambda: now_s)
    for _ in range(3):
        with pytest.raises(CloudUnavailableError, match=r"bug .*boom"):
            client.request(frame())
        now_s += 10.0
    assert len([record for record in caplog.records if record.exc_info]) == 1


Behaviour = Callable[[Iterator[bytes], "grpc.ServicerContext"], Iterator[bytes]]


@contextmanager
def server(behaviour: Behaviour) -> Iterator[str]:
    """A real gRPC server whose stream is a function over bytes; gives its address."""
    running = grpc.server(ThreadPoolExecutor(2))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(behaviour)
    service = "splitpoint.v1.SplitService"
    running.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, {"Stream": handler})]
    )
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.stop(None).wait(LONG_S)


def test_a_stream_that_is_refused_at_a_limit_is_an_overload() -> None:
    def full(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("64 streams are open")
        yield from ()

    with server(full) as address:
        client = CloudClient(lambda: GrpcTransport(address), HELLO, connect_timeout_s=LONG_S)
        with pytest.raises(CloudOverloadedError, match="64 streams are open"):
            client.connect()
        client.close()


def test_bytes_that_are_no_message_lose_the_stream_without_a_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def babbling(_: Iterator[bytes], __: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"\xff\xff\xff\xff no message"

    with server(babbling) as address, caplog.at_level(logging.DEBUG):
        client = CloudClient(lambda: GrpcTransport(address), HELLO, connect_timeout_s=LONG_S)
        with pytest.raises(CloudFailedError, match="expected a Welcome"):
            client.connect()
        client.close()
    assert not [record for record in caplog.records if record.exc_info]


def test_what_ended_a_stream_is_told_by_sending_too() -> None:
    def full(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
        context.set_details("64 streams are open")
        yield from ()

    with server(full) as address:
        transport = GrpcTransport(address)
        deadline_s = time.monotonic() + LONG_S
        while transport._call.is_active():
            assert time.monotonic() < deadline_s
            time.sleep(0.01)
        with pytest.raises(CloudOverloadedError, match="64 streams are open"):
            transport.send(pb.EdgeMessage(hello=HELLO))
        transport.close()
