"""What REST tells of plans in use and edges, and what it lets a caller ask of them."""

import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge, Edges
from cloud.reference_frames import ReferenceFrames
from cloud.store.samples import SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from common.tables.rows import LatencyRow
from edge import rest as edge_rest
from edge.detector import Detector, find_plan
from edge.stream.client import CloudClient
from edge.stream.transport import InProcessTransport
from tests import tiny
from tests.asgi import request
from tests.planes import answer_to

SOURCE = SampleSource("door", "box 3", "onnxruntime x1", 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def tails(bundle: Bundle) -> Tails:
    return Tails(bundle)


@pytest.fixture
def edges() -> Edges:
    return Edges()


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    yield store
    store.close()


@pytest.fixture
def cloud(tails: Tails, edges: Edges, store: Store) -> FastAPI:
    return cloud_rest.create_app(
        DataPlane(tails, Admission(ThreadPoolExecutor(1), 1), store=store, edges=edges)
    )


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"type", "message"}
    message: str = body["error"]["message"]
    assert "\n" not in message
    return message


@contextmanager
def connected(
    edges: Edges,
    source: SampleSource = SOURCE,
    report: Callable[[pb.ProfileOrder], pb.ProfileReport] | None = None,
) -> Iterator[Edge]:
    """An edge, connected; its report is there as soon as its order was sent."""

    async def send(message: pb.CloudMessage) -> None:
        assert report is not None
        answer = report(message.order)
        answer.order_id = message.order.order_id
        made.reported(answer)

    made = Edge(source, "ab" * 32, "1.2.3", send)
    with edges.connected(made):
        yield made


def switch(bundle: Bundle, name: str, **fields: Any) -> pb.Switch:
    return pb.Switch(
        plan_digest=find_plan(bundle, name),
        reason="it is\nthe fastest",
        uplink_bps=4e6,
        rtt_us=20_000,
        burst_bytes=1500,
        expected=[
            pb.Expectation(
                plan_digest=find_plan(bundle, each),
                latency_us=latency_ms * 1000,
                fixed_us=fixed_ms * 1000,
                uplink_bytes=size,
            )
            for each, latency_ms, fixed_ms, size in (
                (tiny.EDGE_ONLY, 90, 90, 0),
                (tiny.SPLIT, 60, 55, 4000),
                (tiny.CLOUD_ONLY, 81, 40, 22_000),
            )
        ],
        **fields,
    )


