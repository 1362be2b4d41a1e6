"""The prober: what it sends and when, by a clock that the test drives; nothing here waits."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest

from common.rpc.messages import MAX_PROBE_BYTES
from edge.link.estimate import Estimate
from edge.planning.prober import CALIBRATION_BYTES, PINGS, Prober
from tests.probing import ACTIVE_S, FRESH, PING_S, ByHand, SimulatedCloud, calibrated


@pytest.fixture
def simulated() -> SimulatedCloud:
    return SimulatedCloud()


@pytest.fixture
def prober(simulated: SimulatedCloud) -> ByHand:
    return ByHand(simulated)


def test_without_frames_nothing_is_sent(prober: ByHand, simulated: SimulatedCloud) -> None:
    assert prober.due(simulated.now_s) == (math.inf, None)
    calibrated(prober)
    simulated.estimate = replace(FRESH, age_s=100.0, unsettled=True)
    simulated.now_s += ACTIVE_S + 1
    assert prober.go(100.0, frames=False) == []
    simulated.cloud_away = True
    assert prober.go(100.0, frames=False) == []


def test_a_new_stream_is_calibrated_once(prober: ByHand, simulated: SimulatedCloud) -> None:
    prober.frame()
    wait_s, act = prober.due(simulated.now_s)
    assert wait_s == 0
    assert act is not None
    act()
    assert simulated.sizes == [0] * PINGS + list(CALIBRATION_BYTES)
    prober.calibrate()
    assert len(simulated.sizes) == PINGS + 2, "a stream that is known is left alone"
    wait_s, _ = prober.due(simulated.now_s)
    assert wait_s > 0
    simulated.stream = object()
    assert prober.due(simulated.now_s)[0] == 0
    prober.calibrate()
    assert simulated.sizes[PINGS + 2 :] == [0] * PINGS + list(CALIBRATION_BYTES)


def test_two_who_ask_for_it_at_once_calibrate_once(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    started = threading.Barrier(2)

    def ask() -> None:
        started.wait(60)
        prober.calibrate()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(simulated.sizes) == PINGS + len(CALIBRATION_BYTES)


def test_while_frames_measure_the_link_only_the_floor_is_pinged(prober: ByHand) -> None:
    sent = calibrated(prober).go(21.0)
    assert {size for _, size in sent} == {0}
    assert len(sent) == 4


def test_a_bandwidth_that_is_stale_is_probed(prober: ByHand, simulated: SimulatedCloud) -> None:
    calibrated(prober)
    simulated.estimate = replace(FRESH, age_s=0.4)
    simulated.now_s += 2.0
    prober.frame()
    prober.rest()
    wait_s, _ = prober.due(simulated.now_s)
    assert wait_s == pytest.approx(0.1)
    simulated.estimate = replace(FRESH, age_s=5.0)
    wait_s, act = prober.due(simulated.now_s)
    assert wait_s == 0
    assert act is not None
    act()
    assert simulated.sizes[0] > 0


def test_the_first_frame_after_a_pause_has_the_link_for_itself(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.now_s += ACTIVE_S + 10
    simulated.estimate = replace(FRESH, age_s=13.0)
    assert {size for _, size in prober.go(0.4)} <= {0}
    assert any(size for _, size in prober.go(0.3)), "no frame has measured it since"


@pytest.mark.parametrize(
    "estimate", [replace(FRESH, age_s=10.0), replace(FRESH, unsettled=True), FRESH]
)
def test_a_frame_that_is_served_has_the_edge_for_itself(
    prober: ByHand, simulated: SimulatedCloud, estimate: Estimate
) -> None:
    calibrated(prober)
    simulated.estimate = estimate
    simulated.now_s += PING_S
    prober.frame()
    assert prober.go(0.5, frames=False) == []
    prober.rest()
    assert prober.go(0.1, frames=False) != []


def test_what_waits_for_a_frame_is_sent_as_soon_as_it_is_answered(
    simulated: SimulatedCloud,
) -> None:
    sent = threading.Event()

    class Watched(Prober):
        def act(self, what: Callable[[], None]) -> None:
            super().act(what)
            sent.set()

    prober = Watched(simulated.client, simulated.planner, simulated.clock)
    prober.calibrate()
    simulated.now_s += 1.0
    simulated.estimate = replace(FRESH, unsettled=True)
    prober.frame()
    assert not sent.wait(0.1)
    prober.rest()
    assert sent.wait(60)
    prober.close()


def test_a_frame_that_takes_long_does_not_keep_the_edge_from_looking(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.estimate = replace(FRESH, age_s=10.0)
    prober.frame()
    assert [size for _, size in prober.go(2.0, frames=False) if size]


def test_a_surprise_is_settled_soon(prober: ByHand, simulated: SimulatedCloud) -> None:
    calibrated(prober)
    simulated.estimate = replace(FRESH, age_s=0.05, unsettled=True)
    (sent, *_) = prober.go(0.5)
    assert sent[1] > 0
    simulated.sent.clear()
    simulated.estimate = FRESH
    assert prober.go(2.0) == []


def test_a_link_that_never_settles_is_not_filled_with_probes(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    """A jittery link surprises every time."""
    calibrated(prober)
    bps = 2e5
    simulated.bps = bps
    simulated.estimate = replace(FRESH, uplink_bps=bps, age_s=5.0, unsettled=True)
    sent = prober.go(120.0)
    busy_s = sum(size * 8 / bps for _, size in sent)
    assert busy_s < 0.1 * 120


def test_a_large_probe_of_a_fast_link_blinds_nobody_when_the_link_has_slowed(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.estimate = replace(FRESH, uplink_bps=8e6, age_s=5.0, unsettled=True)
    [(_, spent)] = prober.go(0.5)[:1]
    assert spent > 20_000
    simulated.estimate = replace(FRESH, uplink_bps=0.6e6, age_s=5.0)
    simulated.sent.clear()
    prober.go(2.5)
    assert any(simulated.sizes), "within seconds, it looks again"


def test_no_bandwidth_is_measured_that_nobody_wants_to_know(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.wanted = False
    simulated.estimate = replace(FRESH, age_s=100.0, unsettled=True)
    assert {size for _, size in prober.go(21.0)} == {0}


@pytest.mark.parametrize("bps", [1e4, 1e5, 1e6, 1e7, 1e9, None])
def test_one_of_four_sizes_is_large_within_bounds(
    prober: ByHand, simulated: SimulatedCloud, bps: float | None
) -> None:
    calibrated(prober)
    simulated.estimate = replace(FRESH, uplink_bps=bps, age_s=100.0)
    seconds = 8 * 4500 * 8 / (0.05 * min(bps or 1e6, 1e6)) * 1.5
    charged = FRESH.burst_bytes  # the burst costs no time, so it tells nothing
    sizes = [size - charged for _, size in prober.go(seconds) if size]
    assert len(sizes) >= 8
    assert all(3000 <= size <= MAX_PROBE_BYTES for size in sizes)
    for four in (sizes[:4], sizes[4:8]):
        *small, large = sorted(four)
        assert len(set(small)) == 1
        assert large == pytest.approx(2.5 * small[0], abs=2)


@pytest.mark.parametrize("bps", [5e4, 2e5, 1e6, 1e7, 1e8])
def test_probes_take_a_small_share_of_a_link(
    prober: ByHand, simulated: SimulatedCloud, bps: float
) -> None:
    calibrated(prober)
    simulated.bps = bps
    simulated.estimate = replace(FRESH, uplink_bps=bps, age_s=100.0)
    seconds = 100.0
    sent = prober.go(seconds)
    assert sum(size * 8 / bps for _, size in sent) < 0.06 * seconds


@pytest.mark.parametrize("bps", [12e3, 20e3, 30e3])
def test_a_slow_cloud_is_not_taken_for_away(
    prober: ByHand, simulated: SimulatedCloud, bps: float
) -> None:
    """A probe that is still on its way tells of the link, not of the cloud."""
    simulated.bps = bps
    simulated.estimate = replace(FRESH, uplink_bps=None)
    seconds = 300.0
    sent = prober.go(seconds)
    assert not simulated.cloud_away
    assert simulated.losses == 0
    assert simulated.overdue
    assert [size for _, size in sent[: PINGS + 2]] == [0] * PINGS + list(CALIBRATION_BYTES)
    assert sum(size * 8 / bps for _, size in sent) < 0.1 * seconds


def test_a_cloud_that_is_away_is_pinged_once_a_second(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.answers = False
    simulated.cloud_away = True
    simulated.now_s += 1.0
    sent = prober.go(30.0)
    assert {size for _, size in sent} == {0}
    starts = [at_s for at_s, _ in sent]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(starts))
    assert len(sent) >= 8
    assert simulated.resets == len(sent), "each by a stream of its own"


def test_a_cloud_that_is_back_is_calibrated_anew(prober: ByHand, simulated: SimulatedCloud) -> None:
    calibrated(prober)
    simulated.answers = False
    simulated.cloud_away = True
    simulated.now_s += 1.0
    prober.go(5.0)
    simulated.sent.clear()
    simulated.answers = True
    sent = prober.go(4.0)
    assert not simulated.cloud_away
    assert [size for _, size in sent] == [0] + [0] * PINGS + list(CALIBRATION_BYTES)


def test_a_probe_that_fails_says_that_the_cloud_is_away(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.answers = False
    prober.go(8.0)
    assert simulated.losses
    assert simulated.cloud_away


def test_a_cloud_that_is_full_is_not_pinged_meanwhile(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.cloud_away, simulated.quiet_until_s = True, simulated.now_s + 8.0
    assert prober.go(7.9) == []
    assert len(prober.go(0.5)) == 1


def test_a_cloud_that_may_be_away_is_looked_for_at_once(
    prober: ByHand, simulated: SimulatedCloud
) -> None:
    calibrated(prober)
    simulated.cloud_away, simulated.answers = True, False
    assert prober.go(0.5) == [], "once a second"
    prober.doubt()
    assert len(prober.go(0.1)) == 1
