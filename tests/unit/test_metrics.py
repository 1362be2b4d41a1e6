"""What /metrics tells on both ends, and that the dashboard asks for nothing else."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import Edge, Edges
from cloud.metrics import CloudMetrics
from cloud.store.samples import SampleSource
from cloud.store.store import Store
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from tests import tiny
from tests.asgi import request

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "tiny")


def values(text: str) -> Values:
    """Every sample of an exposition, by name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _digest(bundle: Bundle, name: str) -> bytes:
    return next(digest for digest, plan in bundle.plans.items() if plan.name == name)


async def _nowhere(message: pb.CloudMessage) -> None:
    raise AssertionError(f"nothing is sent here: {message}")


class TestCloud:
    def test_an_answered_frame_is_counted_with_its_stages(self, bundle: Bundle) -> None:
        metrics = CloudMetrics(bundle.plans)
        frame = pb.Frame(plan_digest=_digest(bundle, tiny.SPLIT))
        times = pb.CloudTimes(tail_us=3000, total_us=9000)
        message = pb.EdgeMessage(frame=frame)

        metrics.answered(message, pb.Result(times=times))

        told = values(_text(metrics))
        assert told["splitpoint_cloud_frames_total", (("plan", tiny.SPLIT),)] == 1
        assert told["splitpoint_cloud_frames_total", (("plan", tiny.CLOUD_ONLY),)] == 0
        assert told["splitpoint_cloud_uplink_bytes_total", ()] == message.ByteSize()
        tail = "splitpoint_cloud_stage_seconds_sum", (("stage", "tail"),)
        assert told[tail] == pytest.approx(0.003)

    def test_a_rejection_is_counted_by_its_reason_and_not_as_a_frame(self, bundle: Bundle) -> None:
        metrics = CloudMetrics(bundle.plans)

        metrics.rejected(pb.Rejection.REASON_BAD_PAYLOAD)

        told = values(_text(metrics))
        assert told["splitpoint_cloud_rejections_total", (("reason", "bad-payload"),)] == 1
        assert told["splitpoint_cloud_frames_total", (("plan", tiny.SPLIT),)] == 0

    def test_a_digest_from_outside_becomes_no_label(self, bundle: Bundle) -> None:
        metrics = CloudMetrics(bundle.plans)
        message = pb.EdgeMessage(report=pb.Report(plan_digest=b"x" * 32))

        metrics.answered(message, pb.Result())

        assert values(_text(metrics))["splitpoint_cloud_reports_total", (("plan", "another"),)] == 1

    def test_what_waits_is_the_queue(self, bundle: Bundle) -> None:
        metrics = CloudMetrics(bundle.plans)
        metrics.arrived()
        metrics.arrived()
        metrics.left()
        assert values(_text(metrics))["splitpoint_cloud_queue_depth", ()] == 1

    def test_calls_that_wait_are_shown_by_lane(self, bundle: Bundle) -> None:
        with ThreadPoolExecutor(1) as workers:
            admission = Admission(workers, 1)
            begun, go_on = threading.Event(), threading.Event()

            def work() -> None:
                begun.set()
                go_on.wait()

            async def waiting() -> Values:
                calls = [asyncio.create_task(admission.run("edge", "a", work)) for _ in range(3)]
                await asyncio.to_thread(begun.wait)
                shown = values(_text(CloudMetrics(bundle.plans, admission=admission)))
                go_on.set()
                await asyncio.gather(*calls)
                return shown

            shown = asyncio.run(waiting())
        assert shown["splitpoint_cloud_waiting_calls", (("lane", "edge"),)] == 2
        assert shown["splitpoint_cloud_waiting_calls", (("lane", "rest"),)] == 0

    def test_connected_edges_tell_their_plan_and_link(self, bundle: Bundle) -> None:
        edges, store = Edges(), Store()
        store.ignore("door")
        app = cloud_rest.create_app(
            DataPlane(Tails(bundle), Admission(ThreadPoolExecutor(1), 1), store=store, edges=edges)
        )
        edge = Edge(SampleSource("door", "box", "ort", 1), "00", "1", _nowhere)
        digest = _digest(bundle, tiny.SPLIT)
        edge.switched(pb.Switch(plan_digest=digest, uplink_bps=3e6, rtt_us=20_000))

        with edges.connected(edge):
            told = values(request(app, "GET", "/metrics").text)
        after = values(request(app, "GET", "/metrics").text)
        store.close()

        in_use = "splitpoint_cloud_plan_in_use", (("edge", "door"), ("plan", tiny.SPLIT))
        link = "splitpoint_cloud_link_uplink_bits_per_second", (("edge", "door"),)
        assert (told["splitpoint_cloud_connected_edges", ()], told[in_use]) == (1, 1)
        assert told[link] == 3e6
        assert told["splitpoint_cloud_ignored_measurements_total", ()] == 1
        assert after["splitpoint_cloud_connected_edges", ()] == 0
        assert in_use not in after


def _text(metrics: CloudMetrics) -> str:
    from prometheus_client import generate_latest

    return generate_latest(metrics.registry).decode()


def test_no_name_is_used_twice(bundle: Bundle) -> None:
    told = [f.name for f in text_string_to_metric_families(_text(CloudMetrics(bundle.plans)))]
    assert len(told) == len(set(told))
