"""The pilot at work: frames through a detector that adapts, with a cloud in this process."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloud.edges import check_switch
from cloud.history import History
from cloud.service import SplitService
from cloud.tails import Tails
from common.bundle import Bundle
from common.costs import PlanCost, costs
from common.errors import CloudUnavailableError, SettingsError, UnknownPlanError
from common.link import Link
from common.rpc import splitpoint_pb2 as pb
from edge import pilot as pilot_module
from edge.client import CloudClient
from edge.detector import Detector, find_plan
from edge.head import fitting_together
from edge.pilot import Pilot
from edge.planner import Planner, PlannerSettings
from edge.prober import Prober
from edge.transport import InProcessTransport
from tests import tiny

LINK = Link(16e6, 16e6, 1.0)
COSTS = {
    tiny.SPLIT: (5.0, 5.0, 1000.0, 20.0),
    tiny.CLOUD_ONLY: (1.0, 20.0, 3000.0, 30.0),
    tiny.EDGE_ONLY: (500.0, 0.0, 0.0, 25.0),
}
"""Edge ms, cloud ms, bytes, accuracy."""
OBEDIENT = PlannerSettings(switch_cost=math.inf, trial_share=0.0)
"""Switches only where a test makes it, or where the cloud is away."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


class Cloud:
    """A cloud in this process that may turn deaf or unreachable."""

    def __init__(self, bundle: Bundle) -> None:
        self.service = SplitService(Tails(bundle), ThreadPoolExecutor(1), version="test")
        self.held: Sequence[bytes] = self.service._tails.digests
        self.learned: list[pb.Learned] = []
        self.messages: list[pb.EdgeMessage] = []
        self.streams: list[InProcessTransport] = []
        self.deaf = self.unreachable = False
        self.deafened: Callable[[], None] = lambda: None

    def connect(self) -> InProcessTransport:
        if self.unreachable:
            raise CloudUnavailableError("not reachable")
        history = History()

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
            return [self.service.serve(message, time.perf_counter(), history)]

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


@pytest.fixture
def cloud(bundle: Bundle) -> Cloud:
    return Cloud(bundle)


@pytest.fixture(autouse=True)
def _short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pilot_module, "_LEAST_PATIENCE_S", 0.2)


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
    client = CloudClient(cloud.connect, hello, answer_timeout_s=0.5)
    plans = [find_plan(bundle, name) for name in wanted]
    detector = Detector(bundle, client, plans=plans, adaptive=True)
    detector.pilot = Pilot(client, known(bundle, wanted), LINK, settings)
    detector.pilot._prober = ByHand(client, detector.pilot._planner)
    return detector


def pilot_of(detector: Detector) -> Pilot:
    assert detector.pilot is not None
    return detector.pilot


def planner_of(detector: Detector) -> Planner:
    return pilot_of(detector)._planner


def prober_of(detector: Detector) -> ByHand:
    prober = pilot_of(detector)._prober
    assert isinstance(prober, ByHand)
    return prober


def use(detector: Detector, name: str) -> bytes:
    """Have the planner switch."""
    planner, digest = planner_of(detector), find_plan(detector.bundle, name)
    with planner._lock:
        now_s = time.perf_counter()
        planner._switch(planner._expectations.now(now_s)[digest], now_s, f"for {name}")
    return digest


def in_threads(work: Iterable[Callable[[], object]]) -> None:
    """Do all of it at once; raises what the first raised."""
    work = list(work)
    with ThreadPoolExecutor(len(work)) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result(60)


def unlearning(detector: Detector) -> None:
    """Leave expectations as they are: how fast this machine is shall not matter."""
    pilot_of(detector).served = lambda *_: None  # type: ignore[method-assign]


