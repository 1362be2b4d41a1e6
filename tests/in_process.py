"""A detector that adapts, with its cloud in the same process."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.reference_frames import ReferenceFrames
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.errors import CloudUnavailableError
from common.latency import PlanCost, costs
from common.link.link import Link
from common.rpc import splitpoint_pb2 as pb
from edge.detector import Detector, find_plan
from edge.planning.controller import PlanController
from edge.planning.planner import Planner, PlannerSettings
from edge.planning.prober import Prober
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport
from tests import tiny
from tests.planes import answer_to

LINK = Link(16e6, 16e6, 1.0)
COSTS = {
    tiny.SPLIT: (5.0, 5.0, 1000.0, 20.0),
    tiny.CLOUD_ONLY: (1.0, 20.0, 3000.0, 30.0),
    tiny.EDGE_ONLY: (500.0, 0.0, 0.0, 25.0),
}
"""Edge ms, cloud ms, bytes, accuracy."""
OBEDIENT = PlannerSettings(switch_cost=math.inf, trial_share=0.0)
"""Switches only where a test makes it, or where the cloud is away."""


class Cloud:
    """A cloud in this process that may turn deaf or unreachable."""

    def __init__(self, bundle: Bundle) -> None:
        admission = Admission(ThreadPoolExecutor(1), 1)
        self.plane = DataPlane(Tails(bundle), admission)
        self.held: Sequence[bytes] = self.plane.tails.digests
        self.learned: list[pb.Learned] = []
        self.messages: list[pb.EdgeMessage] = []
        self.streams: list[InProcessTransport] = []
        self.deaf = self.unreachable = False
        self.deafened: Callable[[], None] = lambda: None
        self.spoil: Callable[[pb.CloudMessage], pb.CloudMessage] = lambda answer: answer

    def connect(self) -> InProcessTransport:
        if self.unreachable:
            raise CloudUnavailableError("not reachable")
        references = ReferenceFrames()

        def handle(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
            kind = message.WhichOneof("kind")
            kept = pb.EdgeMessage()
            kept.CopyFrom(message)
            self.messages.append(kept)
            if kind == "hello":
                welcome = pb.Welcome(plan_digests=self.held, learned=self.learned)
                return [pb.CloudMessage(welcome=welcome)]
            if kind in {"switch", "profile"}:
                return []
            if self.deaf:
                if kind != "report":  # these come whenever they like
                    self.deafened()
                return []
            made = answer_to(self.plane, message, time.perf_counter(), references)
            return [self.spoil(made) if kind == "frame" else made]

        self.streams.append(InProcessTransport(handle))
        return self.streams[-1]

    @property
    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("kind") for message in self.messages]

    @property
    def switches(self) -> list[pb.Switch]:
        return [message.switch for message in self.messages if message.HasField("switch")]

    @property
    def frames(self) -> list[pb.Frame]:
        return [message.frame for message in self.messages if message.HasField("frame")]


class ByHand(Prober):
    """Its thread does nothing: the test does."""

    def _work(self) -> None:
        pass

    def look(self) -> None:
        """Do what is due in a second."""
        self.frame()
        _, what = self.due(time.perf_counter() + 1.0)
        assert what is not None
        self.act(what)


def known(bundle: Bundle, names: Iterable[str] = tuple(COSTS)) -> list[PlanCost]:
    """Plans at costs that leave no doubt which is best."""
    found = []
    for cost in costs(bundle.plans):
        name = cost.plan.name
        if name in names:
            edge_ms, cloud_ms, size, accuracy = COSTS[name]
            predicted = cost.plan.predicted.model_copy(update={"accuracy": accuracy})
            plan = cost.plan.model_copy(update={"predicted": predicted})
            found.append(PlanCost(cost.digest, plan, edge_ms, cloud_ms, size))
    return found


def adaptive(
    bundle: Bundle,
    cloud: Cloud,
    names: Iterable[str] = tuple(COSTS),
    settings: PlannerSettings = OBEDIENT,
) -> Detector:
    """A detector whose probes are in the test's hands."""
    wanted = tuple(names)
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(cloud.connect, hello, answer_timeout_s=60)
    plans = [find_plan(bundle, name) for name in wanted]
    detector = Detector(bundle, client, plans=plans, adaptive=True)
    detector.controller = PlanController(client, known(bundle, wanted), LINK, settings)
    detector.controller._prober = ByHand(client, detector.controller._planner)
    return detector


def controller_of(detector: Detector) -> PlanController:
    assert detector.controller is not None
    return detector.controller


def planner_of(detector: Detector) -> Planner:
    return controller_of(detector)._planner


def prober_of(detector: Detector) -> ByHand:
    prober = controller_of(detector)._prober
    assert isinstance(prober, ByHand)
    return prober


def use(detector: Detector, name: str) -> bytes:
    """Have the planner switch."""
    planner, digest = planner_of(detector), find_plan(detector.bundle, name)
    with planner._lock:
        now_s = time.perf_counter()
        planner._switch(planner._expectations.now(now_s)[digest], now_s, f"for {name}")
    return digest


@contextmanager
def impatient(detector: Detector) -> Iterator[None]:
    """Wait for no answer inside the block: none comes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(detector._client, "_answer_timeout_s", 0.05)
        yield


def in_threads(work: Iterable[Callable[[], object]]) -> None:
    """Do all of it at once; raises what the first raised."""
    work = list(work)
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result(60)


def unlearning(detector: Detector) -> None:
    """Leave expectations as they are: how fast this machine is shall not matter."""
    controller_of(detector).served = lambda *_: None  # type: ignore[method-assign]
