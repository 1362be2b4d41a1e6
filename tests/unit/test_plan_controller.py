"""The controller at work: frames through a detector that adapts, with a cloud in this process."""

import math
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.edges import check_switch
from common.bundle.bundle import Bundle
from common.errors import SettingsError, UnknownPlanError
from common.rpc import splitpoint_pb2 as pb
from edge.detector import Detector, find_plan
from edge.stream.client import CloudClient
from tests import tiny
from tests.in_process import (
    COSTS,
    Cloud,
    adaptive,
    controller_of,
    in_threads,
    known,
    planner_of,
    unlearning,
    use,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def cloud(bundle: Bundle) -> Cloud:
    return Cloud(bundle)


class TestAnnouncements:
    def test_a_plan_is_announced_once_for_a_stream(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        controller_of(detector).ready()
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
        controller_of(detector).ready()
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
        controller_of(detector).ready()
        detector.detect(tiny.image())
        cloud.streams[0].close()
        for _ in range(3):
            detector.detect(tiny.image())
        assert len(cloud.streams) == 2
        assert len(cloud.switches) == 2
        detector.close()

    def test_a_plan_that_is_asked_for_is_no_switch(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        controller_of(detector).ready()
        detector.detect(tiny.image())
        detector.detect(tiny.image(), find_plan(bundle, tiny.CLOUD_ONLY))
        detector.detect(tiny.image())
        assert len(cloud.switches) == 1
        detector.close()

    def test_of_frames_that_come_at_once_one_announces(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        controller = controller_of(detector)
        controller.ready()
        together = threading.Barrier(4)

        def choose() -> None:
            together.wait(60)
            controller.choose()

        in_threads([choose] * 4)
        assert len(cloud.switches) == 1
        detector.close()

    def test_the_last_one_told_is_the_last_one_chosen(self, bundle: Bundle, cloud: Cloud) -> None:
        """A thread that is held up while it announces may be overtaken by the next change."""
        detector = adaptive(bundle, cloud)
        controller = controller_of(detector)
        controller.ready()
        client, telling, overtaken = controller._client, threading.Event(), threading.Event()
        tell = client.notify

        def held_up(message: pb.Switch | pb.ProfileReport) -> None:
            if not telling.is_set():
                telling.set()
                overtaken.wait(0.3)  # where nobody may overtake, it goes on by itself
            tell(message)

        client.notify = held_up  # type: ignore[method-assign]

        def then_another() -> None:
            assert telling.wait(60)
            use(detector, tiny.CLOUD_ONLY)
            controller.choose()
            overtaken.set()

        in_threads([controller.choose, then_another])
        assert cloud.switches[-1].plan_digest == find_plan(bundle, tiny.CLOUD_ONLY)
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
        assert planner_of(detector).expected(digest, 0.0).latency_ms < 12
        controller_of(detector).ready()
        assert planner_of(detector).expected(digest, 0.0).latency_ms > 22
        edge = planner_of(detector)._expectations._edge
        assert COSTS[tiny.SPLIT][0] * edge.factor(digest) == pytest.approx(20, rel=0.1)
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
        detector.controller, controller = None, controller_of(detector)
        controller.welcomed(pb.Welcome(learned=cloud.learned))
        assert controller._planner.expected(digest, 0.0).fixed_ms == before
        detector.close()

    def test_a_deadline_takes_the_most_accurate_plan_that_keeps_it(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        controller_of(detector).ready()
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
        controller_of(detector).ready()
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
        assert {each.digest for each in controller_of(detector).state().expected} == opened
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
            controller_of(detector).ready()
        else:
            assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        assert {detector.detect(tiny.image()).plan.name for _ in range(5)} == {tiny.CLOUD_ONLY}
        generous = detector.detect(tiny.image(), deadline_ms=1e-3)
        assert generous.plan.name == tiny.CLOUD_ONLY
        detector.close()