class TestPlansInTheCloud:
    def test_without_edges_none_is_in_use(self, cloud: FastAPI) -> None:
        body = request(cloud, "GET", "/v1/plans").json()
        assert body["in_use"] == []
        assert [plan["name"] for plan in body["plans"]] == list(tiny.ALL_PLANS)

    def test_each_edge_s_plan_is_explained(
        self, cloud: FastAPI, edges: Edges, bundle: Bundle
    ) -> None:
        with (
            connected(edges) as door,
            connected(edges, SampleSource("attic", "", "")) as attic,
            connected(edges, SampleSource("silent", "", "")),
        ):
            door.switched(switch(bundle, tiny.SPLIT))
            attic.switched(pb.Switch(plan_digest=find_plan(bundle, tiny.EDGE_ONLY)))
            body = request(cloud, "GET", "/v1/plans").json()
            alone = request(cloud, "GET", "/v1/plans", params={"edge": "door"}).json()
            silent = request(cloud, "GET", "/v1/plans", params={"edge": "silent"}).json()
        assert [each["edge"] for each in body["in_use"]] == ["attic", "door"]
        _, told = body["in_use"]
        assert alone["in_use"] == [told]
        assert silent["in_use"] == []
        digest = find_plan(bundle, tiny.SPLIT)
        assert told["plan"] == {"name": tiny.SPLIT, "digest": digest.hex()}
        assert told["reason"] == "it is the fastest"
        assert (told["uplink_bps"], told["rtt_ms"]) == (4e6, 20.0)
        fastest_first = [each["plan"]["name"] for each in told["expected"]]
        assert fastest_first == [tiny.SPLIT, tiny.CLOUD_ONLY, tiny.EDGE_ONLY]
        assert told["expected"][0]["latency_ms"] == 60
        assert told["expected"][0]["uplink_bytes"] == 4000
        words = " ".join(told["crossovers"])
        assert all(name in words for name in tiny.ALL_PLANS), words

    def test_what_an_edge_does_not_know_is_null(
        self, cloud: FastAPI, edges: Edges, bundle: Bundle
    ) -> None:
        with connected(edges) as edge:
            edge.switched(pb.Switch(plan_digest=find_plan(bundle, tiny.SPLIT)))
            (told,) = request(cloud, "GET", "/v1/plans").json()["in_use"]
        assert (told["uplink_bps"], told["rtt_ms"]) == (None, None)
        assert told["expected"] == []

    def test_plans_of_another_bundle_have_no_name(self, cloud: FastAPI, edges: Edges) -> None:
        other = [pb.Expectation(plan_digest=b"x" * 32, latency_us=1)]
        with connected(edges) as edge:
            edge.switched(pb.Switch(plan_digest=b"x" * 32, expected=other))
            (told,) = request(cloud, "GET", "/v1/plans").json()["in_use"]
        assert told["plan"] == {"name": "", "digest": (b"x" * 32).hex()}
        assert told["expected"][0]["plan"]["name"] == ""

    @pytest.mark.parametrize("largest", [2**32 - 1, 0])
    def test_the_wildest_that_is_allowed_is_told(
        self, cloud: FastAPI, edges: Edges, bundle: Bundle, largest: int
    ) -> None:
        wild = [
            pb.Expectation(
                plan_digest=digest, latency_us=largest, fixed_us=largest, uplink_bytes=largest
            )
            for digest in (*bundle.plans, *bundle.plans)
        ]
        with connected(edges) as edge:
            edge.switched(
                pb.Switch(
                    plan_digest=b"x" * 32,
                    uplink_bps=5e-324,
                    rtt_us=largest,
                    burst_bytes=largest,
                    expected=wild,
                )
            )
            response = request(cloud, "GET", "/v1/plans")
        assert response.status_code == 200

    def test_an_unknown_edge_is_404(self, cloud: FastAPI, edges: Edges) -> None:
        with connected(edges):
            response = request(cloud, "GET", "/v1/plans", params={"edge": "gate"})
        assert "door" in error(response, 404)
        assert response.json()["error"]["type"] == "UnknownEdgeError"


class TestEdges:
    def test_they_are_listed(self, cloud: FastAPI, edges: Edges, bundle: Bundle) -> None:
        assert request(cloud, "GET", "/v1/edges").json() == {"edges": []}
        with connected(edges) as edge:
            (before,) = request(cloud, "GET", "/v1/edges").json()["edges"]
            edge.switched(switch(bundle, tiny.SPLIT))
            (after,) = request(cloud, "GET", "/v1/edges").json()["edges"]
        assert before["plan"] is None
        assert before["switches"] == 0
        assert after["plan"] == find_plan(bundle, tiny.SPLIT).hex()
        assert after["switches"] == 1
        assert {key: after[key] for key in ("edge", "device", "runtime", "bundle", "version")} == {
            "edge": "door",
            "device": "box 3",
            "runtime": "onnxruntime x1",
            "bundle": "ab" * 32,
            "version": "1.2.3",
        }
        assert request(cloud, "GET", "/v1/edges").json() == {"edges": []}


def row(bundle: Bundle, stage: str = "head", **fields: Any) -> pb.StageTimes:
    times = {"n": 9, "median_us": 2000, "p90_us": 2500, "low_us": 1500, "high_us": 3000}
    return pb.StageTimes(plan_digest=find_plan(bundle, tiny.SPLIT), stage=stage, **(times | fields))


