"""A real search, its bundle deployed: two processes, real images, boxes that hold up."""

import csv
from pathlib import Path

import httpx
import pytest

from bench.processes import Service
from common.bundle.bundle import Bundle
from common.errors import NoFeasiblePlanError
from common.link.link import parse_link
from common.progress import Progress
from common.tasks.detections import Agreement, agreement
from search.bundling import search_to
from search.constraints import constraints
from search.prediction.devices import device_profile
from search.request import Request
from search.strategies import known_strategy
from splitpoint.cli import main
from splitpoint.demo.ways import detect, to_detections

# The first test makes the bundle.
pytestmark = pytest.mark.timeout(1200)


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


@pytest.fixture(scope="module")
def bundle(data_dir: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zipped bundle of YOLOv3-tiny for 5 MiB of edge memory."""
    out = tmp_path_factory.mktemp("search") / "bundle.zip"
    request = Request(
        model="yolov3-tiny",
        weights=tiny_weights,
        link=parse_link("500kbit/20ms"),  # so thin that the fewest bytes win
        device=device_profile("this-machine"),
        calibration=data_dir / "coco_train" / "images",
        constraints=constraints(edge_memory="5MiB", max_drop=20.0),
        max_images=32,  # 16 to fit, 16 that judge
        format_trials=1,
        adapt_steps=25,
        context_steps=100,
        video=True,
    )
    search_to(out, request, Silent())
    return out


def test_the_bundle_keeps_the_limits(bundle: Path) -> None:
    with Bundle.open(bundle) as opened:
        plans = opened.manifest.plans
        assert {"cloud-only", "split"} <= {plan.kind for plan in plans}
        assert "edge-only" not in {plan.kind for plan in plans}
        for plan in plans:
            assert plan.predicted.edge_memory_bytes <= 5 << 20
            upper = plan.predicted.accuracy_drop_upper
            assert upper is not None
            assert plan.predicted.accuracy_drop <= upper <= 20.0
            assert (plan.predicted.judged_images, plan.predicted.judged_by) == (16, "held-out")
        refined = [p for p in plans if p.codec is not None and p.codec.name == "context"]
        assert refined
        assert all(plan.looks_back for plan in refined)
        latencies = [plan.predicted.latency_ms for plan in plans]
        assert latencies == sorted(latencies)
        assert opened.file("report.md").read_text().startswith("# yolov3-tiny")


def test_two_processes_find_what_the_whole_network_finds(
    bundle: Path, data_dir: Path, tmp_path: Path
) -> None:
    with Bundle.open(bundle) as opened:
        splits = [plan for plan in opened.manifest.plans if plan.kind == "split"]
    truest = min(splits, key=lambda plan: plan.predicted.accuracy_drop)
    refined = next(plan for plan in splits if plan.looks_back)
    # Of 25 steps on 16 images nothing more is asked than that the adapted tail belongs to its head.
    least = {truest.name: 0.8, refined.name: 0.8 if refined == truest else 0.5}
    images = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:12]
    cloud_command = ["cloud", "--bundle", str(bundle), "--grpc-port", "0", "--rest-port", "0"]
    found = {name: Agreement() for name in least}
    with Service(cloud_command, tmp_path / "cloud.log") as cloud:
        address = f"127.0.0.1:{cloud.ready['grpc']}"
        command = ["edge", "--bundle", str(bundle), "--cloud", address, "--listen", "127.0.0.1:0"]
        with (
            Service(command, tmp_path / "edge.log") as edge,
            httpx.Client(trust_env=False) as client,
        ):
            url = "http://127.0.0.1:{}/v1/detect"
            for image in images:
                whole = detect(client, url.format(cloud.ready["rest"]), image)
                for name in least:
                    ours = detect(client, url.format(edge.ready["rest"]), image, plan=name)
                    assert ours["plan"]["name"] == name
                    assert 0 < ours["uplink_bytes"] < 120_000
                    found[name] += agreement(to_detections(whole), to_detections(ours))
    for name, share in least.items():
        expected = found[name].matched + found[name].missing
        assert expected >= 20
        assert found[name].matched >= share * expected
        assert found[name].extra <= (1 - share) * expected


@pytest.mark.parametrize("strategy", ["dads", "auto-split-v2"])
def test_a_baseline_is_deployed_as_our_own_plans_are(
    strategy: str, data_dir: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    request = Request(
        model="yolov3-tiny",
        weights=tiny_weights,
        link=parse_link("500kbit/20ms"),  # so thin that the fewest bytes win
        device=device_profile("tenth-core"),
        calibration=data_dir / "coco_train" / "images",
        strategy=known_strategy(strategy),
        constraints=constraints(edge_memory="12MiB", max_drop=30.0),
        max_images=24,
    )
    found = search_to(tmp_path / "bundle", request, Silent())
    assert f"Chosen by {strategy}" in (tmp_path / "bundle" / "report.md").read_text()
    with Bundle.open(tmp_path / "bundle") as opened:
        plans = opened.manifest.plans
        assert [plan.name for plan in plans] == [j.candidate.name for j in found.kept]
        assert all(plan.predicted.accuracy_drop <= 30.0 for plan in plans)


def test_a_baseline_that_knows_no_memory_limit_is_told_what_it_would_need(
    data_dir: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    request = Request(
        model="yolov3-tiny",
        weights=tiny_weights,
        link=parse_link("100kbit/20ms"),
        device=device_profile("this-machine"),
        calibration=data_dir / "coco_train" / "images",
        strategy=known_strategy("dads"),
        constraints=constraints(edge_memory="4MiB"),
        max_images=24,
    )
    with pytest.raises(
        NoFeasiblePlanError, match=r"--edge-memory 11\.77MiB \(edge-only fits then\)"
    ):
        search_to(tmp_path / "bundle", request, Silent())
    assert not (tmp_path / "bundle").exists()


def test_stages_run_on_their_own(data_dir: Path, tiny_weights: Path, tmp_path: Path) -> None:
    common = [
        *("--model", "yolov3-tiny", "--weights", str(tiny_weights), "--max-images", "24"),
        *("--calibration", str(data_dir / "coco_train" / "images")),
        *("--cache", str(tmp_path / "cache")),
    ]

    def run(*arguments: str) -> None:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, *common])
        assert ended.value.code == 0

    run("profile", "--stats", "--out", str(tmp_path / "profile"))
    rows = list(csv.DictReader((tmp_path / "profile" / "layers.csv").read_text().splitlines()))
    assert rows[0]["name"] == "conv_0"
    widths, heads = tmp_path / "widths", tmp_path / "heads"
    limit = ("--edge-memory", "5MiB", "--sensitivity", "squared")
    run("allocate", *limit, "--method", "lagrangian", "--out", str(widths))
    index = list(csv.DictReader((widths / "configurations.csv").read_text().splitlines()))
    assert any(float(row["mean_weight_bits"]) < 8 for row in index)
    one = str(widths / "conv_8.yaml")
    run("quantize", "--widths", one, "--quantizer", "nearest", "--out", str(heads))
    (row,) = csv.DictReader((heads / "summary.csv").read_text().splitlines())
    assert row["name"] == row["cut"] == "conv_8"
    assert float(row["accuracy"]) > 80
