"""`splitpoint evaluate`: plans as edge and cloud run them, their accuracy, bytes and times."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.bundle.bundle import Bundle
from common.errors import ParityError, SettingsError
from common.imaging.images import read_image
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import DEFAULTS, ResultSettings, TaskResult
from common.tasks.classification import Classes
from common.tasks.detections import Detections, as_detections
from edge.detector import Detector, find_plan
from edge.stream.client import CloudClient
from splitpoint import evaluation_runs
from splitpoint.cli import main
from splitpoint.deployed import DeployedPlans
from splitpoint.evaluating import evaluate
from splitpoint.evaluation import EvaluatedPlan, Evaluation, PlanScore
from tests import tiny
from tests.in_process import Cloud

SEEDS = (1, 2, 8, 11)
"""Of pictures in which the network finds something that is neither a line nor a point."""
LOW = ResultSettings(score_threshold=0.01)
PLANS = (*tiny.ALL_PLANS, tiny.SPLIT_8, tiny.SPLIT_CONTEXT)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", PLANS)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.pictures(tmp_path_factory.mktemp("images") / "i", SEEDS)


def references(bundle: Bundle, images: Path) -> list[TaskResult]:
    """Results of the whole network."""
    deployed, task = DeployedPlans(bundle, [next(iter(bundle.plans))]), bundle.manifest.task
    found = []
    for seed in SEEDS:
        image = read_image(images / f"{seed}.png")
        where = task.image.place(image.shape[1], image.shape[0])
        found.append(deployed.reference(task.image.pixels(image), where, LOW))
    return found


@pytest.fixture(scope="module")
def annotations(bundle: Bundle, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Truth made of the best detection in each picture that has an area."""
    objects = []
    for seed, result in zip(SEEDS, references(bundle, images), strict=True):
        records = result.to_records(seed, bundle.manifest.task.class_names)
        wide = [each for each in records if min(each["bbox"][2:]) > 1]
        objects.append({**wide[0], "id": seed, "iscrowd": 0})
    document = {
        "images": [{"id": seed, "file_name": f"{seed}.png"} for seed in SEEDS],
        "annotations": objects,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    path = tmp_path_factory.mktemp("truth") / "instances.json"
    path.write_text(json.dumps(document))
    return path


def plan_of(found: Evaluation, name: str) -> EvaluatedPlan:
    (plan,) = [each for each in found.plans if each.name == name]
    return plan


def score_of(scores: Sequence[PlanScore], metric: str, preset: str = "evaluation") -> PlanScore:
    (score,) = [each for each in scores if (each.metric, each.preset) == (metric, preset)]
    return score


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", [*PLANS, tiny.SPLIT_VIDEO])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    task = tiny.CLASSES.model_copy(update={"top": 5})
    return tiny.build(tmp_path_factory.mktemp("classes") / "b", task=task)


class TestDeployedPlans:
    @pytest.mark.parametrize("name", [*PLANS, tiny.SPLIT_VIDEO])
    def test_it_sends_and_finds_what_edge_and_cloud_do(self, played: Bundle, name: str) -> None:
        """A plan for sequences looks back at the picture before, on both sides."""
        cloud, digest = Cloud(played), find_plan(played, name)
        client = CloudClient(cloud.connect, pb.Hello(edge_id="t", bundle_digest=played.digest))
        detector = Detector(played, client, plans=[digest], report="none")
        deployed, task = DeployedPlans(played, [digest]), played.manifest.task
        for number in range(3):
            image = tiny.image(number)
            expected = as_detections(detector.detect(image, digest, LOW).result)
            where = task.image.place(image.shape[1], image.shape[0])
            done = deployed.run(digest, task.image.pixels(image), where, LOW)
            found = as_detections(done.result)
            np.testing.assert_array_equal(found.boxes, expected.boxes)
            np.testing.assert_array_equal(found.scores, expected.scores)
            sent = cloud.frames[-1] if cloud.frames else pb.Frame()
            sent.ClearField("measured")  # times of the frame before
            assert done.uplink_bytes == sent.ByteSize()
        detector.close()

    def test_the_stages_are_those_of_the_plan(self, bundle: Bundle, images: Path) -> None:
        found = evaluate(bundle, images, max_images=1)
        cloud = ["encode", "decode", "tail", "postprocess"]
        assert list(plan_of(found, tiny.SPLIT).stages_ms) == ["preprocess", "head", *cloud]
        assert list(plan_of(found, tiny.CLOUD_ONLY).stages_ms) == ["preprocess", *cloud]
        edge = ["preprocess", "head", "postprocess"]
        assert list(plan_of(found, tiny.EDGE_ONLY).stages_ms) == edge


class TestPresets:
    def test_stricter_settings_leave_what_decoding_by_them_finds(self, bundle: Bundle) -> None:
        """`within` stands in for a second run of every plan."""
        deployed, task = DeployedPlans(bundle), bundle.manifest.task
        strict = [
            ResultSettings(0.25),
            ResultSettings(0.6, max_detections=9),
            ResultSettings(0.01, max_detections=1),
        ]
        for digest in deployed.digests:
            for number in range(3):
                image = tiny.image(number)
                where = task.image.place(image.shape[1], image.shape[0])
                pixels = task.image.pixels(image)
                loose = deployed.run(digest, pixels, where, LOW).result
                for settings in strict:
                    expected = as_detections(deployed.run(digest, pixels, where, settings).result)
                    found = as_detections(loose.within(settings))
                    np.testing.assert_array_equal(found.boxes, expected.boxes)
                    np.testing.assert_array_equal(found.scores, expected.scores)

    def test_they_are_cocos_protocol_and_the_servers_defaults(
        self, bundle: Bundle, images: Path
    ) -> None:
        found = evaluate(bundle, images, max_images=1)
        assert found.presets == {"evaluation": LOW, "serving": DEFAULTS}

    def test_they_take_what_a_user_says(self, bundle: Bundle, images: Path) -> None:
        found = evaluate(
            *(bundle, images),
            score_threshold=0.5,
            iou_threshold=0.6,
            max_detections=7,
            classes=["dog"],
            max_images=1,
        )
        assert found.presets == {
            "evaluation": ResultSettings(0.01, 0.6, 100, (1,)),
            "serving": ResultSettings(0.5, 0.6, 7, (1,)),
        }

    def test_the_threshold_of_duplicates_is_that_of_the_search(
        self, images: Path, tmp_path: Path
    ) -> None:
        bundle = tiny.build(tmp_path / "b", searched={"iou_threshold": 0.6})
        found = evaluate(bundle, images, max_images=1)
        assert {each.iou_threshold for each in found.presets.values()} == {0.6}

    def test_a_high_threshold_costs_accuracy(
        self, bundle: Bundle, images: Path, annotations: Path
    ) -> None:
        found = evaluate(bundle, images, annotations=annotations, score_threshold=0.3)
        low = score_of(found.reference, "COCO AP")
        high = score_of(found.reference, "COCO AP", "serving")
        assert high.accuracy < low.accuracy


class TestAccuracy:
    def test_by_annotations(self, bundle: Bundle, images: Path, annotations: Path) -> None:
        found = evaluate(bundle, images, annotations=annotations)
        assert (found.images, found.truth, found.warnings) == (len(SEEDS), "annotations", ())
        assert [plan.name for plan in found.plans] == list(PLANS)
        for preset in ("evaluation", "serving"):
            whole = score_of(found.reference, "COCO AP", preset)
            lossless = score_of(plan_of(found, tiny.CLOUD_ONLY).scores, "COCO AP", preset)
            assert lossless == whole
            assert (whole.lost, whole.lost_at_most) == (0, 0)
        whole = score_of(found.reference, "COCO AP50")
        coarse = score_of(plan_of(found, tiny.SPLIT).scores, "COCO AP50")
        assert coarse.lost == pytest.approx(whole.accuracy - coarse.accuracy)
        assert coarse.lost is not None
        assert coarse.lost_at_most is not None
        assert coarse.lost_at_most >= coarse.lost

    def test_how_symbols_are_coded_costs_bytes_alone(self, bundle: Bundle, images: Path) -> None:
        found = evaluate(bundle, images, plans=[tiny.SPLIT, tiny.SPLIT_CONTEXT])
        one, other = found.plans
        assert one.scores == other.scores
        assert one.uplink_bytes != other.uplink_bytes

    def test_by_the_network_in_floating_point(self, bundle: Bundle, images: Path) -> None:
        found = evaluate(bundle, images)
        assert found.truth is None
        metrics = [score.metric for score in found.reference if score.preset == "serving"]
        assert metrics == ["pooled agreement AP50", "pooled agreement AP"]
        assert plan_of(found, tiny.EDGE_ONLY).uplink_bytes == 0
        sent = plan_of(found, tiny.CLOUD_ONLY)
        assert 0 < sent.uplink_bytes <= sent.uplink_bytes_p95

    def test_of_one_class(self, bundle: Bundle, images: Path, annotations: Path) -> None:
        document = json.loads(annotations.read_text())
        names = {each["id"]: each["name"] for each in document["categories"]}
        kind = names[document["annotations"][0]["category_id"]]
        found = evaluate(bundle, images, annotations=annotations, classes=[kind])
        assert score_of(found.reference, "COCO AP50").accuracy > 0

    def test_of_a_bundle_without_the_whole_network(
        self, images: Path, annotations: Path, tmp_path: Path
    ) -> None:
        private = tiny.build(tmp_path / "b", [tiny.SPLIT, tiny.EDGE_ONLY])
        found = evaluate(private, images, annotations=annotations)
        assert found.reference == ()
        assert {score.lost for plan in found.plans for score in plan.scores} == {None}
        with pytest.raises(SettingsError, match=r"no cloud-only plan.* give --annotations"):
            evaluate(private, images)

    def test_plans_that_this_machine_does_not_reproduce(self, images: Path, tmp_path: Path) -> None:
        wrong = tiny.build(tmp_path / "b", wrong_vector=True)
        found = evaluate(wrong, images, max_images=2)
        assert [plan.name for plan in found.plans] == [tiny.CLOUD_ONLY]
        assert found.left_out == (tiny.EDGE_ONLY, tiny.SPLIT)
        with pytest.raises(ParityError):
            evaluate(wrong, images, plans=[tiny.SPLIT])


class TestOtherTasks:
    def test_a_classifier_by_its_labels(
        self, classifier: Bundle, images: Path, tmp_path: Path
    ) -> None:
        """Three labels are the network's best class, one is its third."""
        lines = []
        for seed, result in zip(SEEDS, references(classifier, images), strict=True):
            assert isinstance(result, Classes)
            lines.append(f"{seed}.png,{result.indices[2 if seed == 1 else 0]}\n")
        (tmp_path / "labels.csv").write_text("".join(lines))
        found = evaluate(classifier, images, labels=tmp_path / "labels.csv")
        assert list(found.presets) == ["serving"]
        accuracies = {score.metric: score.accuracy for score in found.reference}
        assert accuracies == {"top-1 accuracy": 75, "top-5 accuracy": 100}
        assert found.truth == "labels"

    def test_a_classifier_by_class_folders(self, classifier: Bundle, tmp_path: Path) -> None:
        for kind in ("kind 1", "kind 2"):
            tiny.pictures(tmp_path / "images" / kind, range(2))
        found = evaluate(classifier, tmp_path / "images", labels=tmp_path / "images")
        assert found.images == 4
        assert found.truth_sha256 is None

    def test_a_classifier_without_labels(self, classifier: Bundle, images: Path) -> None:
        found = evaluate(classifier, images)
        assert [score.metric for score in found.reference] == ["top-1 agreement"]
        assert score_of(found.reference, "top-1 agreement", "serving").accuracy == 100

    def test_tensors(self, images: Path, tmp_path: Path) -> None:
        found = evaluate(tiny.build(tmp_path / "b", task=tiny.TENSORS), images)
        exact, coarse = (plan_of(found, name).scores[0] for name in (tiny.CLOUD_ONLY, tiny.SPLIT))
        assert exact.accuracy == 100
        assert exact.lost == 0
        assert coarse.accuracy < 100

    def test_tensors_that_would_fill_the_memory(
        self, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(evaluation_runs, "_MOST_RESULT_BYTES", 10_000)  # of one picture 3,584
        bundle = tiny.build(tmp_path / "b", task=tiny.TENSORS)
        with pytest.raises(SettingsError, match=r"results of 4 pictures .*--max-images 2"):
            evaluate(bundle, images)
        assert evaluate(bundle, images, max_images=2).images == 2


def test_nothing_detected_loses_everything() -> None:
    from search.measure.accuracy import AgreementAccuracy

    one = Detections(
        np.array([[0, 0, 10, 10]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
    )
    source = AgreementAccuracy([one] * 9)
    assert source.accuracy([Detections.empty()] * 9) == 0
    assert source.most_lost([one] * 9, [Detections.empty()] * 9, 0.9) == pytest.approx(100)


class TestCommand:
    def test_it_shows_a_table_and_writes_all_of_it(
        self,
        bundle: Bundle,
        images: Path,
        annotations: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "found.json"
        options = ["--images", images, "--annotations", annotations, "--json", out]
        assert _run("--bundle", bundle.root, *options) == 0
        shown = capsys.readouterr().out
        for word in ("evaluation preset: scores from 0.01", "serving preset: scores from 0.25"):
            assert word in shown
        for word in ("COCO AP50", "floating point", "p95", *PLANS):
            assert word in shown
        document = json.loads(out.read_text())
        assert document["bundle"] == bundle.digest.hex()
        assert {plan["name"] for plan in document["plans"]} == set(PLANS)
        assert {len(document[key]) for key in ("images_sha256", "truth_sha256")} == {64}
        assert document["machine"]["packages"]["pycocotools"]
        assert document["plans"][0]["scores"][0].keys() == {
            *("preset", "metric", "accuracy", "lost", "lost_at_most")
        }

    def test_names_that_do_not_match_are_said(
        self,
        bundle: Bundle,
        images: Path,
        annotations: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        document = json.loads(annotations.read_text())
        kinds = {each["category_id"] for each in document["annotations"]}
        for category in document["categories"]:
            if category["id"] not in kinds or len(kinds) > 1:
                category["name"] = "lynx"
                break
        (tmp_path / "lynx.json").write_text(json.dumps(document))
        options = ["--images", images, "--annotations", tmp_path / "lynx.json"]
        assert _run("--bundle", bundle.root, *options, "--plan", tiny.SPLIT) == 0
        assert "warning: 1 of the network's 2 classes are no category" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--images", "{none}"], 66, "expected a folder of images"),
            (["--images", "{empty}"], 66, "no image in this folder"),
            (["--images", "{broken}"], 66, "1 of 1 images cannot be used"),
            (["--images", "{images}", "--plan", "nope"], 65, "it has split-4, cloud-only-png"),
            (
                ["--images", "{images}", "--annotations", "{others}"],
                66,
                "does not list 4 of 4 evaluation images, e.g. 1.png",
            ),
            (["--images", "{images}", "--annotations", "{broken}/a.png"], 66, "not a COCO"),
            (["--images", "{images}", "--labels", "{others}"], 64, "give --annotations"),
            (["--images", "{images}", "--class", "cow"], 64, "no class 'cow'"),
            (["--images", "{images}", "--iou-threshold", "0"], 64, "expected a number in (0, 1]"),
            (["--images", "{images}", "--json", "{images}"], 64, "give the name of a file"),
            (["--images", "{images}", "--runtime", "tpu"], 64, "onnxruntime"),
        ],
    )
    def test_a_mistake_is_one_line(
        self,
        bundle: Bundle,
        images: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        for name in ("empty", "broken"):
            (tmp_path / name).mkdir()
        (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
        others = {"images": [{"id": 1, "file_name": "x.png"}], "annotations": [], "categories": []}
        (tmp_path / "others.json").write_text(json.dumps(others))
        places: dict[str, Any] = {name: tmp_path / name for name in ("none", "empty", "broken")}
        places |= {"images": images, "others": tmp_path / "others.json"}
        options = [argument.format(**places) for argument in arguments]
        assert _run("--bundle", bundle.root, *options) == code
        assert message in _error(capsys)

    def test_labels_of_unknown_classes(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tiny.build(tmp_path / "b", task=tiny.CLASSES)
        lines = [f"{seed}.png,cow\n" for seed in SEEDS]
        (tmp_path / "labels.csv").write_text("".join(lines))
        options = ["--images", images, "--labels", tmp_path / "labels.csv"]
        assert _run("--bundle", tmp_path / "b", *options) == 66
        assert "labels.csv: no class 'cow'; there are 14: kind 0" in _error(capsys)

    def test_a_truncated_bundle(
        self, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tiny.build(tmp_path / "b")
        tail = tmp_path / "b" / "tail.onnx"
        tail.write_bytes(tail.read_bytes()[:-1])
        assert _run("--bundle", tmp_path / "b", "--images", images) == 65
        assert "tail.onnx: " in _error(capsys)


def test_it_needs_no_torch(bundle: Bundle, images: Path) -> None:
    code = (
        "import sys; from splitpoint import evaluate; "
        f"evaluate({str(bundle.root)!r}, {str(images)!r}, max_images=1); "
        "print([name for name in ('torch', 'onnx', 'scipy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_no_pictures_at_all_are_refused(bundle: Bundle, images: Path) -> None:
    with pytest.raises(SettingsError, match="--max-images 0: expected 1 or more"):
        evaluate(bundle, images, max_images=0)


def test_pictures_are_spread_over_the_folder(bundle: Bundle, tmp_path: Path) -> None:
    folder = tiny.pictures(tmp_path / "i", range(5))
    digests = []
    for changed in (None, "1.png", "2.png"):
        if changed is not None:
            Image.fromarray(tiny.image(9)).save(folder / changed)
        found = evaluate(bundle, folder, max_images=3, plans=[tiny.EDGE_ONLY])
        assert found.images == 3
        digests.append(found.images_sha256)
    assert digests[0] == digests[1] != digests[2]  # of 0, 2 and 4


def _run(*arguments: object) -> int:
    """The exit code, whichever way the command line ends."""
    try:
        return main(["evaluate", *map(str, arguments)])
    except SystemExit as end:
        return int(end.code or 0)


def _error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error, apart from progress, which rich 14.0 ends by an empty line."""
    printed = capsys.readouterr().err.splitlines()
    lines = [line for line in printed if line and ": done in" not in line]
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
