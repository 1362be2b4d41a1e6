"""A real search, its bundle deployed: two processes, real images, boxes that hold up."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from common.bundle import Bundle
from common.detections import agreement
from common.link import parse_link
from search.bundling import search_to
from search.devices import device_profile
from search.request import Request
from splitpoint.demo.ways import detect, to_detections
from splitpoint.processes import Service


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Callable[[int, int], None]:
        return lambda _done, _total: None


@pytest.fixture(scope="module")
def bundle(data_dir: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zipped bundle of YOLOv3-tiny for 4 MiB of edge memory."""
    out = tmp_path_factory.mktemp("search") / "bundle.zip"
    request = Request(
        model="yolov3-tiny",
        weights=tiny_weights,
        link=parse_link("3mbit/20ms"),
        device=device_profile("this-machine"),
        calibration=data_dir / "coco_train" / "images",
        edge_memory_bytes=4 << 20,
        max_images=16,
        max_drop=10.0,
    )
    search_to(out, request, Silent())
    return out


def test_the_bundle_keeps_the_limits(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        plans = opened.manifest.plans
        assert {"cloud-only", "split"} <= {plan.kind for plan in plans}
        assert "edge-only" not in {plan.kind for plan in plans}
        for plan in plans:
            assert plan.predicted.edge_memory_bytes <= 4 << 20
            assert plan.predicted.accuracy_drop <= 10.0
        latencies = [plan.predicted.latency_ms for plan in plans]
        assert latencies == sorted(latencies)
        assert opened.file("report.md").read_text().startswith("# yolov3-tiny")


def test_two_processes_find_what_the_whole_network_finds(
    bundle: Path, data_dir: Path, tmp_path: Path
) -> None:
    with Bundle.open(bundle) as opened:
        split = next(plan for plan in opened.manifest.plans if plan.kind == "split")
    images = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:12]
    cloud_command = ["cloud", "--bundle", str(bundle), "--grpc-port", "0", "--rest-port", "0"]
    matched = expected = extra = 0
    with Service(cloud_command, tmp_path / "cloud.log") as cloud:
        address = f"127.0.0.1:{cloud.ready['grpc']}"
        command = ["edge", "--bundle", str(bundle), "--cloud", address, "--listen", "127.0.0.1:0"]
        with (
            Service(command, tmp_path / "edge.log") as edge,
            httpx.Client(trust_env=False) as client,
        ):
            for image in images:
                url = "http://127.0.0.1:{}/v1/detect"
                whole = detect(client, url.format(cloud.ready["rest"]), image)
                ours = detect(client, url.format(edge.ready["rest"]), image, plan=split.name)
                assert ours["plan"]["name"] == split.name
                assert 0 < ours["uplink_bytes"] < 120_000
                found = agreement(to_detections(whole), to_detections(ours))
                matched += found.matched
                expected += found.matched + found.missing
                extra += found.extra
    assert expected >= 20
    assert matched >= 0.8 * expected
    assert extra <= 0.2 * expected
