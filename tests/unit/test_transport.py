"""Messages over a function and over an emulated link; time is a number that the test owns."""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from fastapi import FastAPI

from common.errors import CloudUnavailableError, SettingsError
from common.link.link import Link, LinkTrace, Shaper, parse_link
from common.rpc import splitpoint_pb2 as pb
from edge.stream.shaping import DelayLine, ShapedTransport
from edge.stream.transport import GrpcTransport, InProcessTransport, check_address
from tests.served import served

LINK = parse_link("1mbit/40ms")


class FakeClock:
    """Time that passes only by waiting for it, and then at once."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self.waits: list[float] = []

    def now_s(self) -> float:
        return self._now_s

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        if timeout_s is None:
            condition.wait()
        else:
            self.waits.append(timeout_s)
            self._now_s += timeout_s


class ScriptedTransport:
    """Notes what was sent, and when; receives what the test puts in."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.sent: queue.Queue[tuple[float, pb.EdgeMessage]] = queue.Queue()
        self.incoming: queue.Queue[pb.CloudMessage | None] = queue.Queue()

    def send(self, message: pb.EdgeMessage, gone: Callable[[], None] | None = None) -> None:
        if gone is not None:
            gone()
        self.sent.put((self._clock.now_s(), message))

    def receive(self, timeout_s: float | None = None) -> pb.CloudMessage:  # noqa: ARG002
        message = self.incoming.get()
        if message is None:
            raise CloudUnavailableError("gone")
        return message

    def close(self) -> None:
        self.incoming.put(None)


def frame(frame_id: int, size_bytes: int = 1000) -> pb.EdgeMessage:
    payload = pb.Payload(data=bytes(size_bytes))
    return pb.EdgeMessage(frame=pb.Frame(frame_id=frame_id, payloads=[payload]))


def result(frame_id: int) -> pb.CloudMessage:
    return pb.CloudMessage(result=pb.Result(frame_id=frame_id))


class TestInProcess:
    def test_answers_come_in_order(self) -> None:
        transport = InProcessTransport(lambda m: [result(m.frame.frame_id), result(99)])

        transport.send(frame(1))

        assert [transport.receive().result.frame_id for _ in range(2)] == [1, 99]

    def test_a_timeout_loses_the_stream(self) -> None:
        transport = InProcessTransport(lambda _: [])
        with pytest.raises(CloudUnavailableError, match="no answer"):
            transport.receive(timeout_s=0)
        with pytest.raises(CloudUnavailableError):
            transport.send(frame(1))

    def test_closing_wakes_a_receiver_every_time(self) -> None:
        transport = InProcessTransport(lambda _: [])
        transport.close()
        for _ in range(2):
            with pytest.raises(CloudUnavailableError, match="closed"):
                transport.receive()


class TestDelayLine:
    def test_an_item_is_taken_at_its_time_and_no_sooner(self) -> None:
        clock = FakeClock()
        line: DelayLine[str] = DelayLine(clock)
        line.put("a", 0.5)

        assert line.get() == "a"
        assert clock.now_s() == 0.5

    def test_order_is_that_of_putting(self) -> None:
        line: DelayLine[str] = DelayLine(FakeClock())
        line.put("slow", 2.0)
        line.put("fast", 1.0)

        assert [line.get(), line.get()] == ["slow", "fast"]

    def test_none_after_the_timeout(self) -> None:
        clock = FakeClock()
        line: DelayLine[str] = DelayLine(clock)
        line.put("late", 3.0)

        assert line.get(timeout_s=1.0) is None
        assert clock.now_s() == 1.0

    def test_what_is_on_the_line_still_arrives_after_its_end(self) -> None:
        line: DelayLine[str] = DelayLine(FakeClock())
        line.put("last", 1.0)
        line.end(CloudUnavailableError("gone"))

        assert line.get() == "last"
        with pytest.raises(CloudUnavailableError, match="gone"):
            line.get()


