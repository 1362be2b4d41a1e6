"""Real processes that adapt: a link that changes, a cloud that dies, an edge that lies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from bench.processes import Service
from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from common.bundle.bundle import Bundle
from common.errors import CloudUnavailableError
from common.imaging.placement import fit_image
from common.rpc import splitpoint_pb2 as pb
from common.runtime.registry import runtime_name
from common.tables.rows import LatencyRow, read_json, to_json
from edge.detector import find_plan
from edge.head import open_plans
from edge.stream.transport import GrpcTransport
from tests import tiny

T = TypeVar("T")
HEADER = "seconds,uplink_mbit,downlink_mbit,rtt_ms\n"
DEVICE = "box 3"
EDGE = "front door/2"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "tiny"
    tiny.build(folder)
    return folder


@pytest.fixture(scope="module")
def slow_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables by which the edge is far too slow to serve alone: it does so only where it must."""
    row = LatencyRow(
        device=DEVICE,
        runtime=runtime_name(1),
        threads=1,
        side="edge",
        network=tiny.NETWORK,
        segment="head to map",
        bits="8",
        n=1000,
        median_ms=5000.0,
        p90_ms=5000.0,
        low_ms=5000.0,
        high_ms=5000.0,
        source="served",
        last_seen_s=1.0,
    )
    path = tmp_path_factory.mktemp("tables") / "slow.json"
    path.write_text(to_json([row]))
    return path


def run_cloud(bundle: Path, log: Path, *options: str, grpc_port: int = 0) -> Service:
    ports = ["--grpc-port", str(grpc_port), "--rest-port", "0"]
    return Service(["cloud", "--bundle", str(bundle), *ports, *options], log)


def run_edge(bundle: Path, cloud: Service, log: Path, *options: str) -> Service:
    where = ["--cloud", f"127.0.0.1:{cloud.ready['grpc']}", "--listen", "127.0.0.1:0"]
    who = ["--edge-id", EDGE, "--device", DEVICE]
    return Service(["edge", "--bundle", str(bundle), *where, *who, *options], log)