class TestProfiles:
    def test_what_an_edge_finds_is_told_and_kept(
        self, cloud: FastAPI, edges: Edges, store: Store, bundle: Bundle
    ) -> None:
        def report(order: pb.ProfileOrder) -> pb.ProfileReport:
            assert order.budget_ms == 1500
            return pb.ProfileReport(rows=[row(bundle), row(bundle, "encode")])

        with connected(edges, report=report):
            params = {"budget_s": 1.5}
            response = request(cloud, "POST", "/v1/edges/door/profile", params=params)
        assert response.status_code == 200
        rows = [LatencyRow.model_validate(each) for each in response.json()["rows"]]
        assert {each.segment.partition(" ")[0] for each in rows} == {"head", "encode"}
        assert {(each.device, each.runtime, each.threads) for each in rows} == {
            ("box 3", "onnxruntime x1", 1)
        }
        assert {each.median_ms for each in rows} == {2.0}
        assert {each.key: each for each in store.latency_rows()} == {
            each.key: each for each in rows
        }
        tables = request(cloud, "GET", "/v1/tables").json()
        assert len(tables["tables"]) == len(rows)
        assert tables["ignored"] == {}

    def test_a_second_one_takes_the_place_of_the_first(
        self, cloud: FastAPI, edges: Edges, store: Store, bundle: Bundle
    ) -> None:
        medians = iter([2000, 2900])

        def report(order: pb.ProfileOrder) -> pb.ProfileReport:
            return pb.ProfileReport(rows=[row(bundle, median_us=next(medians), p90_us=3000)])

        with connected(edges, report=report):
            for _ in range(2):
                assert request(cloud, "POST", "/v1/edges/door/profile").status_code == 200
        assert [each.median_ms for each in store.latency_rows()] == [2.9]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda r: r.rows[0].ClearField("n"),
            lambda r: setattr(r.rows[0], "n", 2**32 - 1),
            lambda r: setattr(r.rows[0], "median_us", 2**32 - 1),
            lambda r: setattr(r.rows[0], "low_us", 0),  # nothing takes no time
            lambda r: setattr(r.rows[0], "high_us", 1),
            lambda r: setattr(r.rows[0], "p90_us", 1),
            lambda r: setattr(r.rows[0], "stage", "tail"),  # of the other side
            lambda r: setattr(r.rows[0], "stage", ""),
            lambda r: setattr(r.rows[0], "plan_digest", b"x" * 32),
            lambda r: r.rows.append(r.rows[0]),
            lambda r: r.rows.extend([r.rows[0]] * 2048),
        ],
    )
    def test_one_impossible_row_spoils_a_report(
        self,
        cloud: FastAPI,
        edges: Edges,
        store: Store,
        bundle: Bundle,
        spoil: Callable[[pb.ProfileReport], object],
    ) -> None:
        def report(order: pb.ProfileOrder) -> pb.ProfileReport:
            made = pb.ProfileReport(rows=[row(bundle), row(bundle, "encode")])
            spoil(made)
            return made

        with connected(edges, report=report):
            response = request(cloud, "POST", "/v1/edges/door/profile")
        assert "cannot be true" in error(response, 504)
        assert store.latency_rows() == []
        assert request(cloud, "GET", "/v1/tables").json()["ignored"] == {"door": 1}

    def test_an_edge_that_does_not_say_what_it_is_has_no_table(
        self, cloud: FastAPI, edges: Edges, store: Store, bundle: Bundle
    ) -> None:
        report = pb.ProfileReport(rows=[row(bundle)])
        with connected(edges, SampleSource("door", "", ""), lambda _: report):
            error(request(cloud, "POST", "/v1/edges/door/profile"), 504)
        assert store.latency_rows() == []

    def test_an_edge_that_cannot_is_504(self, cloud: FastAPI, edges: Edges, store: Store) -> None:
        with connected(edges, report=lambda _: pb.ProfileReport(error="busy")):
            response = request(cloud, "POST", "/v1/edges/door/profile")
        assert "door: busy" in error(response, 504)
        assert store.ignored == {}, "that is no lie"

    def test_an_unknown_edge_is_404(self, cloud: FastAPI) -> None:
        error(request(cloud, "POST", "/v1/edges/gate/profile"), 404)

    @pytest.mark.parametrize("budget_s", ["0", "-1", "301", "nan", "inf", "long"])
    def test_a_senseless_budget_is_422(self, cloud: FastAPI, edges: Edges, budget_s: str) -> None:
        with connected(edges):
            params = {"budget_s": budget_s}
            response = request(cloud, "POST", "/v1/edges/door/profile", params=params)
        assert "budget_s" in error(response, 422)

    @pytest.mark.parametrize("name", ["front door", "hall/2", "100%", "a?b", "tür"])
    def test_an_edge_may_be_called_anything(
        self, cloud: FastAPI, edges: Edges, bundle: Bundle, name: str
    ) -> None:
        report = pb.ProfileReport(rows=[row(bundle)])
        quoted = httpx.URL("http://x").copy_with(params={"e": name}).query.decode()[2:]
        path = f"/v1/edges/{quoted.replace('+', '%20').replace('/', '%2F')}/profile"
        with connected(edges, SampleSource(name, "box", "r"), lambda _: report):
            assert request(cloud, "POST", path).status_code == 200

    def test_a_cloud_without_a_store_tells_all_the_same(
        self, tails: Tails, edges: Edges, bundle: Bundle
    ) -> None:
        app = cloud_rest.create_app(
            DataPlane(tails, Admission(ThreadPoolExecutor(1), 1), edges=edges)
        )
        report = pb.ProfileReport(rows=[row(bundle)])
        with connected(edges, report=lambda _: report):
            response = request(app, "POST", "/v1/edges/door/profile")
        assert len(response.json()["rows"]) == 1