class TestShaped:
    def test_a_message_reaches_the_cloud_when_its_last_byte_would(self) -> None:
        clock = FakeClock()
        inner = ScriptedTransport(clock)
        transport = ShapedTransport(inner, LINK, clock=clock)
        message = frame(1)

        transport.send(message)

        at_s, received = inner.sent.get(timeout=60)
        assert received == message
        assert at_s == pytest.approx(expected_s(LINK, message.ByteSize(), up=True))
        transport.close()

    def test_an_answer_reaches_the_edge_when_its_last_byte_would(self) -> None:
        clock = FakeClock()
        inner = ScriptedTransport(clock)
        transport = ShapedTransport(inner, LINK, clock=clock)
        inner.incoming.put(result(7))

        received = transport.receive()

        assert received.result.frame_id == 7
        assert clock.now_s() == pytest.approx(expected_s(LINK, received.ByteSize(), up=False))
        transport.close()

    def test_order_is_kept(self) -> None:
        clock = FakeClock()
        inner = ScriptedTransport(clock)
        transport = ShapedTransport(inner, LINK, clock=clock)

        for frame_id, size_bytes in enumerate((50_000, 10, 3000), start=1):
            transport.send(frame(frame_id, size_bytes))

        sent = [inner.sent.get(timeout=60) for _ in range(3)]
        assert [message.frame.frame_id for _, message in sent] == [1, 2, 3]
        assert sorted(at_s for at_s, _ in sent) == [at_s for at_s, _ in sent]
        transport.close()

    def test_a_trace_that_began_earlier_goes_on_where_it_is(self) -> None:
        clock = FakeClock()
        inner = ScriptedTransport(clock)
        trace = LinkTrace(((0.0, LINK), (1.0, None), (4.0, LINK)))
        transport = ShapedTransport(inner, trace, clock=clock, start_s=-1.5)

        transport.send(frame(1, 10))  # in the middle of the outage

        at_s, _ = inner.sent.get(timeout=60)
        assert at_s == pytest.approx(2.5 + LINK.rtt_ms / 2e3)
        transport.close()

    def test_a_lost_stream_shows_on_both_sides(self) -> None:
        clock = FakeClock()
        inner = ScriptedTransport(clock)
        transport = ShapedTransport(inner, LINK, clock=clock)
        inner.incoming.put(None)

        with pytest.raises(CloudUnavailableError, match="gone"):
            transport.receive()
        with pytest.raises(CloudUnavailableError, match="gone"):
            transport.send(frame(1))


class TestGrpc:
    @pytest.mark.parametrize(
        "address", ["", "host", ":50051", "host:", "host:x", "host:0", "host:65536", "host:٣"]
    )
    def test_an_address_is_host_and_port(self, address: str) -> None:
        with pytest.raises(SettingsError, match="HOST:PORT"):
            check_address(address)

    def test_a_cloud_that_is_not_there_is_one_line(self) -> None:
        transport = GrpcTransport("127.0.0.1:1")  # a port that nothing serves
        with pytest.raises(
            CloudUnavailableError, match=r"127\.0\.0\.1:1: .*`splitpoint cloud`"
        ) as e:
            transport.receive(timeout_s=30)
        assert "\n" not in str(e.value)
        transport.close()

    @pytest.mark.parametrize("address", ["http://door:8080", "grpc://door:50051", "http://door"])
    def test_a_url_is_refused_with_the_form_that_is_expected(self, address: str) -> None:
        with pytest.raises(SettingsError, match=r"HOST:PORT alone.* no URL"):
            check_address(address)

    def test_a_server_of_http_is_taken_for_the_rest_port(self) -> None:
        with served(FastAPI()) as rest:
            transport = GrpcTransport(f"127.0.0.1:{rest.port}")
            with pytest.raises(CloudUnavailableError, match=r"REST port.*--grpc-port") as caught:
                transport.receive(timeout_s=60)
            transport.close()
        assert "\n" not in str(caught.value)

    def test_a_grpc_server_without_our_service_is_none_of_ours(self) -> None:
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        transport = GrpcTransport(f"127.0.0.1:{port}")
        with pytest.raises(CloudUnavailableError, match="does not speak Splitpoint's gRPC"):
            transport.receive(timeout_s=60)
        transport.close()
        server.stop(None)


def expected_s(link: Link, size_bytes: int, *, up: bool) -> float:
    shaper = Shaper(link)
    arrival_s = shaper.uplink_arrival_s if up else shaper.downlink_arrival_s
    return arrival_s(0.0, size_bytes)
