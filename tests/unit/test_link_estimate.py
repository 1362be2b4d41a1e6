"""The link estimate: bandwidth, floor and burst of links that are known, from messages alone."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from common.link.link import Link
from edge.link.estimate import LinkEstimator, Transit

CLOCKS_APART_S = 12_345.6
BURST = 1500
BELIEVED = Link(1e6, 1e6, 50.0)


class SimulatedLink:
    """A link that messages pass one after the other, each after the last was answered."""

    def __init__(
        self,
        uplink_bps: float,
        rtt_ms: float = 20.0,
        jitter_ms: float = 0.3,
        handover_ms: float = 0.0,
    ) -> None:
        self.uplink_bps, self.rtt_ms, self._jitter_ms = uplink_bps, rtt_ms, jitter_ms
        self._handover_ms = handover_ms
        self.estimator = LinkEstimator()
        self.now_s = 100.0
        self._random = np.random.default_rng(1)

    def send(self, size_bytes: int, *, cloud_ms: float = 5.0) -> tuple[float, float]:
        """Returns what its ways took in the estimator's eyes, up and down."""
        up_ms = self.rtt_ms / 2 + max(0, size_bytes - BURST) * 8e3 / self.uplink_bps
        up_ms += self._jitter_ms * float(self._random.random())
        down_ms = self.rtt_ms / 2 + self._jitter_ms * float(self._random.random())
        sent_s = self.now_s
        gone_s = sent_s + self._handover_ms * float(self._random.random()) / 1e3
        arrived_s = gone_s + up_ms / 1e3 + CLOCKS_APART_S
        left_s = arrived_s + cloud_ms / 1e3
        self.now_s = gone_s + (up_ms + cloud_ms + down_ms) / 1e3
        transit = Transit(sent_s, arrived_s, left_s, self.now_s, size_bytes, gone_s)
        passage = self.estimator.passed(transit)
        self.now_s += 0.03
        return passage.uplink_ms, passage.downlink_ms

    def calibrate(self) -> None:
        for size in (40, 40, 40, 3000, 9000):
            self.send(size)

    @property
    def uplink(self) -> float:
        estimate = self.estimator.estimate(self.now_s)
        assert estimate.uplink_bps is not None
        return estimate.uplink_bps


@given(mbit=st.floats(0.3, 40.0), rtt_ms=st.floats(2, 200), size=st.integers(2500, 40_000))
@settings(deadline=None)
def test_a_steady_link_is_found(mbit: float, rtt_ms: float, size: int) -> None:
    simulated = SimulatedLink(mbit * 1e6, rtt_ms)
    # A transfer within the jitter tells of no bandwidth.
    assume((size - BURST) * 8e3 / simulated.uplink_bps > 2.0)
    simulated.calibrate()
    for _ in range(20):
        simulated.send(size)
    found = simulated.estimator.estimate(simulated.now_s)
    assert found.rtt_ms == pytest.approx(rtt_ms, abs=0.7)
    # What counts is what other messages will take.
    for other in (2000, 20_000, 100_000):
        expected = (other - BURST) * 8e3 / simulated.uplink_bps
        assert found.uplink_ms(other, BELIEVED) == pytest.approx(expected, rel=0.2, abs=3.0)


def test_before_anything_is_known_the_link_is_as_believed() -> None:
    estimate = LinkEstimator().estimate(0.0)
    assert estimate.uplink_bps is None
    assert estimate.rtt_ms is None
    assert estimate.uplink_ms(10_000, BELIEVED) == pytest.approx(80.0)


def test_clocks_that_are_apart_tell_the_way_up_from_the_way_down() -> None:
    simulated = SimulatedLink(2e6, rtt_ms=40.0, jitter_ms=0.0)
    simulated.calibrate()
    uplink_ms, downlink_ms = simulated.send(11_500)
    assert uplink_ms == pytest.approx(20 + 40)
    assert downlink_ms == pytest.approx(20)


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_step_is_a_change_and_not_noise(factor: float) -> None:
    simulated = SimulatedLink(4e6)
    simulated.calibrate()
    for _ in range(30):
        simulated.send(8000)
    assert simulated.estimator.estimate(simulated.now_s).changes == 0
    simulated.uplink_bps *= factor
    for _ in range(2):
        simulated.send(8000)
    assert simulated.uplink == pytest.approx(simulated.uplink_bps, rel=0.15)
    assert simulated.estimator.estimate(simulated.now_s).changes == 1


def test_one_stray_message_changes_little() -> None:
    simulated = SimulatedLink(4e6)
    simulated.calibrate()
    for _ in range(30):
        simulated.send(8000)
    before = simulated.uplink
    usual, simulated.uplink_bps = simulated.uplink_bps, 0.4e6
    simulated.send(8000)
    simulated.uplink_bps = usual
    assert simulated.uplink == pytest.approx(before)
    for _ in range(5):
        simulated.send(8000)
    assert simulated.uplink == pytest.approx(before, rel=0.1)


