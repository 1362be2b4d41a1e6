"""The prober: what it sends and when, by a clock that the test drives; nothing here waits."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest

from common.errors import CloudUnavailableError, SplitpointError
from common.messages import MAX_PROBE_BYTES
from common.rpc import splitpoint_pb2 as pb
from edge.client import Answer
from edge.link_estimate import Estimate, Passage
from edge.prober import CALIBRATION_BYTES, PINGS, Prober

FRESH = Estimate(
    uplink_bps=8e6,
    rtt_ms=20.0,
    burst_bytes=1500.0,
    spread=0.05,
    age_s=0.0,
    changes=0,
    unsettled=False,
)
PING_S = 5.0
ACTIVE_S = 3.0
"""How long after a frame the link is still of interest."""


@dataclass
class World:
    """A client, its planner and a clock, all in the hands of the test."""

    now_s: float = 100.0
    stream: object | None = field(default_factory=object)
    estimate: Estimate = FRESH
    cloud_away: bool = False
    wanted: bool = True
    answers: bool = True
    bps: float = math.inf
    sent: list[tuple[float, int]] = field(default_factory=list)
    resets: int = 0
    losses: int = 0
    overdue: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    @property
    def client(self) -> Any:
        world = self

        class Link:
            def estimate(self, _: float) -> Estimate:
                return world.estimate

            def overdue(self, _: float, size_bytes: int, waited_ms: float) -> None:
                world.overdue.append(size_bytes)
                bps = size_bytes * 8e3 / waited_ms
                world.estimate = replace(world.estimate, uplink_bps=bps)

        class Client:
            link = Link()

            @property
            def stream(self) -> object | None:
                return world.stream

            def request(self, message: pb.Probe, timeout_s: float) -> Answer:
                return world.asked(len(message.padding), timeout_s)

            def reset(self) -> None:
                world.resets += 1
                world.stream = None

        return Client()

    @property
    def planner(self) -> Any:
        world = self

        class Planner:
            @property
            def cloud_away(self) -> bool:
                return world.cloud_away

            def wants_probe(self, _: float) -> bool:
                return world.wanted

            def probed(self, _: float) -> None:
                world.cloud_away = False

            def lost(self) -> None:
                world.losses += 1
                world.cloud_away = True

        return Planner()

    def asked(self, size: int, timeout_s: float) -> Answer:
        self.sent.append((self.now_s, size))
        took_s = size * 8 / self.bps
        if not self.answers or took_s > timeout_s:
            self.now_s += timeout_s
            raise CloudUnavailableError("no answer")
        self.now_s += took_s
        if self.stream is None:
            self.stream = object()
        return Answer(pb.Result(), 20.0, Passage(10.0, 10.0))

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.sent]


class ByHand(Prober):
    """Its thread does nothing: the test does."""

    def __init__(self, world: World) -> None:
        super().__init__(world.client, world.planner, world.clock)
        self.world = world

    def _work(self) -> None:
        pass

    def go(self, seconds: float, *, frames: bool = True) -> list[tuple[float, int]]:
        """Let time pass, with frames all along or not; returns what was sent, and when."""
        before = len(self.world.sent)
        until_s = self.world.now_s + seconds
        for _ in range(10_000):
            if frames:
                self.frame()
                self.rest()
            wait_s, act = self.due(self.world.now_s)
            if act is None:
                self.world.now_s = until_s
                return self.world.sent[before:]
            if wait_s > 0:
                # As the thread does: what is known may change, so it looks again.
                self.world.now_s = min(self.world.now_s + min(wait_s, 0.1), until_s)
            if self.world.now_s >= until_s:
                return self.world.sent[before:]
            if wait_s == 0:
                self.act(act)
        pytest.fail("it never rests")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def prober(world: World) -> ByHand:
    return ByHand(world)


def calibrated(prober: ByHand) -> ByHand:
    prober.frame()
    prober.calibrate()
    prober.world.sent.clear()
    return prober


def test_without_frames_nothing_is_sent(prober: ByHand, world: World) -> None:
    assert prober.due(world.now_s) == (math.inf, None)
    calibrated(prober)
    world.estimate = replace(FRESH, age_s=100.0, unsettled=True)
    world.now_s += ACTIVE_S + 1
    assert prober.go(100.0, frames=False) == []
    world.cloud_away = True
    assert prober.go(100.0, frames=False) == []


def test_a_new_stream_is_calibrated_once(prober: ByHand, world: World) -> None:
    prober.frame()
    wait_s, act = prober.due(world.now_s)
    assert wait_s == 0
    assert act is not None
    act()
    assert world.sizes == [0] * PINGS + list(CALIBRATION_BYTES)
    prober.calibrate()
    assert len(world.sizes) == PINGS + 2, "a stream that is known is left alone"
    wait_s, _ = prober.due(world.now_s)
    assert wait_s > 0
    world.stream = object()
    assert prober.due(world.now_s)[0] == 0
    prober.calibrate()
    assert world.sizes[PINGS + 2 :] == [0] * PINGS + list(CALIBRATION_BYTES)


def test_two_who_ask_for_it_at_once_calibrate_once(prober: ByHand, world: World) -> None:
    started = threading.Barrier(2)

    def ask() -> None:
        started.wait(60)
        prober.calibrate()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(world.sizes) == PINGS + len(CALIBRATION_BYTES)


def test_while_frames_measure_the_link_only_the_floor_is_pinged(prober: ByHand) -> None:
    sent = calibrated(prober).go(21.0)
    assert {size for _, size in sent} == {0}
    assert len(sent) == 4


def test_a_bandwidth_that_is_stale_is_probed(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.estimate = replace(FRESH, age_s=0.4)
    world.now_s += 2.0
    prober.frame()
    prober.rest()
    wait_s, _ = prober.due(world.now_s)
    assert wait_s == pytest.approx(0.1)
    world.estimate = replace(FRESH, age_s=5.0)
    wait_s, act = prober.due(world.now_s)
    assert wait_s == 0
    assert act is not None
    act()
    assert world.sizes[0] > 0


def test_the_first_frame_after_a_pause_has_the_link_for_itself(
    prober: ByHand, world: World
) -> None:
    calibrated(prober)
    world.now_s += ACTIVE_S + 10
    world.estimate = replace(FRESH, age_s=13.0)
    assert {size for _, size in prober.go(0.4)} <= {0}
    assert any(size for _, size in prober.go(0.3)), "no frame has measured it since"


@pytest.mark.parametrize(
    "estimate", [replace(FRESH, age_s=10.0), replace(FRESH, unsettled=True), FRESH]
)
def test_a_frame_that_is_served_has_the_edge_for_itself(
    prober: ByHand, world: World, estimate: Estimate
) -> None:
    calibrated(prober)
    world.estimate = estimate
    world.now_s += PING_S
    prober.frame()
    assert prober.go(0.5, frames=False) == []
    prober.rest()
    assert prober.go(0.1, frames=False) != []


def test_what_waits_for_a_frame_is_sent_as_soon_as_it_is_answered(world: World) -> None:
    sent = threading.Event()

    class Watched(Prober):
        def act(self, what: Callable[[], None]) -> None:
            super().act(what)
            sent.set()

    prober = Watched(world.client, world.planner, world.clock)
    prober.calibrate()
    world.now_s += 1.0
    world.estimate = replace(FRESH, unsettled=True)
    prober.frame()
    assert not sent.wait(0.1)
    prober.rest()
    assert sent.wait(5.0)
    prober.close()


def test_a_frame_that_takes_long_does_not_keep_the_edge_from_looking(
    prober: ByHand, world: World
) -> None:
    calibrated(prober)
    world.estimate = replace(FRESH, age_s=10.0)
    prober.frame()
    assert [size for _, size in prober.go(2.0, frames=False) if size]


def test_a_surprise_is_settled_soon(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.estimate = replace(FRESH, age_s=0.05, unsettled=True)
    (sent, *_) = prober.go(0.5)
    assert sent[1] > 0
    world.sent.clear()
    world.estimate = FRESH
    assert prober.go(2.0) == []


def test_a_link_that_never_settles_is_not_filled_with_probes(prober: ByHand, world: World) -> None:
    """A jittery link surprises every time."""
    calibrated(prober)
    bps = 2e5
    world.bps = bps
    world.estimate = replace(FRESH, uplink_bps=bps, age_s=5.0, unsettled=True)
    sent = prober.go(120.0)
    busy_s = sum(size * 8 / bps for _, size in sent)
    assert busy_s < 0.1 * 120


def test_a_large_probe_of_a_fast_link_blinds_nobody_when_the_link_has_slowed(
    prober: ByHand, world: World
) -> None:
    calibrated(prober)
    world.estimate = replace(FRESH, uplink_bps=8e6, age_s=5.0, unsettled=True)
    [(_, spent)] = prober.go(0.5)[:1]
    assert spent > 20_000
    world.estimate = replace(FRESH, uplink_bps=0.6e6, age_s=5.0)
    world.sent.clear()
    prober.go(2.5)
    assert any(world.sizes), "within seconds, it looks again"


def test_no_bandwidth_is_measured_that_nobody_wants_to_know(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.wanted = False
    world.estimate = replace(FRESH, age_s=100.0, unsettled=True)
    assert {size for _, size in prober.go(21.0)} == {0}


@pytest.mark.parametrize("bps", [1e4, 1e5, 1e6, 1e7, 1e9, None])
def test_one_of_four_sizes_is_large_within_bounds(
    prober: ByHand, world: World, bps: float | None
) -> None:
    calibrated(prober)
    world.estimate = replace(FRESH, uplink_bps=bps, age_s=100.0)
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
def test_probes_take_a_small_share_of_a_link(prober: ByHand, world: World, bps: float) -> None:
    calibrated(prober)
    world.bps = bps
    world.estimate = replace(FRESH, uplink_bps=bps, age_s=100.0)
    seconds = 100.0
    sent = prober.go(seconds)
    assert sum(size * 8 / bps for _, size in sent) < 0.06 * seconds


@pytest.mark.parametrize("bps", [12e3, 20e3, 30e3])
def test_a_slow_cloud_is_not_taken_for_away(prober: ByHand, world: World, bps: float) -> None:
    """A probe that is still on its way tells of the link, not of the cloud."""
    world.bps = bps
    world.estimate = replace(FRESH, uplink_bps=None)
    seconds = 300.0
    sent = prober.go(seconds)
    assert not world.cloud_away
    assert world.losses == 0
    assert world.overdue
    assert [size for _, size in sent[: PINGS + 2]] == [0] * PINGS + list(CALIBRATION_BYTES)
    assert sum(size * 8 / bps for _, size in sent) < 0.1 * seconds


def test_a_cloud_that_is_away_is_pinged_once_a_second(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.answers = False
    world.cloud_away = True
    world.now_s += 1.0
    sent = prober.go(30.0)
    assert {size for _, size in sent} == {0}
    starts = [at_s for at_s, _ in sent]
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(starts))
    assert len(sent) >= 8
    assert world.resets == len(sent), "each by a stream of its own"


def test_a_cloud_that_is_back_is_calibrated_anew(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.answers = False
    world.cloud_away = True
    world.now_s += 1.0
    prober.go(5.0)
    world.sent.clear()
    world.answers = True
    sent = prober.go(4.0)
    assert not world.cloud_away
    assert [size for _, size in sent] == [0] + [0] * PINGS + list(CALIBRATION_BYTES)


def test_a_probe_that_fails_says_that_the_cloud_is_away(prober: ByHand, world: World) -> None:
    calibrated(prober)
    world.answers = False
    prober.go(8.0)
    assert world.losses
    assert world.cloud_away


class TestItsThread:
    """The real one, over a client that tells when it was asked."""

    @staticmethod
    def of(world: World, answer: Callable[[], None]) -> tuple[Prober, threading.Event]:
        asked = threading.Event()

        def ask(size: int, timeout_s: float) -> Answer:
            world.sent.append((0.0, size))
            if len(world.sent) >= PINGS + 2:
                asked.set()
            answer()
            return Answer(pb.Result(), 20.0, Passage(10.0, 10.0))

        world.asked = ask  # type: ignore[method-assign]
        return Prober(world.client, world.planner), asked

    def test_the_first_frame_wakes_it(self, world: World) -> None:
        prober, asked = self.of(world, lambda: None)
        prober.frame()
        assert asked.wait(60)
        prober.close()

    def test_after_a_pause_it_sleeps_until_the_frame_is_answered(self, world: World) -> None:
        looked = threading.Event()

        class Watched(Prober):
            def due(self, now_s: float) -> tuple[float, Callable[[], None] | None]:
                looked.set()
                return super().due(now_s)

        prober = Watched(world.client, world.planner, world.clock)
        prober._stream, prober._pinged_s = world.stream, world.now_s
        prober.frame()
        assert looked.wait(60)
        with prober._wake:  # it has looked, and waits
            looked.clear()
            world.now_s += ACTIVE_S + 1
        prober.rest()
        assert looked.wait(60)
        with prober._wake:  # until there are frames again
            looked.clear()
        prober.frame()
        assert not looked.wait(0.2), "the frame has the edge for itself"
        prober.rest()
        assert looked.wait(60)
        prober.close()

    def test_what_settles_follows_the_frame_at_once(self, world: World) -> None:
        prober = Prober(world.client, world.planner, world.clock)
        prober._stream, prober._pinged_s = world.stream, world.now_s
        prober._probed_s = world.now_s - 0.05
        world.estimate = replace(FRESH, unsettled=True)
        prober._active_s = prober._serving_s = world.now_s
        wait_s, _ = prober.due(world.now_s)
        assert wait_s > 0.5, "as long as a frame may take"
        assert prober._held, "unless it is answered before"
        prober.rest()
        wait_s, _ = prober.due(world.now_s)
        assert wait_s == pytest.approx(0.05)

    def test_an_error_does_not_end_it(self, world: World) -> None:
        failures = iter([SplitpointError("no"), CloudUnavailableError("no")])

        def answer() -> None:
            for error in failures:
                raise error

        prober, asked = self.of(world, answer)
        for _ in range(1000):
            prober.frame()
            if asked.wait(0.05):
                break
        assert asked.is_set()
        assert world.losses
        prober.close()

    def test_it_ends_when_it_is_closed(self, world: World) -> None:
        prober, asked = self.of(world, lambda: None)
        prober.frame()
        assert asked.wait(60)
        thread = prober._thread
        assert thread is not None
        prober.close()
        thread.join(60)
        assert not thread.is_alive()
        prober.frame()
        assert prober._thread is thread, "it does not begin again"
