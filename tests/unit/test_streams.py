"""Places of streams: bounds per peer and in all, and who gives way to whom."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import grpc
import pytest

from cloud.streams import (
    GreetingTimeoutError,
    StreamLimits,
    StreamPlace,
    Streams,
    TooManyStreamsError,
    peer_of,
)


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that runs in an event loop."""

    def run() -> None:
        async def call() -> None:
            await test()

        asyncio.run(call())

    run.__doc__ = test.__doc__
    return run


def ended(place: StreamPlace) -> str:
    return str(place.ended.result()) if place.ended.done() else ""


@in_loop
async def test_of_too_many_strangers_the_longest_waiting_gives_way() -> None:
    streams = Streams(StreamLimits(waiting=16))
    with ExitStack() as stack:
        places = [stack.enter_context(streams.arrived(str(k))) for k in range(17)]
        assert "at most 16 streams without a Hello" in ended(places[0])
        assert [ended(place) for place in places[1:]] == [""] * 16
        assert streams.count() == (16, 0)
    assert streams.count() == (0, 0)


@in_loop
async def test_one_peer_gets_half_of_the_places_of_strangers() -> None:
    streams = Streams(StreamLimits(waiting=20))
    with ExitStack() as stack:
        other = stack.enter_context(streams.arrived("other"))
        places = [stack.enter_context(streams.arrived("one")) for _ in range(11)]
        assert ended(places[0]).startswith("expected at most 10 streams without a Hello of one")
        assert ended(other) == ""


@in_loop
async def test_a_newcomer_is_refused_where_all_edges_are_busy() -> None:
    streams = Streams(StreamLimits(edges=2))
    with (
        streams.arrived("a") as first,
        streams.arrived("b") as second,
        streams.arrived("c") as third,
    ):
        streams.greeted(first)
        streams.greeted(second)
        with pytest.raises(TooManyStreamsError, match="at most 2 edges") as caught:
            streams.greeted(third)
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ended(first) == ended(second) == ""


@in_loop
async def test_an_edge_that_was_silent_for_long_gives_way() -> None:
    streams = Streams(StreamLimits(edges=2, idle_s=0.0))
    with (
        streams.arrived("a") as first,
        streams.arrived("b") as second,
        streams.arrived("c") as third,
    ):
        streams.greeted(first)
        streams.greeted(second)
        streams.active(first)
        streams.greeted(third)
        assert "gave way" in ended(second)
        assert ended(first) == ended(third) == ""
        assert streams.count() == (0, 2)


@in_loop
async def test_one_peer_gets_half_of_the_edges() -> None:
    streams = Streams(StreamLimits(edges=20))
    with ExitStack() as stack:
        places = [stack.enter_context(streams.arrived("one")) for _ in range(11)]
        for place in places[:10]:
            streams.greeted(place)
        with pytest.raises(TooManyStreamsError, match="at most 10 edges of one address"):
            streams.greeted(places[10])
        streams.greeted(stack.enter_context(streams.arrived("other")))


@in_loop
async def test_a_place_that_is_left_is_free() -> None:
    streams = Streams(StreamLimits(edges=1))
    for _ in range(3):
        with streams.arrived("a") as place:
            streams.greeted(place)
    assert streams.count() == (0, 0)


@in_loop
async def test_the_first_reason_to_end_counts() -> None:
    with Streams().arrived("a") as place:
        place.end(TooManyStreamsError("first"))
        place.end(GreetingTimeoutError("second"))
        assert ended(place) == "first"


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("ipv4:192.0.2.7:50123", "192.0.2.7"),
        ("ipv6:%5B2001:db8:1:2::7%5D:50123", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2:ffff::8]:1", "2001:db8:1:2::/64"),  # the same customer
        ("ipv6:[::ffff:192.0.2.7]:1", "192.0.2.7"),  # as a dual-stack socket gives it
        ("ipv6:%5Bfe80::1%25eth0%5D:443", "fe80::/64"),
        ("unix:/run/splitpoint.sock", "unix"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_an_address_without_its_port(address: str, peer: str) -> None:
    assert peer_of(address) == peer


@in_loop
async def test_streams_that_do_not_end_use_up_their_own_address_alone() -> None:
    limits = StreamLimits(edges=16, waiting=16)
    streams = Streams(limits)
    with ExitStack() as stack:
        for _ in range(limits.open_per_peer):  # none of them is left, whatever gave way
            stack.enter_context(streams.arrived("reads-nothing"))
        refused = f"at most {limits.open_per_peer} open streams of one address"
        with pytest.raises(TooManyStreamsError, match=refused), streams.arrived("reads-nothing"):
            pass
        with streams.arrived("other") as place:
            assert ended(place) == ""
    with streams.arrived("reads-nothing") as place:
        assert ended(place) == ""