def get(service: Service, path: str, **params: str) -> Any:
    url = f"http://127.0.0.1:{service.ready['rest']}{path}"
    answer = httpx.get(url, params=params, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(edge: Service, plan: str | None = None) -> dict[str, Any]:
    url = f"http://127.0.0.1:{edge.ready['rest']}/v1/detect"
    query = {} if plan is None else {"plan": plan}
    answer = httpx.post(url, params=query, content=tiny.png(), timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    assert body["detections"]
    return body


def until(find: Callable[[], T | None]) -> T:
    """What is found in the end."""
    deadline_s = time.monotonic() + 60
    while (found := find()) is None:
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.05)
    return found


def in_use(service: Service, **params: str) -> str | None:
    """The plan that a server says the edge uses."""
    told = get(service, "/v1/plans", **params)["in_use"]
    return told[0]["plan"]["name"] if told else None


def test_a_link_that_changes_costs_no_request(tmp_path: Path) -> None:
    """Down to a quarter and up again, under load from two callers, with no plan to rest on."""
    bundle, trace = tmp_path / "bundle", tmp_path / "step.csv"
    tiny.build(bundle, [tiny.CLOUD_ONLY, tiny.SPLIT_8, tiny.SPLIT])
    trace.write_text(f"{HEADER}0,2,,10\n2,0.5,,10\n4,repeat,,\n")
    with (
        run_cloud(bundle, tmp_path / "cloud.log") as cloud,
        run_edge(bundle, cloud, tmp_path / "edge.log", "--link", str(trace)) as edge,
    ):
        over = threading.Event()
        later_s = time.monotonic() + 6.0  # the trace begins with the first stream

        def call() -> None:
            while not over.is_set():
                post(edge)

        def switched() -> bool | None:
            told = get(cloud, "/v1/edges")["edges"]
            enough = time.monotonic() > later_s and told and told[0]["switches"]
            return True if enough else None

        with _threads(call, 2):
            try:
                until(switched)
            finally:
                over.set()

        def agreed() -> str | None:
            post(edge)
            there = in_use(cloud, edge=EDGE)
            return there if there == in_use(edge) else None

        name = until(agreed)
        (record,) = get(cloud, "/v1/edges")["edges"]
    assert record["edge"] == EDGE
    assert record["switches"] >= 1
    assert name in {tiny.CLOUD_ONLY, tiny.SPLIT_8, tiny.SPLIT}


@contextmanager
def _threads(work: Callable[[], None], count: int) -> Iterator[None]:
    """Raises, at the end, what one of them raised."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]


def test_an_outage_is_bridged_by_the_edge_alone(
    bundle: Path, slow_alone: Path, tmp_path: Path
) -> None:
    trace = tmp_path / "outage.csv"
    trace.write_text(f"{HEADER}0,4,,5\n2,0,,\n5,4,,5\n8,repeat,,\n")
    options = ("--link", str(trace), "--tables", str(slow_alone))
    with (
        run_cloud(bundle, tmp_path / "cloud.log") as cloud,
        run_edge(bundle, cloud, tmp_path / "edge.log", *options) as edge,
    ):
        kinds: list[str] = []

        def seen() -> bool | None:
            kinds.append(post(edge)["plan"]["kind"])
            through = [kind != "edge-only" for kind in kinds]
            return True if True in through and False in through else None

        until(seen)
        # Back at the cloud, or still alone because that has proven fast: served in any case.
        for _ in range(20):
            post(edge)


def test_a_cloud_that_is_killed_leaves_the_edge_serving(
    bundle: Path, slow_alone: Path, tmp_path: Path
) -> None:
    with run_cloud(bundle, tmp_path / "first.log") as cloud:
        port = cloud.ready["grpc"]
        options = ("--tables", str(slow_alone))
        with run_edge(bundle, cloud, tmp_path / "edge.log", *options) as edge:
            assert post(edge)["plan"]["kind"] != "edge-only"
            os.kill(cloud.ready["pid"], signal.SIGKILL)
            alone = [post(edge) for _ in range(5)]
            assert {each["plan"]["name"] for each in alone} == {tiny.EDGE_ONLY}
            assert all(each["uplink_bytes"] == 0 for each in alone)
            with run_cloud(bundle, tmp_path / "second.log", grpc_port=port) as second:

                def known_again() -> str | None:
                    post(edge)
                    return in_use(second)

                until(known_again)
                assert [each["edge"] for each in get(second, "/v1/edges")["edges"]] == [EDGE]


def test_a_cloud_that_comes_back_with_another_bundle_costs_no_request(
    bundle: Path, slow_alone: Path, tmp_path: Path
) -> None:
    tiny.build(tmp_path / "other", seed=5)
    with ExitStack() as stack:
        with run_cloud(bundle, tmp_path / "first.log") as cloud:
            port = cloud.ready["grpc"]
            options = ("--tables", str(slow_alone))
            edge = stack.enter_context(run_edge(bundle, cloud, tmp_path / "edge.log", *options))
            assert post(edge)["plan"]["kind"] != "edge-only"
        with run_cloud(tmp_path / "other", tmp_path / "second.log", grpc_port=port) as second:

            def connected() -> bool | None:
                assert post(edge)["plan"]["kind"] == "edge-only"
                return True if get(second, "/v1/edges")["edges"] else None

            until(connected)
            assert {post(edge)["plan"]["kind"] for _ in range(5)} == {"edge-only"}
        with run_cloud(bundle, tmp_path / "third.log", grpc_port=port):
            url = f"http://127.0.0.1:{edge.ready['rest']}/v1/detect?plan={tiny.SPLIT}"

            def split() -> bool | None:
                post(edge)
                answer = httpx.post(url, content=tiny.png(), timeout=60, trust_env=False)
                return True if answer.status_code == 200 else None

            until(split)


def test_an_edge_without_its_cloud_starts_all_the_same(bundle: Path, tmp_path: Path) -> None:
    with run_cloud(bundle, tmp_path / "cloud.log") as cloud:
        pass
    with run_edge(bundle, cloud, tmp_path / "edge.log") as edge:
        assert get(edge, "/readyz") == {"status": "ok"}
        assert post(edge)["plan"]["name"] == tiny.EDGE_ONLY


def test_a_distant_edge_profiles_itself(bundle: Path, tmp_path: Path) -> None:
    table = tmp_path / "tables.json"
    with (
        run_cloud(bundle, tmp_path / "cloud.log") as cloud,
        run_edge(bundle, cloud, tmp_path / "edge.log") as edge,
    ):
        get(edge, "/readyz")
        where = ["--cloud", f"http://127.0.0.1:{cloud.ready['rest']}", "--budget", "0.5"]
        arguments = ["profile", "--remote", EDGE, *where, "--tables", str(table)]
        command = [sys.executable, "-m", "splitpoint.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        assert done.returncode == 0, done.stderr
        told = get(cloud, "/v1/tables")
        assert post(edge)
    rows = read_json(table)
    assert {"letterbox", "head to cut", "head to map", "boxes"} <= {row.segment for row in rows}
    assert {(row.device, row.threads, row.side, row.source) for row in rows} == {
        (DEVICE, 1, "edge", "profiled")
    }
    kept = [LatencyRow.model_validate(row) for row in told["tables"]]
    assert {row.key for row in rows} <= {row.key for row in kept}
    assert told["ignored"] == {}


def _earlier_frames(path: Path, digest: str, *, edge_ms: float, cloud_ms: float) -> None:
    """A store that remembers frames of another edge of the same kind."""
    store = Store(path)
    for at_s in range(40):
        store.add(
            Sample(
                source=SampleSource("an earlier one", DEVICE, runtime_name(1), 1),
                plan=digest,
                at_s=float(at_s),
                uplink_bytes=1000,
                stages_ms={
                    "preprocess": 0.0,
                    "head": edge_ms,
                    "encode": 0.0,
                    "uplink": 1.0,
                    "queue": 0.0,
                    "decode": 0.0,
                    "tail": cloud_ms,
                    "postprocess": 0.0,
                    "downlink": 1.0,
                    "other": 0.0,
                    "total": edge_ms + cloud_ms + 2,
                },
            )
        )
    store.close()


def test_an_edge_that_restarts_begins_with_what_was_learnt(bundle: Path, tmp_path: Path) -> None:
    with Bundle.open(bundle) as opened:
        digest = find_plan(opened, tiny.SPLIT)
    predicted_ms = 3.0 + 4.0  # of `tiny.PREDICTION`, edge and cloud
    store = tmp_path / "store.sqlite"
    _earlier_frames(store, digest.hex(), edge_ms=12.0, cloud_ms=16.0)

    def begins_with(name: str, *options: str) -> float:
        """What it expects of the plan before its first frame, apart from the link."""
        with (
            run_cloud(bundle, tmp_path / f"{name}-cloud.log", *options) as cloud,
            run_edge(bundle, cloud, tmp_path / f"{name}-edge.log") as edge,
        ):
            get(edge, "/readyz")
            (told,) = get(edge, "/v1/plans")["in_use"]
        by_plan = {each["plan"]["name"]: each for each in told["expected"]}
        fixed_ms: float = by_plan[tiny.SPLIT]["fixed_ms"] - told["rtt_ms"]
        return fixed_ms

    # Loosely: waiting in this cloud, as its first probes found it, counts as well.
    assert begins_with("knowing", "--store", str(store)) > 2.5 * predicted_ms
    assert begins_with("again", "--store", str(store)) > 2.5 * predicted_ms


class Liar:
    """An edge that speaks the protocol and means no word of it."""

    def __init__(self, bundle: Path, cloud: Service) -> None:
        self._transport = GrpcTransport(f"127.0.0.1:{cloud.ready['grpc']}")
        with Bundle.open(bundle) as opened:
            self._plan = open_plans(opened)[find_plan(opened, tiny.SPLIT)]
            self._alone = find_plan(opened, tiny.EDGE_ONLY)
            hello = pb.Hello(
                edge_id="liar",
                bundle_digest=opened.digest,
                device="house of cards",
                runtime=runtime_name(1),
                threads=1,
            )
        self._next_id = 0
        self.send(pb.EdgeMessage(hello=hello))
        assert self.receive().HasField("welcome")

    def send(self, message: pb.EdgeMessage) -> None:
        self._transport.send(message)

    def receive(self) -> pb.CloudMessage:
        return self._transport.receive(60)

    def frame(self, *measured: pb.Measurement) -> int:
        """Send a good frame that carries measurements; returns its id once it is answered."""
        self._next_id += 1
        pixels = fit_image(tiny.image(), (tiny.SIZE, tiny.SIZE))
        self.send(
            pb.EdgeMessage(
                frame=pb.Frame(
                    frame_id=self._next_id,
                    plan_digest=self._plan.digest,
                    image_width=48,
                    image_height=40,
                    payloads=self._plan.cut(pixels).payloads,
                    measured=measured,
                )
            )
        )
        assert self.receive().result.frame_id == self._next_id
        return self._next_id

    def report(self, times: pb.EdgeTimes) -> None:
        self._next_id += 1
        report = pb.Report(frame_id=self._next_id, plan_digest=self._alone, times=times)
        self.send(pb.EdgeMessage(report=report))
        assert self.receive().result.frame_id == self._next_id

    def close(self) -> None:
        self._transport.close()


LIES = [
    pb.EdgeTimes(),  # no time at all
    pb.EdgeTimes(total_us=2**32 - 1, round_trip_us=2**32 - 1),  # more than an hour
    pb.EdgeTimes(total_us=10**6, round_trip_us=10**6, uplink_us=10**8),  # a way up beyond both
    pb.EdgeTimes(total_us=10**6, round_trip_us=10**6, uplink_bps=float("nan")),
    pb.EdgeTimes(total_us=10**6, round_trip_us=10**6, uplink_bps=float("-inf")),
    pb.EdgeTimes(total_us=10**6, round_trip_us=10**6, head_us=10**8),
]


def test_an_edge_that_lies_is_counted_and_changes_nobody_else(bundle: Path, tmp_path: Path) -> None:
    with run_cloud(bundle, tmp_path / "cloud.log") as cloud:
        with run_edge(bundle, cloud, tmp_path / "edge.log", "--plan", tiny.SPLIT) as edge:
            for _ in range(5):
                post(edge)

            # What the last frame took is told with the next one, which does not come.
            def honest() -> dict[str, Any] | None:
                tables: dict[str, Any] = get(cloud, "/v1/tables")
                return tables if any(row["n"] == 4 for row in tables["rows"]) else None

            before = until(honest)
        liar = Liar(bundle, cloud)
        for times in LIES:
            told = pb.Measurement(frame_id=liar.frame(), times=times)
            liar.frame(told)
        liar.frame(*(pb.Measurement(frame_id=12345 + k, times=LIES[0]) for k in range(16)))
        liar.report(pb.EdgeTimes(total_us=10, postprocess_us=10**7))
        liar.report(pb.EdgeTimes(total_us=10**6, uplink_bps=float("inf")))
        lies = len(LIES) + 16 + 2
        url = f"http://127.0.0.1:{cloud.ready['rest']}/v1/edges/liar/profile"
        asked: list[httpx.Response] = []
        with _threads(lambda: asked.append(httpx.post(url, timeout=60, trust_env=False)), 1):
            order = liar.receive().order
            row = pb.StageTimes(plan_digest=bytes(32), stage="head", n=1)
            report = pb.ProfileReport(order_id=order.order_id, rows=[row])
            liar.send(pb.EdgeMessage(profile=report))
        assert [answer.status_code for answer in asked] == [504]
        # One that may be true, told last: when it is kept, whatever was told before would be, too.
        true = pb.EdgeTimes(total_us=10**7, round_trip_us=10**7 - 10)
        liar.frame(pb.Measurement(frame_id=liar.frame(), times=true))

        def kept() -> dict[str, Any] | None:
            tables: dict[str, Any] = get(cloud, "/v1/tables")
            return tables if any(row["edge"] == "liar" for row in tables["rows"]) else None

        after = until(kept)
        assert after["ignored"] == {"liar": lies + 1}
        assert {row["n"] for row in after["rows"] if row["edge"] == "liar"} == {1}
        assert [row for row in after["rows"] if row["edge"] == EDGE] == before["rows"]
        assert _on_box(after) == _on_box(before) != []

        switch = pb.Switch(plan_digest=bytes(32), uplink_bps=float("nan"))
        liar.send(pb.EdgeMessage(switch=switch))
        with pytest.raises(CloudUnavailableError, match="no bandwidth"):
            liar.receive()
        until(lambda: True if get(cloud, "/v1/edges")["edges"] == [] else None)
        liar.close()
        assert get(cloud, "/v1/tables")["ignored"] == after["ignored"]


def _on_box(tables: dict[str, Any]) -> list[dict[str, Any]]:
    """What segments take on the device that told the truth."""
    return [row for row in tables["tables"] if row["device"] == DEVICE]