def detector(bundle: Bundle, tails: Tails, *, adaptive: bool) -> Detector:
    """An edge whose cloud is a function call."""
    plane = DataPlane(tails, Admission(ThreadPoolExecutor(1), 1))

    def serve(message: pb.EdgeMessage) -> Iterable[pb.CloudMessage]:
        kind = message.WhichOneof("kind")
        if kind == "hello":
            return [pb.CloudMessage(welcome=pb.Welcome(plan_digests=tails.digests))]
        return (
            []
            if kind == "switch"
            else [answer_to(plane, message, time.perf_counter(), ReferenceFrames())]
        )

    hello = pb.Hello(edge_id="test", bundle_digest=bundle.digest)
    client = CloudClient(lambda: InProcessTransport(serve), hello)
    return Detector(bundle, client, adaptive=adaptive)


@pytest.fixture
def edge(bundle: Bundle, tails: Tails) -> Iterator[FastAPI]:
    made = detector(bundle, tails, adaptive=True)
    yield edge_rest.create_app(made)
    made.close()


class TestOnTheEdge:
    def test_the_plan_in_use_is_explained(self, edge: FastAPI, bundle: Bundle) -> None:
        assert request(edge, "GET", "/readyz").status_code == 200
        body = request(edge, "GET", "/v1/plans").json()
        (told,) = body["in_use"]
        assert told["edge"] == ""
        assert told["plan"] == {"name": tiny.SPLIT, "digest": next(iter(bundle.plans)).hex()}
        assert told["reason"] == "the first of the bundle"
        assert told["rtt_ms"] is not None
        assert {each["plan"]["name"] for each in told["expected"]} == set(tiny.ALL_PLANS)

    def test_a_fixed_plan_is_not_explained(self, bundle: Bundle, tails: Tails) -> None:
        made = detector(bundle, tails, adaptive=False)
        app = edge_rest.create_app(made)
        assert request(app, "GET", "/v1/plans").json()["in_use"] == []
        params = {"deadline_ms": 100}
        response = request(app, "POST", "/v1/detect", content=tiny.png(), params=params)
        assert "let it adapt" in error(response, 422)
        made.close()

    def test_a_deadline_is_kept_in_mind(self, edge: FastAPI) -> None:
        params = {"deadline_ms": 5000}
        body = request(edge, "POST", "/v1/detect", content=tiny.png(), params=params).json()
        left = re.search(r"the most accurate within (\d+) ms", body["reason"])
        assert left is not None
        assert 0 < int(left[1]) <= 5000, "decoding the picture is part of it"
        assert body["expected_ms"] > 0
        assert body["latency_ms"] == pytest.approx(sum(body["times_ms"].values()))

    @pytest.mark.parametrize("deadline_ms", ["0", "-3", "nan", "inf", "soon"])
    def test_a_senseless_deadline_is_422(self, edge: FastAPI, deadline_ms: str) -> None:
        params = {"deadline_ms": deadline_ms}
        response = request(edge, "POST", "/v1/detect", content=tiny.png(), params=params)
        assert "deadline_ms" in error(response, 422)

    def test_a_deadline_and_a_plan_do_not_go_together(self, edge: FastAPI) -> None:
        params = {"deadline_ms": 100, "plan": tiny.SPLIT}
        response = request(edge, "POST", "/v1/detect", content=tiny.png(), params=params)
        assert "name none" in error(response, 422)
