"""The controller without its cloud: one that is deaf, away, or back."""

import numpy as np
import pytest

from common.bundle.bundle import Bundle
from common.errors import CloudUnavailableError
from edge.detector import find_plan
from edge.planning import controller as controller_module
from edge.planning.planner import PlannerSettings
from tests import tiny
from tests.in_process import (
    Cloud,
    adaptive,
    controller_of,
    impatient,
    planner_of,
    prober_of,
    unlearning,
)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def cloud(bundle: Bundle) -> Cloud:
    return Cloud(bundle)


@pytest.fixture(autouse=True)
def _short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "_LEAST_TIMEOUT_S", 0.2)


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
        assert controller_of(detector).state().cloud_away
        cloud.deaf = False
        prober_of(detector).look()
        assert not controller_of(detector).state().cloud_away
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
        assert controller_of(detector).state().cloud_away
        cloud.deaf = False
        prober.look()
        assert len(cloud.streams) >= 2
        assert not controller_of(detector).state().cloud_away
        detector.close()

    def test_unreachable_from_the_start(self, bundle: Bundle, cloud: Cloud) -> None:
        cloud.unreachable = True
        detector = adaptive(bundle, cloud)
        controller_of(detector).ready()
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
        assert "away" in detector.detect(tiny.image()).reason
        detector.close()

    def test_a_stream_that_is_lost_under_a_frame(self, bundle: Bundle, cloud: Cloud) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        controller_of(detector).ready()
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
        with (
            impatient(detector),
            pytest.raises(CloudUnavailableError, match="did not answer"),
        ):
            detector.detect(tiny.image())
        cloud.deaf = False
        assert detector.detect(tiny.image()).plan.tail is not None
        cloud.unreachable = True
        cloud.streams[-1].close()
        with pytest.raises(CloudUnavailableError, match="not reachable"):
            controller_of(detector).ready()
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
