"""The registry of connected edges, and orders of a profile: answered, late, refused, hung up on."""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any, TypeVar

import numpy as np
import pytest

from cloud.edges import (
    MOST_REPORTS,
    Edge,
    EdgeBusyError,
    EdgeFailedError,
    Edges,
    ReportedResult,
    UnknownEdgeError,
    check_switch,
)
from cloud.store.samples import SampleSource
from common.errors import OverloadedError
from common.rpc import splitpoint_pb2 as pb
from common.tasks.detections import Detections

T = TypeVar("T")
DIGEST = bytes(range(32))


async def nowhere(message: pb.CloudMessage) -> None:
    """Sent, and never answered."""


def edge(name: str = "door", send: Callable[[pb.CloudMessage], Any] = nowhere) -> Edge:
    return Edge(SampleSource(name, "box", "runtime"), "00" * 32, "1", send)


def answering(report: Callable[[pb.ProfileOrder], pb.ProfileReport]) -> Edge:
    """An edge whose report is there as soon as its order was sent."""

    async def send(message: pb.CloudMessage) -> None:
        made.reported(report(message.order))

    made = edge(send=send)
    return made


class TestRegistry:
    def test_edges_are_there_while_they_are_connected(self) -> None:
        edges = Edges()
        with edges.connected(edge("b")) as b, edges.connected(edge("a")) as a:
            assert edges.all() == [a, b]
            assert edges.find("a") is a
        assert edges.all() == []

    def test_two_with_one_name_are_told_apart(self) -> None:
        edges = Edges()
        with edges.connected(edge()) as first, edges.connected(edge()) as second:
            assert [each.name for each in edges.all()] == ["door", "door#2"]
            assert (edges.find("door"), edges.find("door#2")) == (first, second)
            assert second.source.edge == "door"
            assert edges.has_namesake(first)
            assert edges.has_namesake(second)

    @pytest.mark.parametrize("leaves", [0, 1])
    def test_whichever_of_them_leaves_the_other_stays(self, leaves: int) -> None:
        edges = Edges()
        held = [edges.connected(edge()), edges.connected(edge())]
        there = [each.__enter__() for each in held]
        held[leaves].__exit__(None, None, None)
        (stays,) = edges.all()
        assert stays is there[1 - leaves]
        assert edges.find(stays.name) is stays
        assert not edges.has_namesake(stays)
        held[1 - leaves].__exit__(None, None, None)
        assert edges.all() == []

    def test_a_name_that_looks_numbered_is_not_given_twice(self) -> None:
        edges = Edges()
        with (
            edges.connected(edge("door#2")),
            edges.connected(edge()),
            edges.connected(edge()) as third,
        ):
            assert third.name == "door#3"

    def test_an_edge_that_connects_again_takes_its_own_place(self) -> None:
        edges, replaced = Edges(), []
        older = edge()
        older.instance, older.replaced = 7, lambda: replaced.append("older")
        newer = edge()
        newer.instance = 7
        stranger = edge()
        stranger.instance = 8
        with edges.connected(stranger), edges.connected(older):
            assert older.name == "door#2"
            edges.replace("door", 7)
            with edges.connected(newer):
                assert replaced == ["older"]
                assert edges.all() == [stranger, newer]
                assert newer.name == "door#2"

    def test_edges_that_do_not_say_their_instance_replace_nobody(self) -> None:
        edges = Edges()
        with edges.connected(edge()), edges.connected(edge()):
            edges.replace("door", 0)
            assert len(edges.all()) == 2

    def test_an_error_in_a_stream_removes_its_edge(self) -> None:
        edges = Edges()
        with pytest.raises(ZeroDivisionError), edges.connected(edge()):
            raise ZeroDivisionError
        assert edges.all() == []

    def test_an_unknown_name_is_404_and_lists_the_known(self) -> None:
        edges = Edges()
        with pytest.raises(UnknownEdgeError, match="none") as caught:
            edges.find("door")
        assert caught.value.http_status == 404
        with edges.connected(edge("gate")), pytest.raises(UnknownEdgeError, match="gate"):
            edges.find("door")

    def test_a_name_of_control_characters_stays_on_one_line(self) -> None:
        with pytest.raises(UnknownEdgeError) as caught:
            Edges().find("a\nb\x1b[31m")
        assert "\n" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


