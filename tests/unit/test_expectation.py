"""Expectations: reckoned once, and anew as soon as something was learnt."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.latency import PlanCost
from common.link.link import Link
from edge.link.estimate import Estimate, LinkEstimator, Transit
from edge.planning.predictor import Expectations, Served
from tests import tiny

LINK = Link(3e6, 3e6, 20.0)


class Counting(LinkEstimator):
    """Counts how often it is asked."""

    asked = 0

    def estimate(self, now_s: float) -> Estimate:
        self.asked += 1
        return super().estimate(now_s)


@pytest.fixture(scope="module")
def costs(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, PlanCost]:
    plans = tiny.build(tmp_path_factory.mktemp("bundle") / Path("b")).plans
    return {
        digest: PlanCost(digest, plan, 50.0, 0.0, 0.0)
        if plan.tail is None
        else PlanCost(digest, plan, 20.0, 10.0, 4000.0)
        for digest, plan in plans.items()
    }


def split_of(costs: dict[bytes, PlanCost]) -> bytes:
    return next(digest for digest, cost in costs.items() if cost.needs_cloud)


def test_they_add_up_both_sides_and_the_link(costs: dict[bytes, PlanCost]) -> None:
    expected = Expectations(costs, LINK, LinkEstimator()).now(0.0)
    assert expected.keys() == costs.keys()
    for digest, each in expected.items():
        wanted = 20 + 20 + 10 + 4000 * 8e3 / 3e6 if costs[digest].needs_cloud else 50.0
        assert each.latency_ms == pytest.approx(wanted)
        assert each.low_ms < each.latency_ms < each.high_ms
        assert each.digest == digest


def test_nothing_is_reckoned_twice(costs: dict[bytes, PlanCost]) -> None:
    estimator = Counting()
    expectations = Expectations(costs, LINK, estimator)
    first = expectations.now(0.0)
    assert expectations.now(0.9) is first
    assert estimator.asked == 1
    assert expectations.now(2.0) is not first, "what is known of a link fades"


SPLIT_TOOK = Served(edge_ms=40.0, cloud_ms=10.0, queue_ms=0.0, uplink_bytes=4000, latency_ms=80.0)


Learning = Callable[[Expectations, LinkEstimator, bytes], object]
LEARNING: dict[str, Learning] = {
    "served": lambda plans, _, split: plans.served(plans.now(0.0)[split], SPLIT_TOOK),
    "queued": lambda plans, *_: plans.queued(30.0),
    "seeded": lambda plans, _, split: plans.seed(split, 5, 40.0, 20.0, 4000.0),
    "passed": lambda _, link, *__: link.passed(Transit(0.0, 0.05, 0.05, 0.1, 40)),
    "overdue": lambda _, link, *__: link.overdue(0.0, 4000, 1000.0),
}


@pytest.mark.parametrize("learn", LEARNING.values(), ids=LEARNING)
def test_what_is_learnt_counts_at_once(costs: dict[bytes, PlanCost], learn: Learning) -> None:
    estimator = LinkEstimator()
    expectations = Expectations(costs, LINK, estimator)
    split = split_of(costs)
    before = expectations.now(0.0)[split].latency_ms
    learn(expectations, estimator, split)
    assert expectations.now(0.0)[split].latency_ms > 1.05 * before


def test_a_new_stream_keeps_what_was_learnt_of_the_link(costs: dict[bytes, PlanCost]) -> None:
    estimator = LinkEstimator()
    expectations = Expectations(costs, LINK, estimator)
    estimator.overdue(0.0, 4000, 1000.0)
    before = expectations.now(0.0)
    estimator.reconnected()
    after = expectations.now(0.0)
    assert after is not before
    assert after[split_of(costs)].latency_ms == pytest.approx(before[split_of(costs)].latency_ms)
