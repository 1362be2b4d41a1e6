"""A cloud that fails, in whatever way: frames are served without it, or the fault is its own."""

import math
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from common.bundle.bundle import Bundle
from common.errors import CloudFailedError, CloudOverloadedError, CloudUnavailableError
from common.rpc import splitpoint_pb2 as pb
from common.tasks.detections import MAX_DETECTIONS
from edge import rest
from edge.detector import Detector, find_plan
from edge.planning import controller as controller_module
from edge.planning.planner import PlannerSettings
from edge.planning.predictor import Expected
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport, Transport
from tests import tiny
from tests.asgi import request
from tests.in_process import (
    Cloud,
    adaptive,
    controller_of,
    planner_of,
    prober_of,
    unlearning,
)

Spoil = Callable[[pb.CloudMessage], pb.CloudMessage]
LONG_S = 60.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def cloud(bundle: Bundle) -> Cloud:
    return Cloud(bundle)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is, a frame without a deadline is waited for."""
    monkeypatch.setattr(controller_module, "_LEAST_TIMEOUT_S", LONG_S)


def _rejected(reason: int) -> Spoil:
    def spoil(answer: pb.CloudMessage) -> pb.CloudMessage:
        rejection = pb.Rejection(frame_id=answer.result.frame_id, message="not today")
        rejection.MergeFromString(bytes([0x10, reason]))  # field 2, whatever this edge knows of it
        return pb.CloudMessage(rejection=rejection)

    return spoil


def _found(boxes: Iterable[float], scores: Iterable[float], classes: Iterable[int]) -> Spoil:
    def spoil(answer: pb.CloudMessage) -> pb.CloudMessage:
        found = pb.Detections(boxes=boxes, scores=scores, classes=classes)
        answer.result.detections.CopyFrom(found)
        return answer

    return spoil


FLOOD = MAX_DETECTIONS + 1
FAILURES = {
    "unspecified": _rejected(pb.Rejection.REASON_UNSPECIFIED),
    "unknown plan": _rejected(pb.Rejection.REASON_UNKNOWN_PLAN),
    "bad payload": _rejected(pb.Rejection.REASON_BAD_PAYLOAD),
    "internal": _rejected(pb.Rejection.REASON_INTERNAL),
    "stale reference": _rejected(pb.Rejection.REASON_STALE_REFERENCE),
    "overloaded": _rejected(5),
    "of a protocol to come": _rejected(77),
    "a box that is no number": _found([0, 0, math.nan, 1], [0.5], [0]),
    "a score beyond 1": _found([0, 0, 1, 1], [1.5], [0]),
    "a score that is no number": _found([0, 0, 1, 1], [math.nan], [0]),
    "a class of another model": _found([0, 0, 1, 1], [0.5], [2]),
    "lengths that disagree": _found([0, 0, 1], [0.5], [0]),
    "too many": _found([0.0] * 4 * FLOOD, [0.5] * FLOOD, [0] * FLOOD),
    "a second greeting": lambda _: pb.CloudMessage(welcome=pb.Welcome()),
    "nothing in it": lambda _: pb.CloudMessage(),
}


@pytest.fixture(params=FAILURES)
def failure(request: pytest.FixtureRequest) -> Spoil:
    return FAILURES[request.param]


def test_a_failure_of_the_cloud_costs_no_frame(
    bundle: Bundle, cloud: Cloud, failure: Spoil
) -> None:
    detector = adaptive(bundle, cloud)
    unlearning(detector)
    controller_of(detector).ready()
    cloud.spoil = failure
    outcome = detector.detect(tiny.image())
    assert outcome.plan.name == tiny.EDGE_ONLY
    assert outcome.reason
    cloud.spoil = lambda answer: answer
    detector.close()


def test_where_nothing_else_serves_it_is_a_5xx(
    bundle: Bundle, cloud: Cloud, failure: Spoil
) -> None:
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(cloud.connect, hello, answer_timeout_s=LONG_S)
    detector = Detector(bundle, client, plans=[find_plan(bundle, tiny.SPLIT)])
    app = rest.create_app(detector)
    assert request(app, "POST", "/v1/detect", content=tiny.png()).status_code == 200
    cloud.spoil = failure
    response = request(app, "POST", "/v1/detect", content=tiny.png())
    assert response.status_code in {502, 503}
    assert ("retry-after" in response.headers) == (response.status_code == 503)
    assert "\n" not in response.json()["error"]["message"]
    detector.close()


def test_a_plan_that_the_cloud_fails_on_is_left_alone_for_longer_and_longer(
    bundle: Bundle, cloud: Cloud
) -> None:
    detector = adaptive(bundle, cloud, [tiny.SPLIT, tiny.EDGE_ONLY])
    unlearning(detector)
    controller_of(detector).ready()
    planner, digest = planner_of(detector), find_plan(bundle, tiny.SPLIT)
    cloud.spoil = FAILURES["internal"]
    for _ in range(3):
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
    assert len(cloud.frames) == 1
    assert not controller_of(detector).state().cloud_away
    until_s = planner._failed[digest].until_s
    assert planner.choose(until_s - 1e-3).expected.cost.plan.name == tiny.EDGE_ONLY
    assert planner.choose(until_s + 1e-3, 1e6).expected.digest in bundle.plans
    planner.failed(digest, until_s + 1e-3)
    assert planner._failed[digest].until_s - until_s > 1.5
    cloud.spoil = lambda answer: answer
    controller_of(detector).welcomed(pb.Welcome(plan_digests=cloud.held))
    assert not planner._failed, "a cloud that greets anew begins anew"
    detector.close()


def test_another_plan_through_the_cloud_serves_where_none_does_without_it(
    bundle: Bundle, cloud: Cloud
) -> None:
    detector = adaptive(bundle, cloud, [tiny.SPLIT, tiny.CLOUD_ONLY])
    unlearning(detector)
    cloud.held = [find_plan(bundle, tiny.CLOUD_ONLY)]
    outcome = detector.detect(tiny.image())
    assert outcome.plan.name == tiny.CLOUD_ONLY
    assert "does not hold" in outcome.reason
    detector.close()


def test_a_cloud_that_holds_none_of_the_plans_is_the_clouds_fault(
    bundle: Bundle, cloud: Cloud
) -> None:
    detector = adaptive(bundle, cloud, [tiny.SPLIT, tiny.CLOUD_ONLY])
    cloud.held = []
    with pytest.raises(CloudFailedError, match="same bundle"):
        detector.detect(tiny.image())
    detector.close()


def test_a_redeployed_cloud_costs_no_frame_and_the_old_bundle_brings_its_plans_back(
    bundle: Bundle, cloud: Cloud, tmp_path: Path
) -> None:
    detector = adaptive(bundle, cloud, settings=PlannerSettings(dwell_s=0.0))
    unlearning(detector)
    controller_of(detector).ready()
    assert detector.detect(tiny.image()).plan.tail is not None

    def redeployed(held: Bundle) -> None:
        cloud.held = Cloud(held).held
        cloud.streams[-1].close()

    redeployed(tiny.build(tmp_path / "other", seed=5))
    for _ in range(4):
        assert detector.detect(tiny.image()).plan.name == tiny.EDGE_ONLY
    assert not controller_of(detector).state().cloud_away
    redeployed(bundle)
    prober_of(detector).look()  # what it does all the time while frames come
    assert detector.detect(tiny.image()).plan.tail is not None
    detector.close()


class TestDeadlines:
    def test_a_cloud_that_does_not_greet_is_waited_for_no_longer_than_it_leaves(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        controller_of(detector).ready()
        client, greets = controller_of(detector)._client, threading.Event()

        def silent() -> Transport:
            greets.wait(LONG_S)
            return InProcessTransport(lambda _: [])

        client._connect = silent
        cloud.streams[-1].close()
        outcome = detector.detect(tiny.image(), deadline_ms=200.0)
        assert outcome.plan.name == tiny.EDGE_ONLY
        assert client._attempt is not None, "the attempt goes on, for the frames to come"
        assert not client._attempt.done()
        greets.set()
        detector.close()

    def test_a_cloud_that_does_not_answer_is_waited_for_no_longer_than_it_leaves(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud)
        unlearning(detector)
        controller_of(detector).ready()
        detector.detect(tiny.image())
        cloud.deaf = True
        outcome = detector.detect(tiny.image(), deadline_ms=300.0)
        assert outcome.plan.name == tiny.EDGE_ONLY
        assert outcome.latency_ms < LONG_S * 1e3, "not the time-out of a frame without a deadline"
        detector.close()

    def test_callers_with_a_deadline_and_no_other_plan_fail_by_it(
        self, bundle: Bundle, cloud: Cloud
    ) -> None:
        detector = adaptive(bundle, cloud, [tiny.SPLIT, tiny.CLOUD_ONLY])
        client, greets = controller_of(detector)._client, threading.Event()

        def silent() -> Transport:
            greets.wait(LONG_S)
            return InProcessTransport(lambda _: [])

        client._connect = silent
        with pytest.raises(CloudUnavailableError, match="no stream"):
            detector.detect(tiny.image(), deadline_ms=50.0)
        greets.set()
        detector.close()

    @pytest.mark.parametrize(
        ("deadline_ms", "resting", "answered_ms", "connected_ms"),
        [
            (1000.0, (92.0, 150.0), 850.0, 550.0),  # what is left is the other plan's
            (400.0, (92.0, 150.0), 300.0, 0.0),  # at least what it usually takes
            (200.0, (92.0, 150.0), 200.0, -100.0),  # but never beyond the deadline
            (600.0, (250.0, 900.0), 350.0, 50.0),  # the other plan is in time only by good luck
            (400.0, (500.0, 900.0), 400.0, 100.0),  # the other plan would be late anyway
            (400.0, None, 400.0, 300.0),  # there is no other plan: to the last moment
        ],
    )
    def test_what_a_deadline_leaves_for_the_cloud(
        self,
        bundle: Bundle,
        cloud: Cloud,
        monkeypatch: pytest.MonkeyPatch,
        deadline_ms: float,
        resting: tuple[float, float] | None,
        answered_ms: float,
        connected_ms: float,
    ) -> None:
        """A plan of 100 ms, 300 at the most."""
        monkeypatch.setattr("edge.planning.controller.time.perf_counter", lambda: 50.0)
        names = [tiny.SPLIT] if resting is None else [tiny.SPLIT, tiny.EDGE_ONLY]
        detector = adaptive(bundle, cloud, names)
        controller = controller_of(detector)
        (cost,) = [c for c in planner_of(detector)._costs.values() if c.needs_cloud]
        chosen = Expected(cost, 100.0, 50.0, 300.0, 90.0, 1000.0, 0.1)
        if resting is not None:
            other = Expected(cost, resting[0], 0.0, resting[1], resting[0], 0.0, 0.1)
            monkeypatch.setattr(planner_of(detector), "resting", lambda _: other)
        timeouts = controller.timeouts(chosen, 50.0, deadline_ms)
        assert (timeouts.answered_s - 50.0) * 1e3 == pytest.approx(answered_ms)
        assert (timeouts.connected_s - 50.0) * 1e3 == pytest.approx(connected_ms)
        detector.close()


@pytest.mark.parametrize(
    ("asked_ms", "left_alone_s"),
    [
        (0, 0.5),  # what an edge leaves it by itself
        (3000, 3.0),
        (4_000_000_000, 8.0),  # a month and a half: no cloud is believed that
    ],
)
def test_a_full_cloud_is_left_alone_for_as_long_as_it_asks(
    bundle: Bundle, cloud: Cloud, asked_ms: int, left_alone_s: float
) -> None:
    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(cloud.connect, hello, answer_timeout_s=LONG_S, clock=lambda: 100.0)
    detector = Detector(bundle, client, plans=[find_plan(bundle, tiny.SPLIT)])

    def full(answer: pb.CloudMessage) -> pb.CloudMessage:
        return pb.CloudMessage(
            rejection=pb.Rejection(
                frame_id=answer.result.frame_id,
                reason=pb.Rejection.REASON_OVERLOADED,
                retry_after_ms=asked_ms,
            )
        )

    cloud.spoil = full
    with pytest.raises(CloudOverloadedError):
        detector.detect(tiny.image())
    assert client.quiet_until_s == 100.0 + left_alone_s
    detector.close()