class TestAnnouncements:
    def test_the_last_one_counts(self) -> None:
        found = edge()
        for reason in ("first", "second"):
            found.switched(pb.Switch(plan_digest=DIGEST, reason=reason))
        assert found.switches == 2
        assert found.switch is not None
        assert found.switch.reason == "second"

    def test_one_that_makes_no_sense_changes_nothing(self) -> None:
        found = edge()
        found.switched(pb.Switch(plan_digest=DIGEST))
        with pytest.raises(ValueError, match="bandwidth"):
            found.switched(pb.Switch(plan_digest=DIGEST, uplink_bps=float("nan")))
        assert found.switches == 1

    def test_the_largest_that_is_allowed_is(self) -> None:
        expected = [pb.Expectation(plan_digest=DIGEST)] * 256
        check_switch(
            pb.Switch(plan_digest=DIGEST, reason="x" * 300, uplink_bps=1e12, expected=expected)
        )


class TestReports:
    def test_the_newest_are_kept(self) -> None:
        found = edge()
        for frame_id in range(MOST_REPORTS + 3):
            found.found(_report(frame_id, 2))
        assert [r.frame_id for r in found.results] == list(range(3, MOST_REPORTS + 3))

    def test_and_are_bounded_in_what_they_hold(self) -> None:
        found = edge()
        for frame_id in range(5):
            found.found(_report(frame_id, 1000))
        assert [r.frame_id for r in found.results] == [3, 4]


def _report(frame_id: int, count: int) -> ReportedResult:
    detections = Detections(
        np.zeros((count, 4), np.float32), np.ones(count, np.float32), np.zeros(count, np.int32)
    )
    return ReportedResult(frame_id, DIGEST, 0.0, detections)


