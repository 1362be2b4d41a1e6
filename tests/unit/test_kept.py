"""A bundle is kept as long as the same search would make it, and no longer."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from common.bundle.bundle import Bundle
from common.errors import BundleError, ModelError
from common.link.link import parse_link
from common.progress import Progress
from common.tables.rows import LatencyRow, to_json
from search.constraints import constraints
from search.kept import keep, kept, search_key, search_unless_kept
from search.prediction.devices import device_profile
from search.request import Request
from search.source import NetworkSource
from tests import tiny
from tests.affinity import one_core

ROW = LatencyRow(
    device="pi",
    runtime="onnxruntime",
    threads=1,
    side="edge",
    network="ab" * 32,
    segment="head to a",
    bits="8",
    n=3,
    median_ms=1,
    p90_ms=1,
    low_ms=1,
    high_ms=1,
    source="profiled",
    last_seen_s=0,
)


class Stages:
    """Remembers which stages there were."""

    def __init__(self) -> None:
        self.titles: list[str] = []

    def stage(self, title: str, /) -> Progress:
        self.titles.append(title)
        return lambda _done, _total, _note="", /: None


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    """Every field that names a file names one that there is."""
    for name in ("calibration", "evaluation"):
        (tmp_path / name).mkdir()
        for seed in range(2):
            (tmp_path / name / f"{seed}.png").write_bytes(tiny.png(tiny.image(seed)))
    (tmp_path / "network.weights").write_bytes(b"weights")
    (tmp_path / "truth.json").write_text("{}")
    (tmp_path / "tables.json").write_text(to_json([ROW]))
    return Request(
        source=NetworkSource("yolov3-tiny", tmp_path / "network.weights"),
        link=parse_link("3mbit/20ms"),
        device=device_profile("this-machine"),
        calibration=tmp_path / "calibration",
        evaluation=tmp_path / "evaluation",
        annotations=tmp_path / "truth.json",
        tables=tmp_path / "tables.json",
        cache=tmp_path / "cache",
    )


@pytest.fixture
def bundle(tmp_path: Path, request_: Request) -> Path:
    tiny.build(tmp_path / "bundle")
    keep(request_, tmp_path / "bundle")
    return tmp_path / "bundle"


OTHERS: dict[str, Any] = {
    "accuracy": False,
    "source": NetworkSource("other"),
    "link": parse_link("3mbit/30ms"),
    "device": device_profile("half-core"),
    "constraints": constraints(max_drop=1.0),
    "strategy": "cloud-only",
    "quantizer": "nearest",
    "cloud_threads": 2,
    "runtime": "openvino",
    "max_images": 1,
    "narrow_cuts": 0,
    "refined_cuts": 0,
    "format_trials": 0,
    "video": True,
    "adapt_steps": 0,
    "context_steps": 100,
    "iou_threshold": 0.6,
    "max_detections": 7,
    "classes": ("cat",),
    "top": 5,
}
PATHS = {"calibration", "evaluation", "annotations", "tables"}


def test_the_same_request_keeps_the_bundle(request_: Request, bundle: Path) -> None:
    stages = Stages()
    manifest = search_unless_kept(request_, bundle, stages)
    assert manifest == Bundle.open(bundle).manifest
    assert stages.titles == ["searching plans (kept)"]


def test_where_things_lie_does_not_matter(request_: Request, bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(request_.calibration, tmp_path / "moved")
    moved = replace(request_, calibration=tmp_path / "moved", cache=None)
    assert kept(moved, bundle) is not None


@pytest.mark.parametrize("name", OTHERS)
def test_another_setting_does_not(request_: Request, bundle: Path, name: str) -> None:
    assert kept(replace(request_, **{name: OTHERS[name]}), bundle) is None


def test_a_network_counts_by_the_content_of_its_files(
    request_: Request, bundle: Path, tmp_path: Path
) -> None:
    model, card = tmp_path / "m.onnx", tmp_path / "m.toml"
    model.write_bytes(b"model")
    of_file = replace(request_, source=NetworkSource(str(model)))
    keep(of_file, bundle)
    assert kept(of_file, bundle) is not None
    card.write_text("labels = 'coco'")
    assert kept(of_file, bundle) is None
    keep(of_file, bundle)
    model.write_bytes(b"another")
    assert kept(of_file, bundle) is None
    assert kept(replace(request_, source=NetworkSource("yolov3-tiny")), bundle) is None


def test_a_torch_module_is_always_searched_anew(request_: Request, bundle: Path) -> None:
    of_code = replace(request_, source=NetworkSource("tests.classifiers:ColourClassifier"))
    keep(of_code, bundle)
    assert kept(of_code, bundle) is None


def test_the_same_number_may_limit_something_else(request_: Request, bundle: Path) -> None:
    keep(replace(request_, constraints=constraints(edge_memory=4000)), bundle)
    assert kept(replace(request_, constraints=constraints(max_bytes=4000)), bundle) is None


def test_every_setting_was_tried() -> None:
    names = {field.name for field in fields(Request)}
    assert names - PATHS - {"cache"} <= OTHERS.keys()


@pytest.mark.parametrize("name", sorted(PATHS - {"calibration"}))
def test_nor_does_a_file_more_or_less(request_: Request, bundle: Path, name: str) -> None:
    without: dict[str, Any] = {name: None}
    assert kept(replace(request_, **without), bundle) is None


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("calibration/0.png", tiny.png(tiny.image(9))),
        ("calibration/2.png", tiny.png(tiny.image(9))),
        ("evaluation/1.png", tiny.png(tiny.image(9))),
        ("network.weights", b"others"),
        ("truth.json", b"[]"),
        ("tables.json", to_json([ROW.model_copy(update={"n": 4})]).encode()),
    ],
)
def test_files_count_by_content(
    request_: Request, bundle: Path, tmp_path: Path, name: str, data: bytes
) -> None:
    (tmp_path / name).write_bytes(data)
    assert kept(request_, bundle) is None


def test_another_machine_is_another_search(request_: Request, bundle: Path) -> None:
    with one_core():
        assert kept(request_, bundle) is None
    assert kept(request_, bundle) is not None


def damaged(bundle: Path) -> None:
    (bundle / "report.md").write_text("changed")


def replaced(bundle: Path) -> None:
    shutil.rmtree(bundle)
    tiny.build(bundle, seed=1)


SPOILT: list[Callable[[Path], object]] = [
    damaged,
    replaced,
    shutil.rmtree,
    lambda bundle: bundle.with_name("bundle.key").unlink(),
    lambda bundle: bundle.with_name("bundle.key").write_bytes(b"\xff no key"),
]


@pytest.mark.parametrize("spoil", SPOILT, ids=["damaged", "replaced", "gone", "no key", "nonsense"])
def test_only_the_bundle_that_was_made_is_kept(
    request_: Request, bundle: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(bundle)
    assert kept(request_, bundle) is None


def test_the_key_is_no_part_of_the_bundle(request_: Request, bundle: Path) -> None:
    Bundle.open(bundle).close()
    assert bundle.with_name("bundle.key").read_text().startswith(search_key(request_))


def test_a_search_that_fails_leaves_the_bundle_as_it_was(request_: Request, bundle: Path) -> None:
    before = Bundle.open(bundle).digest
    with pytest.raises(ModelError, match="unknown model 'none'"):
        search_unless_kept(
            replace(request_, source=NetworkSource("none"), tables=None), bundle, Stages()
        )
    assert Bundle.open(bundle).digest == before
    assert kept(request_, bundle) is not None


def test_only_a_bundle_is_kept(request_: Request, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        keep(request_, tmp_path / "calibration")
    assert not (tmp_path / "calibration.key").exists()
