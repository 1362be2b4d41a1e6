"""Slots of streams: bounds per peer and in all, and who gives way to whom."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import grpc
import pytest

from cloud.service import peer_of
from cloud.statuses import status_of
from cloud.streams import (
    HelloTimeoutError,
    StreamLimits,
    Streams,
    StreamSlot,
    TooManyStreamsError,
)


def in_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test that runs in an event loop."""

    def run() -> None:
        async def call() -> None:
            await test()

        asyncio.run(call())

    run.__doc__ = test.__doc__
    return run


def ended(slot: StreamSlot) -> str:
    return str(slot.ended.result()) if slot.ended.done() else ""


@in_loop
async def test_of_too_many_strangers_the_longest_waiting_gives_way() -> None:
    streams = Streams(StreamLimits(waiting=16))
    with ExitStack() as stack:
        slots = [stack.enter_context(streams.opened(str(k))) for k in range(17)]
        assert "at most 16 streams without a Hello" in ended(slots[0])
        assert [ended(slot) for slot in slots[1:]] == [""] * 16
        assert streams.count() == (16, 0)
    assert streams.count() == (0, 0)


@in_loop
async def test_one_peer_gets_half_of_the_places_of_strangers() -> None:
    streams = Streams(StreamLimits(waiting=20))
    with ExitStack() as stack:
        other = stack.enter_context(streams.opened("other"))
        slots = [stack.enter_context(streams.opened("one")) for _ in range(11)]
        assert ended(slots[0]).startswith("expected at most 10 streams without a Hello of one")
        assert ended(other) == ""


@in_loop
async def test_a_newcomer_is_refused_where_all_edges_are_busy() -> None:
    streams = Streams(StreamLimits(edges=2))
    with (
        streams.opened("a") as first,
        streams.opened("b") as second,
        streams.opened("c") as third,
    ):
        streams.admit(first)
        streams.admit(second)
        with pytest.raises(TooManyStreamsError, match="at most 2 edges") as caught:
            streams.admit(third)
        assert status_of(caught.value).grpc is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ended(first) == ended(second) == ""


@in_loop
async def test_an_edge_that_was_silent_for_long_gives_way() -> None:
    streams = Streams(StreamLimits(edges=2, idle_s=0.0))
    with (
        streams.opened("a") as first,
        streams.opened("b") as second,
        streams.opened("c") as third,
    ):
        streams.admit(first)
        streams.admit(second)
        streams.active(first)
        streams.admit(third)
        assert "gave way" in ended(second)
        assert ended(first) == ended(third) == ""
        assert streams.count() == (0, 2)


@in_loop
async def test_one_peer_gets_half_of_the_edges() -> None:
    streams = Streams(StreamLimits(edges=20))
    with ExitStack() as stack:
        slots = [stack.enter_context(streams.opened("one")) for _ in range(11)]
        for slot in slots[:10]:
            streams.admit(slot)
        with pytest.raises(TooManyStreamsError, match="at most 10 edges of one address"):
            streams.admit(slots[10])
        streams.admit(stack.enter_context(streams.opened("other")))


@in_loop
async def test_a_slot_that_is_left_is_free() -> None:
    streams = Streams(StreamLimits(edges=1))
    for _ in range(3):
        with streams.opened("a") as slot:
            streams.admit(slot)
    assert streams.count() == (0, 0)


@in_loop
async def test_the_first_reason_to_end_counts() -> None:
    with Streams().opened("a") as slot:
        slot.end(TooManyStreamsError("first"))
        slot.end(HelloTimeoutError("second"))
        assert ended(slot) == "first"


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
            stack.enter_context(streams.opened("reads-nothing"))
        refused = f"at most {limits.open_per_peer} open streams of one address"
        with pytest.raises(TooManyStreamsError, match=refused), streams.opened("reads-nothing"):
            pass
        with streams.opened("other") as slot:
            assert ended(slot) == ""
    with streams.opened("reads-nothing") as slot:
        assert ended(slot) == ""