class TestProfiles:
    def test_a_report_is_handed_to_whoever_ordered_it(self) -> None:
        rows = [pb.StageTimes(plan_digest=DIGEST, stage="head", n=1)]

        async def run() -> tuple[pb.ProfileReport, ...]:
            found = answering(lambda o: pb.ProfileReport(order_id=o.order_id, rows=rows))
            return await found.profile(1.0), await found.profile(2.0)

        first, second = asyncio.run(run())
        assert list(first.rows) == rows
        assert first.order_id != second.order_id

    @pytest.mark.parametrize(("budget_s", "budget_ms"), [(2.5, 2500), (1e-9, 1), (300.0, 300_000)])
    def test_the_budget_is_told(self, budget_s: float, budget_ms: int) -> None:
        told: list[int] = []

        def report(order: pb.ProfileOrder) -> pb.ProfileReport:
            told.append(order.budget_ms)
            return pb.ProfileReport(order_id=order.order_id)

        asyncio.run(answering(report).profile(budget_s))
        assert told == [budget_ms]

    def test_a_second_one_at_once_is_refused(self) -> None:
        async def run() -> None:
            found = edge()
            asking = asyncio.ensure_future(found.profile(300.0))
            while not found._orders:
                await asyncio.sleep(0)
            with pytest.raises(EdgeBusyError, match="door is being profiled already") as caught:
                await found.profile(300.0)
            assert caught.value.http_status == 409
            found.reported(pb.ProfileReport(order_id=1))
            await asking
            found.send = answering(lambda o: pb.ProfileReport(order_id=o.order_id)).send
            with pytest.raises(EdgeFailedError):  # and may be asked again
                await found.profile(0.001, max_wait_s=0.001)

        asyncio.run(run())

    def test_of_all_edges_only_a_few_are_profiled_at_once(self) -> None:
        async def run() -> None:
            edges = Edges()
            with ExitStack() as stack:
                many = [stack.enter_context(edges.connected(edge(str(k)))) for k in range(5)]
                asking = [asyncio.ensure_future(each.profile(300.0)) for each in many[:4]]
                while not all(each._orders for each in many[:4]):
                    await asyncio.sleep(0)
                with pytest.raises(OverloadedError, match="4 edges are being profiled"):
                    await many[4].profile(300.0)
                for each in many[:4]:
                    each.reported(pb.ProfileReport(order_id=1))
                await asyncio.gather(*asking)
                with pytest.raises(EdgeFailedError):
                    await many[4].profile(0.001, max_wait_s=0.001)

        asyncio.run(run())

    def test_an_edge_that_cannot_says_why(self) -> None:
        found = answering(lambda o: pb.ProfileReport(order_id=o.order_id, error="too\nbusy " * 200))
        with pytest.raises(EdgeFailedError, match="door: too busy") as caught:
            asyncio.run(found.profile(1.0))
        assert caught.value.http_status == 504
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_one_that_does_not_answer_in_time(self) -> None:
        found = edge()
        with pytest.raises(EdgeFailedError, match="did not answer within"):
            asyncio.run(found.profile(0.001, max_wait_s=0.001))

    def test_one_that_does_not_even_read(self) -> None:
        """Its stream is full: the order itself cannot be written."""

        async def stuck(message: pb.CloudMessage) -> None:
            await asyncio.Event().wait()

        found = edge(send=stuck)
        with pytest.raises(EdgeFailedError, match="did not answer within"):
            asyncio.run(found.profile(0.001, max_wait_s=0.001))

    def test_a_late_report_is_dropped(self) -> None:
        orders: list[pb.ProfileOrder] = []

        async def send(message: pb.CloudMessage) -> None:
            orders.append(message.order)

        async def run() -> pb.ProfileReport:
            found = edge(send=send)
            with pytest.raises(EdgeFailedError):
                await found.profile(0.001, max_wait_s=0.001)
            found.reported(pb.ProfileReport(order_id=orders[0].order_id, error="late"))
            asking = asyncio.ensure_future(found.profile(60.0))
            while len(orders) < 2:
                await asyncio.sleep(0)
            found.reported(pb.ProfileReport(order_id=orders[0].order_id, error="late again"))
            found.reported(pb.ProfileReport(order_id=99, error="nobody asked"))
            assert not asking.done()
            report = pb.ProfileReport(order_id=orders[1].order_id)
            found.reported(report)
            found.reported(pb.ProfileReport(order_id=orders[1].order_id, error="twice"))
            return await asking

        assert asyncio.run(run()).error == ""

    def test_one_that_hangs_up(self) -> None:
        async def run() -> None:
            edges = Edges()
            sent = asyncio.Event()

            async def send(message: pb.CloudMessage) -> None:
                sent.set()

            with edges.connected(edge(send=send)) as found:
                asking = asyncio.ensure_future(found.profile(300.0))
                await sent.wait()
            with pytest.raises(EdgeFailedError, match="door hung up"):
                await asking

        asyncio.run(run())

    def test_one_whose_stream_has_just_ended(self) -> None:
        async def ended(message: pb.CloudMessage) -> None:
            raise ConnectionError("the peer has left")

        with pytest.raises(EdgeFailedError, match="hung up"):
            asyncio.run(edge(send=ended).profile(1.0))

    def test_a_caller_who_leaves_takes_the_order_along(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def run() -> None:
            found = edge()
            asking = asyncio.ensure_future(found.profile(300.0))
            while not found._orders:
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            assert found._orders == {}
            found.gone()

        with caplog.at_level(logging.ERROR):
            _run_and_collect(run())
        assert caplog.records == []


def _run_and_collect(work: Coroutine[Any, Any, T]) -> T:
    """Run, and have everything that nobody looked at complain."""
    done = asyncio.run(work)
    gc.collect()
    return done
