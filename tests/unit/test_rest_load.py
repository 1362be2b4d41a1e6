"""More uploads than an end can serve, by real sockets: shed with a hint, dropped if abandoned."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from cloud import rest as cloud_rest
from cloud.admission import Admission, LaneLimits
from cloud.data_plane import DataPlane
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.http.intake import IntakeLimits
from common.http.turns import TurnLimits
from common.imaging.images import ImageLimits
from edge import rest as edge_rest
from edge.detector import Detector, Outcome
from tests import tiny
from tests.served import Served, closed, head, read_answer, served, until

HOUR_S = 3600.0
IMAGES = ImageLimits(max_bytes=100_000)
BODIES = IntakeLimits(total_bytes=250_000, stall_s=HOUR_S, body_s=HOUR_S)


@dataclass(frozen=True)
class End:
    """One end, whose one worker is held.

    Attributes:
        served: Its server.
        waiting: Counts the requests that wait for the worker.
        finished: Counts those that it has served.
        begun: Set once the worker has a request.
        let_go: Lets the worker go on.
    """

    served: Served
    waiting: Callable[[], int]
    finished: Callable[[], int]
    begun: threading.Event
    let_go: threading.Event


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny", [tiny.EDGE_ONLY, tiny.CLOUD_ONLY])


@contextmanager
def _cloud(bundle: Bundle, bodies: IntakeLimits = BODIES) -> Iterator[End]:
    """A cloud with room for two uploads to wait."""
    begun, let_go = threading.Event(), threading.Event()
    tails = Tails(bundle)
    tails.warm_up()
    finished: list[object] = []
    with ThreadPoolExecutor(1) as workers:

        class Counted(Admission):
            async def run(self, lane: Any, client: str, call: Callable[[], Any]) -> Any:
                def work() -> object:
                    begun.set()
                    let_go.wait()
                    finished.append(call)
                    return call()

                return await super().run(lane, client, work)

        admission = Counted(workers, 1, rest=LaneLimits(2, 2, max_wait_s=HOUR_S))
        app = cloud_rest.create_app(DataPlane(tails, admission, image_limits=IMAGES), bodies=bodies)
        with served(app) as server:
            try:
                yield End(
                    server,
                    lambda: admission.waiting("rest"),
                    lambda: len(finished),
                    begun,
                    let_go,
                )
            finally:
                let_go.set()


@contextmanager
def _edge(bundle: Bundle, bodies: IntakeLimits = BODIES) -> Iterator[End]:
    """An edge with room for two uploads to wait."""
    begun, let_go = threading.Event(), threading.Event()
    finished: list[object] = []

    class Held(Detector):
        def detect(self, *arguments: Any, **named: Any) -> Outcome:
            begun.set()
            let_go.wait()
            finished.append(arguments)
            return super().detect(*arguments, **named)

    digest = next(d for d, plan in bundle.plans.items() if plan.name == tiny.EDGE_ONLY)
    detector = Held(bundle, None, plans=[digest])
    queue = TurnLimits(at_once=1, waiting=2, max_wait_s=HOUR_S)
    app = edge_rest.create_app(detector, limits=IMAGES, bodies=bodies, queue=queue)
    with served(app) as server:
        try:
            yield End(
                server,
                lambda: _metric(server, "splitpoint_edge_rest_waiting"),
                lambda: len(finished),
                begun,
                let_go,
            )
        finally:
            let_go.set()
    detector.close()


ENDS = pytest.mark.parametrize("end", [_cloud, _edge])


def _upload(server: Served, body: bytes | None = None, sent: int | None = None) -> Any:
    body = tiny.png() if body is None else body
    connection = server.connect()
    connection.sendall(head("POST", "/v1/detect", length=len(body)) + body[:sent])
    return connection


def _lives(server: Served) -> bool:
    with server.connect() as connection:
        connection.sendall(head("GET", "/livez"))
        return read_answer(connection)[0] == 200


@ENDS
def test_what_cannot_wait_is_told_when_to_come_back(bundle: Bundle, end: Any) -> None:
    with end(bundle) as at:
        running = _upload(at.served)
        at.begun.wait()
        waiting = [_upload(at.served) for _ in range(2)]
        until(lambda: at.waiting() == 2)
        late = _upload(at.served)
        status, headers, body = read_answer(late)
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert b"try again in" in body
        assert _lives(at.served)
        at.let_go.set()
        assert [read_answer(each)[0] for each in (running, *waiting)] == [200] * 3
        for each in (running, *waiting, late):
            each.close()


@ENDS
def test_work_of_callers_that_have_gone_is_dropped(
    bundle: Bundle, end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with end(bundle) as at:
        running = _upload(at.served)
        at.begun.wait()
        abandoned = [_upload(at.served) for _ in range(2)]
        until(lambda: at.waiting() == 2)
        for each in abandoned:
            each.close()
        until(lambda: at.waiting() == 0)
        at.let_go.set()
        assert read_answer(running)[0] == 200
        running.close()
        assert at.finished() == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@ENDS
def test_half_sent_bodies_hold_no_more_than_the_budget(bundle: Bundle, end: Any) -> None:
    with end(bundle) as at:
        body = bytes(IMAGES.max_bytes)
        stopped = [_upload(at.served, body, 90_000) for _ in range(2)]
        until(lambda: _held(at.served) == 200_000)
        late = _upload(at.served, body, 90_000)
        status, headers, _ = read_answer(late)
        assert (status, headers["retry-after"]) == (503, "1")
        assert _lives(at.served)
        for each in stopped:
            each.close()
        until(lambda: _held(at.served) == 0)
        late.close()


@ENDS
def test_a_slow_body_is_408_and_closed(bundle: Bundle, end: Any) -> None:
    with end(bundle, IntakeLimits(stall_s=0.05)) as at:
        slow = _upload(at.served, bytes(1000), 10)
        assert read_answer(slow)[0] == 408
        assert closed(slow)
        slow.close()


@ENDS
def test_an_aborted_upload_logs_nothing(
    bundle: Bundle, end: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with end(bundle) as at:
        body = bytes(IMAGES.max_bytes)
        aborted = _upload(at.served, body, 10)
        until(lambda: _held(at.served) > 0)
        aborted.close()
        until(lambda: _held(at.served) == 0)
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def _held(server: Served) -> int:
    """Bytes that are reserved for bodies."""
    return _metric(server, "rest_body_bytes")


def _metric(server: Served, name: str) -> int:
    with server.connect() as connection:
        connection.sendall(head("GET", "/metrics"))
        text = read_answer(connection)[2].decode()
    (line,) = (row for row in text.splitlines() if f"{name} " in row and not row.startswith("#"))
    return int(float(line.split()[1]))
