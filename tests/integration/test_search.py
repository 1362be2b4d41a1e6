"""A real search, its bundle deployed: two processes, real images, boxes that hold up."""

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bench.processes import Service
from common.bundle.bundle import Bundle
from common.errors import NoFeasiblePlanError, SettingsError
from common.link.link import parse_link
from common.progress import Progress
from common.tasks.base import Agreement, Task
from search.bundling import search_to
from search.constraints import constraints
from search.prediction.devices import device_profile
from search.request import Request
from search.source import NetworkSource
from search.strategies import known_strategy
from splitpoint.cli import main
from splitpoint.demo.ways import infer
from splitpoint.evaluating import evaluate
from tests import zoo

# The first test makes the bundle, in two minutes of a processor that it may have to share.
pytestmark = pytest.mark.timeout(3600)


class Silent:
    """Reports nothing."""

    def stage(self, _title: str, /) -> Progress:
        return lambda _done, _total, _note="", /: None


@pytest.fixture(scope="module")
def bundle(data_dir: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zipped bundle of YOLOv3-tiny for 5 MiB of edge memory."""
    out = tmp_path_factory.mktemp("search") / "bundle.zip"
    request = Request(
        source=NetworkSource("yolov3-tiny", tiny_weights),
        link=parse_link("500kbit/20ms"),  # so thin that the fewest bytes win
        device=device_profile("this-machine"),
        calibration=data_dir / "coco_train" / "images",
        constraints=constraints(edge_memory="5MiB", max_drop=20.0),
        max_images=32,  # 16 to fit, 16 that judge
        narrow_cuts=0,
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
            assert (plan.predicted.accuracy_drop or 0.0) <= upper <= 20.0
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
    truest = min(splits, key=lambda plan: plan.predicted.accuracy_drop or 0.0)
    refined = next(plan for plan in splits if plan.looks_back)
    # Of 25 steps on 16 images nothing more is asked than that the adapted tail belongs to its head.
    least = {truest.name: 0.8, refined.name: 0.8 if refined == truest else 0.5}
    images = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:12]
    cloud_command = ["cloud", "--bundle", str(bundle), "--grpc-port", "0", "--rest-port", "0"]
    found = {name: Agreement() for name in least}
    with Bundle.open(bundle) as opened:
        task: Task = opened.manifest.task
    with Service(cloud_command, tmp_path / "cloud.log") as cloud:
        address = f"127.0.0.1:{cloud.ready['grpc']}"
        command = ["edge", "--bundle", str(bundle), "--cloud", address, "--listen", "127.0.0.1:0"]
        with (
            Service(command, tmp_path / "edge.log") as edge,
            httpx.Client(trust_env=False) as client,
        ):
            url = "http://127.0.0.1:{}/v1/infer"
            for image in images:
                whole = infer(client, url.format(cloud.ready["rest"]), image)
                for name in least:
                    ours = infer(client, url.format(edge.ready["rest"]), image, plan=name)
                    assert ours["plan"]["name"] == name
                    assert 0 < ours["uplink_bytes"] < 120_000
                    found[name] += task.from_json(whole["result"]).agreement(
                        task.from_json(ours["result"])
                    )
    for name, share in least.items():
        expected = found[name].matched + found[name].missing
        assert expected >= 20
        assert found[name].matched >= share * expected
        assert found[name].extra <= (1 - share) * expected


def test_the_bundle_is_evaluated_on_annotated_images(
    bundle: Path, data_dir: Path, tmp_path: Path
) -> None:
    out, images = tmp_path / "found.json", 24
    folder = data_dir / "coco_val"
    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("evaluate", "--bundle", str(bundle), "--images", str(folder / "images")),
                *("--annotations", str(folder / "instances_val.json")),
                *("--max-images", str(images), "--threads", "2", "--json", str(out)),
            ]
        )
    assert not ended.value.code
    found = json.loads(out.read_text())
    assert (found["images"], found["warnings"]) == (images, [])
    whole = {(each["preset"], each["metric"]): each["accuracy"] for each in found["reference"]}
    assert 15 < whole["evaluation", "COCO AP"] < whole["evaluation", "COCO AP50"] < 70
    assert whole["serving", "COCO AP"] < whole["evaluation", "COCO AP"]
    for plan in found["plans"]:
        score = plan["scores"][0]
        assert (score["preset"], score["metric"]) == ("evaluation", "COCO AP")
        assert score["lost"] <= score["lost_at_most"]
        assert score["lost"] < 20  # of few pictures, and of tails that were hardly trained
        assert plan["kind"] != "split" or 0 < plan["uplink_bytes"] < 120_000


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Request]:
    """A search of a small network for an edge that holds a part of it."""
    folder = tmp_path_factory.mktemp("small")
    zoo.pictures(folder / "pictures", 32)
    with zoo.small_zoo(folder) as weights:
        yield Request(
            source=NetworkSource(zoo.NAME, weights),
            link=parse_link("500kbit/20ms"),  # so thin that the fewest bytes win
            device=device_profile("tenth-core"),
            calibration=folder / "pictures",
            constraints=constraints(edge_memory=40_000, max_drop=30.0),
        )


def test_a_bundle_is_evaluated_as_its_search_judged_it(small: Request, tmp_path: Path) -> None:
    """What the search measured of its candidates is what edge and cloud do with their files."""
    zoo.pictures(tmp_path / "judging", 24)
    request = replace(
        small,
        evaluation=tmp_path / "judging",
        iou_threshold=0.6,
        format_trials=1,
        adapt_steps=2,
        context_steps=20,
    )
    search_to(tmp_path / "bundle", request, Silent())
    found = evaluate(tmp_path / "bundle", tmp_path / "judging")
    with Bundle.open(tmp_path / "bundle") as opened:
        manifest = opened.manifest
    assert manifest.search.iou_threshold == found.presets["serving"].iou_threshold == 0.6
    assert len({plan.kind for plan in found.plans}) > 1
    for plan, evaluated in zip(manifest.plans, found.plans, strict=True):
        score, predicted = evaluated.scores[0], plan.predicted
        assert (score.preset, score.metric) == ("evaluation", manifest.search.accuracy_metric)
        assert score.accuracy == pytest.approx(predicted.accuracy)
        assert score.lost == pytest.approx(predicted.accuracy_drop)
        assert score.lost_at_most == pytest.approx(predicted.accuracy_drop_upper)


def test_a_detector_has_no_best_five(small: Request, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--top is for classifiers"):
        search_to(tmp_path / "bundle", replace(small, top=5), Silent())


@pytest.mark.parametrize("strategy", ["dads", "auto-split-v2"])
def test_a_baseline_is_deployed_as_our_own_plans_are(
    strategy: str, small: Request, tmp_path: Path
) -> None:
    request = replace(
        small,
        strategy=known_strategy(strategy),
        constraints=constraints(edge_memory=60_000, max_drop=30.0),
    )
    found = search_to(tmp_path / "bundle", request, Silent())
    assert f"Chosen by {strategy}" in (tmp_path / "bundle" / "report.md").read_text()
    with Bundle.open(tmp_path / "bundle") as opened:
        plans = opened.manifest.plans
        assert [plan.name for plan in plans] == [j.candidate.name for j in found.kept]
        assert all((plan.predicted.accuracy_drop or 0.0) <= 30.0 for plan in plans)


def test_a_baseline_that_knows_no_memory_limit_is_told_what_it_would_need(
    small: Request, tmp_path: Path
) -> None:
    request = replace(small, strategy=known_strategy("dads"), link=parse_link("10kbit/20ms"))
    with pytest.raises(NoFeasiblePlanError, match=r"--edge-memory 0\.05MiB \(edge-only fits"):
        search_to(tmp_path / "bundle", request, Silent())
    assert not (tmp_path / "bundle").exists()


def test_stages_run_on_their_own(small: Request, tmp_path: Path) -> None:
    common = [
        *("--model", small.model, "--weights", str(small.source.weights)),
        *("--calibration", str(small.calibration)),
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
    limit = ("--edge-memory", "28.3KiB", "--sensitivity", "squared")
    run("allocate", *limit, "--method", "lagrangian", "--out", str(widths))
    index = list(csv.DictReader((widths / "configurations.csv").read_text().splitlines()))
    assert any(float(row["mean_weight_bits"]) < 8 for row in index)
    one = str(widths / "conv_2.yaml")
    run("quantize", "--widths", one, "--quantizer", "nearest", "--out", str(heads))
    (row,) = csv.DictReader((heads / "summary.csv").read_text().splitlines())
    assert row["name"] == row["cut"] == "conv_2"
    assert float(row["accuracy"]) > 80
