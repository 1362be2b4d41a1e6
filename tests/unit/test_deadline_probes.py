"""Probes for deadlines: what requests choose by decides whether the link is worth a look."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from common.bundle.bundle import Bundle
from common.latency import PlanCost
from common.link.link import Link, Shaper
from common.rpc import splitpoint_pb2 as pb
from edge.detector import Detector, find_plan
from edge.link.estimate import LinkEstimator
from edge.planning.controller import PlanController
from edge.planning.planner import Planner
from edge.stream.client import CloudClient
from edge.stream.shaping import ShapedTransport
from tests import tiny
from tests.in_process import Cloud, known
from tests.unit.test_planner import LINK, costs, served

__all__ = ["costs"]  # a fixture
SLOW, FAST = Link(2e4, 2e4, 5.0), Link(3e7, 3e7, 5.0)


def _quick(costs: list[PlanCost]) -> list[PlanCost]:
    """An edge so fast that no plan through the cloud could ever be faster."""
    return [cost if cost.needs_cloud else replace(cost, edge_ms=5.0) for cost in costs]


def _settled(costs: list[PlanCost], *, link_bps: float = 5e4) -> Planner:
    """A planner over a link that fell, which serves on the edge alone."""
    estimator = LinkEstimator()
    planner = Planner(costs, LINK, estimator)
    for k in range(30):
        served(planner, planner.choose(k / 10))
    estimator.overdue(3.0, 10_000, 8e4 / link_bps * 1e3)
    assert not planner.choose(3.0).expected.cost.needs_cloud
    return planner


class TestWhatAPlannerWants:
    def test_a_more_accurate_plan_over_a_faster_link(self, costs: list[PlanCost]) -> None:
        planner = _settled(_quick(costs))
        assert not planner.wants_probe(10.0)
        choice = planner.choose(10.0, 800.0)
        assert choice.expected.cost.plan.name == "edge-only"
        assert planner.wants_probe(10.0), "an upload is more accurate, and may be in time"

    def test_nothing_that_could_not_keep_the_deadline(self, costs: list[PlanCost]) -> None:
        planner = _settled(_quick(costs))
        planner.choose(10.0, 20.0)
        assert not planner.wants_probe(10.0), "the round trip alone takes 20 ms"

    def test_nothing_less_accurate(self, costs: list[PlanCost]) -> None:
        poor = [c for c in _quick(costs) if c.plan.name != "upload"]
        planner = _settled(poor)
        planner.choose(10.0, 800.0)
        assert not planner.wants_probe(10.0)

    def test_nothing_for_deadlines_that_are_long_past(self, costs: list[PlanCost]) -> None:
        planner = _settled(_quick(costs))
        planner.choose(10.0, 800.0)
        assert not planner.wants_probe(20.0)

    def test_frames_without_one_count_beside_those_with_one(self, costs: list[PlanCost]) -> None:
        planner = _settled(_quick(costs))
        planner.choose(10.0)
        planner.choose(10.0, 800.0)
        assert planner.wants_probe(10.0)

    def test_a_choice_that_a_falling_link_could_end(self, costs: list[PlanCost]) -> None:
        planner = Planner(_quick(costs), Link(1e8, 1e8, 20.0), LinkEstimator())
        for k in range(30):
            served(planner, planner.choose(k / 10))
        assert planner.choose(10.0, 800.0).expected.cost.plan.name == "upload"
        assert planner.wants_probe(10.0)

    def test_many_different_deadlines_are_not_remembered_for_ever(
        self, costs: list[PlanCost]
    ) -> None:
        planner = _settled(_quick(costs))
        for k in range(1000):
            planner.choose(10.0, 100.0 + k)
        assert len(planner._deadlines) < 100


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / Path("b"))


def test_requests_with_deadlines_find_a_link_that_has_become_fast(bundle: Bundle) -> None:
    """An edge that is fast alone, an upload that is more accurate: back as soon as it fits."""
    cloud = Cloud(bundle)
    transport = ShapedTransport(cloud.connect(), SLOW)
    client = CloudClient(lambda: transport, pb.Hello(edge_id="test", bundle_digest=bundle.digest))
    plans = [find_plan(bundle, name) for name in (tiny.EDGE_ONLY, tiny.CLOUD_ONLY)]
    detector = Detector(bundle, client, plans=plans, adaptive=True)
    by_kind = {cost.needs_cloud: cost for cost in known(bundle, [tiny.EDGE_ONLY, tiny.CLOUD_ONLY])}
    detector.controller = PlanController(
        client, [replace(by_kind[False], edge_ms=1.0), by_kind[True]], SLOW
    )
    detector.controller.ready()

    def serve_until(kind: str) -> None:
        deadline_s = time.monotonic() + 60
        while detector.detect(tiny.image(), deadline_ms=1000.0).plan.kind != kind:
            assert time.monotonic() < deadline_s, f"never {kind}"
            time.sleep(0.05)

    serve_until("edge-only")
    transport._shaper = Shaper(FAST, time.monotonic())
    serve_until("cloud-only")
    detector.close()
