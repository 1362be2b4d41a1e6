"""The thread of the prober: what wakes it, and what ends it."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from common.errors import CloudUnavailableError, SplitpointError
from common.rpc import splitpoint_pb2 as pb
from edge.link.estimate import Passage
from edge.planning.prober import PINGS, Prober
from edge.stream.connection import Answer
from tests.probing import ACTIVE_S, FRESH, SimulatedCloud


@pytest.fixture
def simulated() -> SimulatedCloud:
    return SimulatedCloud()


class TestItsThread:
    """The real one, over a client that tells when it was asked."""

    @staticmethod
    def of(simulated: SimulatedCloud, answer: Callable[[], None]) -> tuple[Prober, threading.Event]:
        asked = threading.Event()

        def ask(size: int, timeout_s: float) -> Answer:
            simulated.sent.append((0.0, size))
            if len(simulated.sent) >= PINGS + 2:
                asked.set()
            answer()
            return Answer(pb.Result(), 20.0, Passage(10.0, 10.0))

        simulated.asked = ask  # type: ignore[method-assign]
        return Prober(simulated.client, simulated.planner), asked

    def test_the_first_frame_wakes_it(self, simulated: SimulatedCloud) -> None:
        prober, asked = self.of(simulated, lambda: None)
        prober.frame()
        assert asked.wait(60)
        prober.close()

    def test_after_a_pause_it_sleeps_until_the_frame_is_answered(
        self, simulated: SimulatedCloud
    ) -> None:
        looked = threading.Event()

        class Watched(Prober):
            def due(self, now_s: float) -> tuple[float, Callable[[], None] | None]:
                looked.set()
                return super().due(now_s)

        prober = Watched(simulated.client, simulated.planner, simulated.clock)
        prober._stream, prober._pinged_s = simulated.stream, simulated.now_s
        prober.frame()
        assert looked.wait(60)
        with prober._wake:  # it has looked, and waits
            looked.clear()
            simulated.now_s += ACTIVE_S + 1
        prober.rest()
        assert looked.wait(60)
        with prober._wake:  # until there are frames again
            looked.clear()
        prober.frame()
        assert not looked.wait(0.2), "the frame has the edge for itself"
        prober.rest()
        assert looked.wait(60)
        prober.close()

    def test_what_settles_follows_the_frame_at_once(self, simulated: SimulatedCloud) -> None:
        prober = Prober(simulated.client, simulated.planner, simulated.clock)
        prober._stream, prober._pinged_s = simulated.stream, simulated.now_s
        prober._probed_s = simulated.now_s - 0.05
        simulated.estimate = replace(FRESH, unsettled=True)
        prober._active_s = prober._serving_s = simulated.now_s
        wait_s, _ = prober.due(simulated.now_s)
        assert wait_s > 0.5, "as long as a frame may take"
        assert prober._held, "unless it is answered before"
        prober.rest()
        wait_s, _ = prober.due(simulated.now_s)
        assert wait_s == pytest.approx(0.05)

    def test_an_error_does_not_end_it(self, simulated: SimulatedCloud) -> None:
        failures = iter([SplitpointError("no"), CloudUnavailableError("no")])

        def answer() -> None:
            for error in failures:
                raise error

        prober, asked = self.of(simulated, answer)
        for _ in range(1000):
            prober.frame()
            if asked.wait(0.05):
                break
        assert asked.is_set()
        assert simulated.losses
        prober.close()

    def test_it_ends_when_it_is_closed(self, simulated: SimulatedCloud) -> None:
        prober, asked = self.of(simulated, lambda: None)
        prober.frame()
        assert asked.wait(60)
        thread = prober._thread
        assert thread is not None
        prober.close()
        thread.join(60)
        assert not thread.is_alive()
        prober.frame()
        assert prober._thread is thread, "it does not begin again"
