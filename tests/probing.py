"""A prober over a client, a planner and a clock that a test drives."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from common.rpc import splitpoint_pb2 as pb
from edge.link.estimate import Estimate, Passage
from edge.planning.prober import Prober
from edge.stream.client import NoAnswerError
from edge.stream.connection import Answer

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
class SimulatedCloud:
    """A client, its planner and a clock, all in the hands of the test."""

    now_s: float = 100.0
    stream: object | None = field(default_factory=object)
    estimate: Estimate = FRESH
    cloud_away: bool = False
    wanted: bool = True
    answers: bool = True
    bps: float = math.inf
    sent: list[tuple[float, int]] = field(default_factory=list)
    quiet_until_s: float = -math.inf
    resets: int = 0
    losses: int = 0
    overdue: list[int] = field(default_factory=list)

    def clock(self) -> float:
        return self.now_s

    @property
    def client(self) -> Any:
        simulated = self

        class Link:
            def estimate(self, _: float) -> Estimate:
                return simulated.estimate

            def overdue(self, _: float, size_bytes: int, waited_ms: float) -> None:
                simulated.overdue.append(size_bytes)
                bps = size_bytes * 8e3 / waited_ms
                simulated.estimate = replace(simulated.estimate, uplink_bps=bps)

        class Client:
            link = Link()

            @property
            def quiet_until_s(self) -> float:
                return simulated.quiet_until_s

            def connect(self) -> None:
                if simulated.stream is None and simulated.answers:
                    simulated.stream = object()

            @property
            def stream(self) -> object | None:
                return simulated.stream

            def request(self, message: pb.Probe, timeout_s: float) -> Answer:
                return simulated.asked(len(message.padding), timeout_s)

            def reset(self) -> None:
                simulated.resets += 1
                simulated.stream = None

        return Client()

    @property
    def planner(self) -> Any:
        simulated = self

        class Planner:
            @property
            def cloud_away(self) -> bool:
                return simulated.cloud_away

            def wants_probe(self, _: float) -> bool:
                return simulated.wanted

            def probed(self, _: float) -> None:
                simulated.cloud_away = False

            def lost(self) -> None:
                simulated.losses += 1
                simulated.cloud_away = True

        return Planner()

    def asked(self, size: int, timeout_s: float) -> Answer:
        self.sent.append((self.now_s, size))
        took_s = size * 8 / self.bps
        if not self.answers or took_s > timeout_s:
            self.now_s += timeout_s
            raise NoAnswerError("no answer")
        self.now_s += took_s
        if self.stream is None:
            self.stream = object()
        return Answer(pb.Result(), 20.0, Passage(10.0, 10.0))

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.sent]


class ByHand(Prober):
    """Its thread does nothing: the test does."""

    def __init__(self, simulated: SimulatedCloud) -> None:
        super().__init__(simulated.client, simulated.planner, simulated.clock)
        self.simulated = simulated

    def _work(self) -> None:
        pass

    def go(self, seconds: float, *, frames: bool = True) -> list[tuple[float, int]]:
        """Let time pass, with frames all along or not; returns what was sent, and when."""
        before = len(self.simulated.sent)
        until_s = self.simulated.now_s + seconds
        for _ in range(10_000):
            if frames:
                self.frame()
                self.rest()
            wait_s, act = self.due(self.simulated.now_s)
            if act is None:
                self.simulated.now_s = until_s
                return self.simulated.sent[before:]
            if wait_s > 0:
                # As the thread does: what is known may change, so it looks again.
                self.simulated.now_s = min(self.simulated.now_s + min(wait_s, 0.1), until_s)
            if self.simulated.now_s >= until_s:
                return self.simulated.sent[before:]
            if wait_s == 0:
                self.act(act)
        pytest.fail("it never rests")


def calibrated(prober: ByHand) -> ByHand:
    prober.frame()
    prober.calibrate()
    prober.simulated.sent.clear()
    return prober
