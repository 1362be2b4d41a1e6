"""`import splitpoint`: its names, what loading them costs, and the examples of their docs."""

import asyncio
import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import splitpoint
from common import errors
from common.bundle.bundle import zip_bundle
from splitpoint import cloud_server, edge_detector, evaluating
from splitpoint.cloud_server import CloudServer
from splitpoint.edge_detector import EdgeDetector
from tests import tiny

NAMES = [
    "AddressInUseError",
    "Bundle",
    "BundleError",
    "BundleVersionError",
    "CalibrationError",
    "Classes",
    "CloudFailedError",
    "CloudOverloadedError",
    "CloudServer",
    "CloudUnavailableError",
    "Detections",
    "EdgeDetector",
    "Evaluation",
    "ImageError",
    "ImageTooLargeError",
    "ModelError",
    "NoFeasiblePlanError",
    "OverloadedError",
    "ParityError",
    "PayloadError",
    "PlanNotHeldError",
    "SettingsError",
    "SourceError",
    "SplitpointError",
    "StaleReferenceError",
    "StoreError",
    "Tensors",
    "UnknownPlanError",
    "WeightsError",
    "WrongTaskError",
    "__version__",
    "evaluate",
    "open_bundle",
    "search",
]


def test_the_names_are_these_and_each_is_there() -> None:
    assert sorted(NAMES) == splitpoint.__all__
    for name in NAMES:
        assert getattr(splitpoint, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = splitpoint.Nonsense


def test_every_error_is_exported() -> None:
    known = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.SplitpointError)
    }
    assert known <= set(splitpoint.__all__)


def test_importing_it_loads_neither_torch_nor_a_server() -> None:
    heavy = "torch", "onnxruntime", "grpc", "fastapi"
    code = f"import sys, splitpoint; print([m for m in {heavy!r} if m in sys.modules])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny.build(tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.parametrize("module", [edge_detector, cloud_server, evaluating])
def test_examples_of_docstrings_run(module: object, bundle: Path, tmp_path: Path) -> None:
    names = {"bundle": bundle, "EdgeDetector": EdgeDetector, "CloudServer": CloudServer}
    names["images"] = tiny.pictures(tmp_path / "images", range(4))
    failed, tried = doctest.testmod(module, extraglobs=names)  # type: ignore[arg-type]
    assert tried > 0
    assert failed == 0


def test_an_edge_and_a_cloud_meet_in_one_program(bundle: Path) -> None:
    with (
        splitpoint.CloudServer(bundle) as server,
        splitpoint.EdgeDetector(bundle, server.grpc_address, edge_id="api") as edge,
    ):
        assert server.rest_url.startswith("http://127.0.0.1:")
        assert edge.class_names
        edge.check_ready()
        image = tiny.image()
        split = edge.detect(image, plan=tiny.SPLIT)
        later = asyncio.run(edge.detect_async(image, plan=tiny.SPLIT))
    assert split.plan.name == tiny.SPLIT
    assert split.uplink_bytes > 0
    assert isinstance(split.detections, splitpoint.Detections)
    assert (split.detections.boxes == later.detections.boxes).all()


def test_a_cloud_that_cannot_start_says_why_where_the_block_begins(tmp_path: Path) -> None:
    with (
        pytest.raises(splitpoint.BundleError, match="nowhere"),
        splitpoint.CloudServer(tmp_path / "nowhere"),
    ):
        pass


def test_a_bundle_is_opened_by_its_name(bundle: Path) -> None:
    assert len(splitpoint.open_bundle(str(bundle)).plans) == len(tiny.ALL_PLANS)
    with pytest.raises(splitpoint.BundleError):
        splitpoint.open_bundle(bundle / "nothing")


def test_a_zipped_bundle_leaves_no_folder_behind(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped, scratch = tmp_path / "bundle.zip", tmp_path / "scratch"
    zip_bundle(bundle, zipped)
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with (
        splitpoint.CloudServer(zipped) as server,
        splitpoint.EdgeDetector(zipped, server.grpc_address) as edge,
    ):
        edge.check_ready()
        assert list(scratch.glob("splitpoint-*/manifest.json"))
    with pytest.raises(splitpoint.UnknownPlanError):
        splitpoint.EdgeDetector(zipped, plan="none of them")
    assert not list(scratch.iterdir())