def test_an_edge_that_is_slow_to_send_does_not_shake_the_estimate() -> None:
    simulated = SimulatedLink(8e6, jitter_ms=8.0)
    simulated.calibrate()
    found = []
    for _ in range(60):
        simulated.send(40)
        simulated.send(12_000)
        found.append(simulated.uplink)
    steps = np.abs(np.diff(np.log(found[10:])))
    assert steps.max() < 0.15
    assert simulated.estimator.estimate(simulated.now_s).changes == 0


def test_what_a_busy_edge_lets_messages_wait_is_no_transfer() -> None:
    simulated = SimulatedLink(5e6, handover_ms=40.0)
    simulated.calibrate()
    for _ in range(4):
        simulated.send(40)
        simulated.send(4600)
    estimate = simulated.estimator.estimate(simulated.now_s)
    assert simulated.uplink == pytest.approx(5e6, rel=0.1)
    assert estimate.jitter_ms < 2
    assert estimate.rtt_ms is not None
    assert 20 < estimate.rtt_ms < 20 + 40, "what a message waits, the next one will, too"


def test_small_probes_of_a_jittery_edge_see_a_link_quicken() -> None:
    """Their transfers vanish in the jitter; that they do tells enough."""
    simulated = SimulatedLink(0.6e6, jitter_ms=14.0)
    simulated.calibrate()
    for _ in range(10):
        simulated.send(40)
        simulated.send(3000)
    assert simulated.uplink == pytest.approx(0.6e6, rel=0.4)
    simulated.uplink_bps = 8e6
    simulated.send(3000)
    assert simulated.estimator.estimate(simulated.now_s).unsettled
    simulated.send(7500)
    assert simulated.uplink > 2e6


@pytest.mark.parametrize("mbit", [0.6, 2.0, 8.0, 30.0])
def test_jitter_alone_is_no_change(mbit: float) -> None:
    simulated = SimulatedLink(mbit * 1e6, jitter_ms=14.0)
    simulated.calibrate()
    for _ in range(300):
        simulated.send(40)
        simulated.send(3000)
    assert simulated.estimator.estimate(simulated.now_s).changes <= 2


def test_messages_that_queue_behind_each_other_are_charged_their_own_time() -> None:
    estimator = LinkEstimator()
    rate, now_s = 2e6, 100.0
    for _ in range(3):
        arrived_s = now_s + 0.01 + CLOCKS_APART_S
        estimator.passed(Transit(now_s, arrived_s, arrived_s, now_s + 0.02, 40))
        now_s += 0.1
    free_s = now_s
    for _ in range(12):  # all handed over at once
        free_s += 6000 * 8 / rate
        arrived_s = free_s + 0.01 + CLOCKS_APART_S
        estimator.passed(Transit(now_s, arrived_s, arrived_s, free_s + 0.02, 6000))
    found = estimator.estimate(free_s).uplink_bps
    assert found == pytest.approx(rate, rel=0.05)


def test_what_is_overdue_bounds_the_bandwidth() -> None:
    simulated = SimulatedLink(8e6)
    simulated.calibrate()
    simulated.estimator.overdue(simulated.now_s, 10_000, 1000.0)
    assert simulated.uplink == pytest.approx(80_000)
    simulated.estimator.overdue(simulated.now_s, 10_000, 1.0)  # says nothing new
    assert simulated.uplink == pytest.approx(80_000)


def test_a_new_stream_has_new_clocks_but_the_same_link() -> None:
    simulated = SimulatedLink(4e6)
    simulated.calibrate()
    for _ in range(5):
        simulated.send(8000)
    before = simulated.uplink
    simulated.estimator.reconnected()
    assert simulated.uplink == before
    uplink_ms, downlink_ms = simulated.send(8000)
    assert downlink_ms == 0.0  # not yet told apart
    assert uplink_ms > 20
    assert simulated.uplink == before


@pytest.mark.parametrize(
    "distort",
    [
        lambda t: t._replace(arrived_s=t.arrived_s + 1e9),
        lambda t: t._replace(arrived_s=0.0, left_s=0.0),
        lambda t: t._replace(left_s=t.arrived_s + 1e6),
        lambda t: t._replace(received_s=t.sent_s),
    ],
)
def test_a_cloud_whose_clock_steps_breaks_nothing(
    distort: Callable[[Transit], Transit],
) -> None:
    simulated = SimulatedLink(4e6)
    simulated.calibrate()
    arrived_s = simulated.now_s + 0.03 + CLOCKS_APART_S
    usual = Transit(simulated.now_s, arrived_s, arrived_s, simulated.now_s + 0.06, 8000)
    passage = simulated.estimator.passed(distort(usual))
    assert passage.uplink_ms >= 0
    assert passage.downlink_ms >= 0
    for _ in range(3):
        simulated.send(40)
    for _ in range(10):
        simulated.send(8000)
    assert simulated.uplink == pytest.approx(4e6, rel=0.3)
