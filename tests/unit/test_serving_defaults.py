"""Both ends report as the bundle's search judged, unless a caller says otherwise."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.tails import Tails
from cloud.whole_images import run_image
from common.bundle.bundle import Bundle
from common.bundle.manifest import Search
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import DEFAULTS, ResultSettings
from edge import rest as edge_rest
from edge.detector import Detector
from edge.stream.client import CloudClient
from splitpoint.cli import main
from splitpoint.edge_detector import EdgeDetector
from tests import tiny
from tests.bundles import SEARCH
from tests.in_process import Cloud

IOU = 0.625
"""Exact in the Frame's float32."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    searched = {"iou_threshold": IOU, "max_detections": 7, "classes": ("cat",)}
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", searched=searched)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[ResultSettings]:
    """Settings that detectors were called with."""
    seen: list[ResultSettings] = []
    detect = Detector.detect

    def record(self: Detector, *args: Any, **options: Any) -> Any:
        seen.append(options["settings"] if "settings" in options else args[2])
        return detect(self, *args, **options)

    monkeypatch.setattr(Detector, "detect", record)
    return seen


def test_only_the_threshold_of_duplicates_is_the_searchs(bundle: Bundle) -> None:
    """A search that judged by seven persons alone says nothing about what a camera is to report."""
    assert bundle.manifest.settings == ResultSettings(iou_threshold=IOU)


def test_a_threshold_that_no_frame_can_carry_is_no_bundles() -> None:
    with pytest.raises(ValidationError):
        Search.model_validate({**SEARCH.model_dump(), "iou_threshold": 0})


def test_a_bundle_of_a_search_that_did_not_say_has_the_usual_ones(tmp_path: Path) -> None:
    assert tiny.build(tmp_path / "b").manifest.settings == DEFAULTS


def test_an_edge_asks_its_cloud_for_it(bundle: Bundle) -> None:
    cloud = Cloud(bundle)
    client = CloudClient(cloud.connect, pb.Hello(edge_id="t", bundle_digest=bundle.digest))
    detector = Detector(bundle, client)
    detector.detect(tiny.image())
    detector.detect(tiny.image(), settings=DEFAULTS)
    detector.close()
    first, second = (ResultSettings.from_frame(frame) for frame in cloud.frames)
    assert first == ResultSettings(iou_threshold=IOU)
    assert second == DEFAULTS


def default_of(app: FastAPI, name: str) -> object:
    """Default of a query parameter of POST /v1/infer, as the API describes itself."""
    parameters = app.openapi()["paths"]["/v1/infer"]["post"]["parameters"]
    (found,) = [each["schema"]["default"] for each in parameters if each["name"] == name]
    return found


def test_rest_has_it_on_both_ends(bundle: Bundle) -> None:
    with ThreadPoolExecutor(1) as workers:
        cloud = cloud_rest.create_app(DataPlane(Tails(bundle), Admission(workers, 1)))
    edge = edge_rest.create_app(Detector(bundle, None))
    for app in (cloud, edge):
        assert default_of(app, "iou_threshold") == IOU
        assert default_of(app, "score_threshold") == DEFAULTS.score_threshold


def test_a_whole_image_has_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    tails, seen = Tails(bundle), list[ResultSettings]()
    runner = tails.image_runner()
    run = runner.run

    def record(symbols: Any, where: Any, settings: ResultSettings) -> Any:
        seen.append(settings)
        return run(symbols, where, settings)

    monkeypatch.setattr(runner, "run", record)
    run_image(tails, tiny.png())
    run_image(tails, tiny.png(), DEFAULTS)
    assert [each.iou_threshold for each in seen] == [IOU, DEFAULTS.iou_threshold]


def test_the_public_edge_has_it(bundle: Bundle, asked: list[ResultSettings]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    with EdgeDetector(bundle) as edge:
        edge.detect(image)
        edge.detect(image, iou_threshold=0.5)
    assert [each.iou_threshold for each in asked] == [IOU, 0.5]


@pytest.mark.parametrize(("options", "expected"), [([], IOU), (["--iou-threshold", "0.5"], 0.5)])
def test_the_command_has_it(
    bundle: Bundle,
    tmp_path: Path,
    asked: list[ResultSettings],
    options: list[str],
    expected: float,
) -> None:
    (tmp_path / "picture.png").write_bytes(tiny.png())
    picture = str(tmp_path / "picture.png")
    with pytest.raises(SystemExit) as ended:
        main(["edge", "--bundle", str(bundle.root), *options, "--class", "dog", picture])
    assert not ended.value.code
    assert asked == [ResultSettings(iou_threshold=expected, classes=(1,))]
