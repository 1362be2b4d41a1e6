"""What the cloud is sent of frames that the edge served alone: times, boxes too, or nothing."""

from pathlib import Path

import pytest

from common.bundle.bundle import Bundle
from common.rpc import splitpoint_pb2 as pb
from edge.detector import Detector, find_plan
from edge.reporter import Reported
from edge.stream.client import CloudClient
from tests import tiny
from tests.in_process import Cloud


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / Path("b"))


def _reports(bundle: Bundle, report: Reported) -> list[pb.Report]:
    """What a cloud gets of two frames."""
    cloud = Cloud(bundle)
    client = CloudClient(cloud.connect, pb.Hello(edge_id="test", bundle_digest=bundle.digest))
    detector = Detector(bundle, client, plans=[find_plan(bundle, tiny.EDGE_ONLY)], report=report)
    for _ in range(2):
        assert len(detector.detect(tiny.image()).detections)
    if detector.reporter is not None:
        detector.reporter.close(timeout_s=60)
        assert (detector.reporter.sent, detector.reporter.lost) == (2, 0)
    detector.close()
    return [message.report for message in cloud.messages if message.HasField("report")]


def test_times_come_without_boxes(bundle: Bundle) -> None:
    reports = _reports(bundle, "times")
    assert len(reports) == 2
    assert not any(each.HasField("detections") for each in reports)
    assert all(each.times.head_us and each.times.total_us for each in reports)


def test_boxes_are_sent_where_they_are_wanted(bundle: Bundle) -> None:
    reports = _reports(bundle, "results")
    assert len(reports) == 2
    assert all(len(each.detections.scores) and each.times.total_us for each in reports)


def test_nothing_is_sent_where_nothing_is_wanted(bundle: Bundle) -> None:
    assert _reports(bundle, "none") == []