class TestAnnouncements:
    def test_a_plan_is_announced_once_for_a_stream(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        for _ in range(3):
            detector.detect(tiny.image())
        (switch,) = cloud.switches
        assert switch.plan_digest == find_plan(bundle, tiny.SPLIT)
        assert cloud.kinds.index("switch") < cloud.kinds.index("frame")
        assert {each.plan_digest for each in switch.expected} == set(bundle.plans)
        check_switch(switch)
        detector.close()

    def test_each_change_is_announced_before_its_first_frame(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        detector.detect(tiny.image())
        wanted = [use(detector, name) for name in (tiny.CLOUD_ONLY, tiny.SPLIT, tiny.CLOUD_ONLY)]
        cloud.messages.clear()
        for name in (tiny.CLOUD_ONLY, tiny.SPLIT, tiny.CLOUD_ONLY):
            use(detector, name)
            detector.detect(tiny.image())
            detector.detect(tiny.image())
        told = [m for m in cloud.messages if m.WhichOneof("kind") in {"switch", "frame"}]
        assert [m.WhichOneof("kind") for m in told] == ["switch", "frame", "frame"] * 3
        assert [m.switch.plan_digest for m in told if m.HasField("switch")] == wanted
        announced = b""
        for message in told:
            announced = message.switch.plan_digest or announced
            if message.HasField("frame"):
                assert message.frame.plan_digest == announced
        assert cloud.switches[-1].reason == f"for {tiny.CLOUD_ONLY}"
        detector.close()

    def test_a_new_stream_is_told_again(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        detector.detect(tiny.image())
        cloud.streams[0].close()
        for _ in range(3):
            detector.detect(tiny.image())
        assert len(cloud.streams) == 2
        assert len(cloud.switches) == 2
        detector.close()

    def test_a_plan_that_is_asked_for_is_no_switch(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        detector.detect(tiny.image())
        detector.detect(tiny.image(), find_plan(bundle, tiny.CLOUD_ONLY))
        detector.detect(tiny.image())
        assert len(cloud.switches) == 1
        detector.close()

    def test_of_frames_that_come_at_once_one_announces(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        pilot = pilot_of(detector)
        pilot.ready()
        together = threading.Barrier(4)

        def choose() -> None:
            together.wait(60)
            pilot.choose()

        in_threads([choose] * 4)
        assert len(cloud.switches) == 1
        detector.close()

    def test_the_last_one_told_is_the_last_one_chosen(self, bundle: Bundle, cloud: Cloud) -> None:
        """A thread that is held up while it announces may be overtaken by the next change."""
        detector = adaptive(bundle, cloud)
        pilot = pilot_of(detector)
        pilot.ready()
        client, telling, overtaken = pilot._client, threading.Event(), threading.Event()
        tell = client.tell

        def held_up(message: pb.Switch | pb.ProfileReport) -> None:
            if not telling.is_set():
                telling.set()
                overtaken.wait(0.3)  # where nobody may overtake, it goes on by itself
            tell(message)

        client.tell = held_up  # type: ignore[method-assign]

        def then_another() -> None:
            assert telling.wait(60)
            use(detector, tiny.CLOUD_ONLY)
            pilot.choose()
            overtaken.set()

        in_threads([pilot.choose, then_another])
        assert cloud.switches[-1].plan_digest == find_plan(bundle, tiny.CLOUD_ONLY)
        detector.close()


class TestWithoutTheCloud:
    def test_a_frame_that_is_not_answered_is_served_here(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        here = detector.detect(tiny.image(), find_plan(bundle, tiny.EDGE_ONLY))
        assert detector.detect(tiny.image()).plan.name == tiny.SPLIT
        cloud.deaf = True
        saved = detector.detect(tiny.image())
        assert saved.plan.name == tiny.EDGE_ONLY
        np.testing.assert_array_equal(saved.detections.boxes, here.detections.boxes)
        assert "did not answer" in saved.reason
        assert saved.expected is None
        assert saved.uplink_bytes == 0
        assert sum(saved.times_ms.values()) == pytest.approx(saved.latency_ms)
        assert saved.latency_ms >= 200.0, "the time it waited is told"
        sent = len(cloud.frames)
        for _ in range(3):
            assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        assert len(cloud.frames) == sent, "nobody is waited for any more"
        detector.close()

    def test_a_probe_brings_it_back(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud, settings=PlannerSettings(dwell_s=0.0))
        unlearning(detector)
        detector.detect(tiny.image())
        cloud.deaf = True
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        assert pilot_of(detector).state().cloud_away
        cloud.deaf = False
        prober_of(detector).look()
        assert not pilot_of(detector).state().cloud_away
        assert detector.detect(tiny.image()).plan.name != tiny.EDGE_ONLY
        detector.close()

    def test_a_stream_that_went_silent_is_given_up(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        detector.detect(tiny.image())
        cloud.deaf = True
        detector.detect(tiny.image())
        prober = prober_of(detector)
        cloud.deafened = cloud.streams[-1].close
        prober.look()
        assert pilot_of(detector).state().cloud_away
        cloud.deaf = False
        prober.look()
        assert len(cloud.streams) >= 2
        assert not pilot_of(detector).state().cloud_away
        detector.close()

    def test_unreachable_from_the_start(self, bundle: Bundle, cloud: Cloud) -> None:
        cloud.unreachable = True
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        assert "away" in detector.detect(tiny.image()).reason
        detector.close()

    def test_a_stream_that_is_lost_under_a_frame(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        pilot_of(detector).ready()
        cloud.deaf = True
        cloud.deafened = cloud.streams[0].close
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        detector.close()

    def test_without_a_plan_for_the_edge_alone_it_is_an_error(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud, [tiny.SPLIT, tiny.CLOUD_ONLY])
        detector.detect(tiny.image())
        cloud.deaf = True
        with pytest.raises(CloudUnavailableError, match="did not answer"):
            detector.detect(tiny.image())
        cloud.deaf = False
        assert detector.detect(tiny.image()).plan.tail is not None
        cloud.unreachable = True
        cloud.streams[-1].close()
        with pytest.raises(CloudUnavailableError, match="not reachable"):
            pilot_of(detector).ready()
        detector.close()

    def test_a_plan_that_is_asked_for_is_not_replaced(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        cloud.unreachable = True
        with pytest.raises(CloudUnavailableError):
            detector.detect(tiny.image(), find_plan(bundle, tiny.SPLIT))
        detector.close()

    def test_another_thread_s_answer_does_not_send_a_saved_frame_back(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        """While this frame gives the cloud up, a late ping is answered."""
        detector = adaptive(bundle, cloud, settings=PlannerSettings(dwell_s=0.0))
        unlearning(detector)
        detector.detect(tiny.image())
        cloud.deaf = True
        planner = planner_of(detector)
        lost = planner.lost

        def lost_and_found() -> None:
            lost()
            planner.probed(0.0)

        planner.lost = lost_and_found  # type: ignore[method-assign]
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        detector.close()


class TestChoosing:
    def test_what_the_cloud_has_learnt_counts_from_the_first_frame(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        digest = find_plan(bundle, tiny.SPLIT)
        cloud.learned = [
            pb.Learned(plan_digest=digest, n=100, edge_us=20_000, cloud_us=5000, uplink_bytes=1000)
        ]
        detector = adaptive(bundle, cloud)
        before = planner_of(detector).expected(digest, 0.0).latency_ms
        pilot_of(detector).ready()
        after = planner_of(detector).expected(digest, 0.0).latency_ms
        assert before < 12
        assert after == pytest.approx(25, rel=0.1)
        detector.close()

    @pytest.mark.parametrize(
        "learned",
        [
            pb.Learned(),  # nothing at all
            pb.Learned(plan_digest=bytes(32), n=9, edge_us=1, cloud_us=1, uplink_bytes=1),
            pb.Learned(plan_digest=b"?", n=2**32 - 1, edge_us=2**32 - 1),
        ],
    )
    def test_what_makes_no_sense_in_it_is_left_alone(
        self, bundle: Bundle, cloud: Cloud, learned: pb.Learned
    ) -> None:
        digest = find_plan(bundle, tiny.SPLIT)
        empty = pb.Learned(plan_digest=digest, n=5)
        cloud.learned = [learned, empty]
        detector = adaptive(bundle, cloud)
        before = planner_of(detector).expected(digest, 0.0).fixed_ms
        detector.pilot, pilot = None, pilot_of(detector)
        pilot.welcomed(pb.Welcome(learned=cloud.learned))
        assert pilot._planner.expected(digest, 0.0).fixed_ms == before
        detector.close()

    def test_a_deadline_takes_the_most_accurate_plan_that_keeps_it(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        pilot_of(detector).ready()
        by = {
            deadline: detector.detect(tiny.image(), deadline_ms=deadline)
            for deadline in (2000.0, 1e-3)
        }
        assert by[2000.0].plan.name == tiny.CLOUD_ONLY
        assert "most accurate" in by[2000.0].reason
        assert by[1e-3].plan.name == tiny.SPLIT
        assert "none keeps" in by[1e-3].reason
        assert len(cloud.switches) == 1, "a deadline is of one frame"
        assert detector.detect(tiny.image()).plan.name == tiny.SPLIT
        detector.close()

    @pytest.mark.parametrize("deadline_ms", [0.0, -1.0, math.nan, math.inf])
    def test_a_deadline_that_is_none(
        self, bundle: Bundle, cloud: Cloud, deadline_ms: float
    ) -> None:
        detector = adaptive(bundle, cloud)
        with pytest.raises(SettingsError, match="deadline"):
            detector.detect(tiny.image(), deadline_ms=deadline_ms)
        detector.close()

    def test_a_deadline_needs_someone_to_choose(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        with pytest.raises(SettingsError, match="name none"):
            detector.detect(tiny.image(), find_plan(bundle, tiny.SPLIT), deadline_ms=9.0)
        detector.close()
        fixed = Detector(bundle, None)
        with pytest.raises(SettingsError, match="let it adapt"):
            fixed.detect(tiny.image(), deadline_ms=9.0)
        fixed.close()

    def test_a_plan_that_is_asked_for_serves_and_teaches(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        digest = find_plan(bundle, tiny.EDGE_ONLY)
        before = planner_of(detector).expected(digest, 0.0).latency_ms
        detector.detect(tiny.image(), digest)
        assert planner_of(detector).expected(digest, 0.0).latency_ms == before  # it was cold
        outcome = detector.detect(tiny.image(), digest)
        assert outcome.digest == digest
        assert outcome.reason == "asked for"
        assert outcome.expected is not None
        assert outcome.expected.latency_ms == before
        # 500 ms were expected, and no machine takes that long.
        assert planner_of(detector).expected(digest, 0.0).latency_ms < before
        assert detector.default == find_plan(bundle, tiny.SPLIT)
        detector.close()

    @pytest.mark.parametrize("name", [*COSTS, None])
    def test_stages_come_to_the_whole(self, bundle: Bundle, cloud: Cloud, name: str | None) -> None:
        detector = adaptive(bundle, cloud)
        pilot_of(detector).ready()
        outcome = detector.detect(tiny.image(), None if name is None else find_plan(bundle, name))
        assert sum(outcome.times_ms.values()) == pytest.approx(outcome.latency_ms)
        through = {"uplink", "queue", "decode", "tail", "downlink"}
        assert through & set(outcome.times_ms) == (set() if name == tiny.EDGE_ONLY else through)
        assert all(ms >= 0 for stage, ms in outcome.times_ms.items() if stage != "other")
        assert outcome.expected is not None
        assert outcome.expected.low_ms <= outcome.expected.latency_ms <= outcome.expected.high_ms
        assert outcome.expected.digest == outcome.digest
        detector.close()

    def test_plans_that_were_not_opened_are_not_chosen(
        self, bundle: Bundle, cloud: Cloud, tmp_path: Path
    ) -> None:
        other = tiny.build(tmp_path / "other", seed=1)
        free = [
            replace(cost, edge_ms=1e-3, cloud_ms=1e-3, uplink_bytes=0.0)
            for cost in (*known(other), *known(bundle, [tiny.EDGE_ONLY]))
        ]
        hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
        detector = Detector(
            bundle,
            CloudClient(cloud.connect, hello),
            plans=[find_plan(bundle, name) for name in (tiny.SPLIT, tiny.CLOUD_ONLY)],
            costs=[*free, *known(bundle, [tiny.SPLIT, tiny.CLOUD_ONLY])],
            adaptive=True,
        )
        opened = {find_plan(bundle, tiny.SPLIT), find_plan(bundle, tiny.CLOUD_ONLY)}
        assert {each.digest for each in pilot_of(detector).state().expected} == opened
        assert {detector.detect(tiny.image()).digest for _ in range(5)} <= opened
        with pytest.raises(UnknownPlanError, match="not opened"):
            detector.detect(tiny.image(), find_plan(bundle, tiny.EDGE_ONLY))
        detector.close()

    @pytest.mark.parametrize("ready_first", [True, False])
    def test_plans_that_the_cloud_does_not_hold_are_not_chosen(
        self, bundle: Bundle, cloud: Cloud, ready_first: bool
    ) -> None:
        """Two bundles that share some plans: the edge has one, the cloud the other."""
        cloud.held = [find_plan(bundle, tiny.CLOUD_ONLY)]
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        if ready_first:
            pilot_of(detector).ready()
        else:
            with pytest.raises(UnknownPlanError):
                detector.detect(tiny.image())
        assert {detector.detect(tiny.image()).plan.name for _ in range(5)} == {tiny.CLOUD_ONLY}
        generous = detector.detect(tiny.image(), deadline_ms=1e-3)
        assert generous.plan.name == tiny.CLOUD_ONLY
        detector.close()


class TestMemory:
    """What fits an edge together, in a bundle of two heads: 2048 bytes of weights each."""

    @pytest.fixture
    def wide(self, tmp_path: Path) -> Bundle:
        return tiny.build(tmp_path / "w", [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY])

    @staticmethod
    def limited(bundle: Bundle, limit: int | None) -> list[str]:
        search = bundle.manifest.search.model_copy(update={"edge_memory_bytes": limit})
        bundle.manifest = bundle.manifest.model_copy(update={"search": search})
        return [bundle.plans[digest].name for digest in fitting_together(bundle)]

    @pytest.mark.parametrize(
        ("limit", "names"),
        [
            (None, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            (10**9, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            # Two heads of 2048, and 2048 of activations or 4096 of an upload at a time.
            (2 * 2048 + 4096, [tiny.SPLIT, tiny.EDGE_ONLY, tiny.CLOUD_ONLY]),
            (2 * 2048 + 4095, [tiny.SPLIT, tiny.EDGE_ONLY]),
            (2 * 2048 + 2048, [tiny.SPLIT, tiny.EDGE_ONLY]),
            (2 * 2048 + 2047, [tiny.SPLIT]),
            (1, [tiny.SPLIT]),  # the best is always kept
        ],
    )
    def test_the_limit_is_of_all_heads_together(
        self, wide: Bundle, limit: int | None, names: list[str]
    ) -> None:
        assert self.limited(wide, limit) == names

    def test_plans_with_one_head_share_it(self, tmp_path: Path) -> None:
        names = [tiny.SPLIT, tiny.SPLIT_8, tiny.EDGE_ONLY]
        bundle = tiny.build(tmp_path / "s", names)
        assert self.limited(bundle, 2048 + 2048) == [tiny.SPLIT, tiny.SPLIT_8]
