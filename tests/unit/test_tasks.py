"""Classification and tensors: results there and back, hostile values, and through both ends."""

import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from cloud import rest as cloud_rest
from cloud.admission import Admission
from cloud.data_plane import DataPlane
from cloud.edges import MOST_REPORTS, Edge, ReportedResult
from cloud.store.samples import SampleSource
from cloud.tails import Tails
from common.bundle.bundle import Bundle
from common.bundle.manifest import SCHEMA_VERSION
from common.errors import (
    BundleError,
    BundleVersionError,
    ModelError,
    PayloadError,
    SettingsError,
    WrongTaskError,
)
from common.rpc import splitpoint_pb2 as pb
from common.tasks.base import Agreement, ImageInput, ResultSettings, Task
from common.tasks.classification import Classes, ClassificationTask
from common.tasks.detections import Detections
from common.tasks.draw import annotate
from common.tasks.registry import read_task
from common.tasks.tensors import MAX_TENSOR_BYTES, Tensors, TensorsTask, relative_error
from edge import rest as edge_rest
from edge.detector import Detector, find_plan
from edge.stream.client import CloudClient
from splitpoint.demo.ways import Way, same_findings
from tests import tiny
from tests.asgi import request
from tests.in_process import Cloud

PLANS = (tiny.SPLIT_8, tiny.CLOUD_ONLY, tiny.EDGE_ONLY)
INF, NAN = float("inf"), float("nan")
WHERE = tiny.CLASSES.image.place(48, 40)
NAMES = tiny.CLASSES.class_names


def classes(*pairs: tuple[int, float]) -> Classes:
    return Classes(
        np.array([index for index, _ in pairs], np.int32),
        np.array([score for _, score in pairs], np.float32),
    )


def tensors(*values: Any) -> Tensors:
    return Tensors(tuple(np.array(each, np.float32) for each in values))


def output(**values: float) -> list[Any]:
    row = np.zeros(14, np.float32)
    for name, value in values.items():
        row[int(name.removeprefix("k"))] = value
    return [row]


class TestClassification:
    def test_the_best_classes_of_logits(self) -> None:
        found = tiny.CLASSES.decode(output(k3=5, k7=4, k1=1), WHERE)
        assert isinstance(found, Classes)
        assert found.indices.tolist() == [3, 7, 1]
        powers = np.exp([5, 4, 1])
        np.testing.assert_allclose(found.scores, powers / (powers.sum() + 11), rtol=1e-5)

    def test_probabilities_are_taken_as_they_are(self) -> None:
        task = tiny.CLASSES.model_copy(update={"output": "probabilities"})
        found = task.decode(output(k3=0.75, k7=0.25), WHERE)
        assert isinstance(found, Classes)
        assert found.scores.tolist() == [0.75, 0.25, 0.0]

    @pytest.mark.parametrize("shape", [(14, 1, 1), (1, 14), (1, 1, 14)])
    def test_sides_of_one_do_not_count(self, shape: tuple[int, ...]) -> None:
        found = tiny.CLASSES.decode([output(k3=5)[0].reshape(shape)], WHERE)
        assert isinstance(found, Classes)
        assert found.indices[0] == 3

    def test_only_the_classes_that_are_asked_for(self) -> None:
        settings = ResultSettings(classes=tiny.CLASSES.class_indices(["kind 7", "1"]))
        found = tiny.CLASSES.decode(output(k3=5, k7=4, k1=1), WHERE, settings)
        assert isinstance(found, Classes)
        assert found.indices.tolist() == [7, 1]

    def test_a_class_that_is_not_there(self) -> None:
        with pytest.raises(SettingsError, match=r"no class 'bus'; there are 14: kind 0, .*\.\.\."):
            tiny.CLASSES.class_indices(["bus"])

    @pytest.mark.parametrize("kind", ["logits", "probabilities"])
    @pytest.mark.parametrize("value", [NAN, INF, -INF, 3e38, -3e38, 0.0])
    def test_hostile_values_neither_warn_nor_win(self, kind: str, value: float) -> None:
        task = tiny.CLASSES.model_copy(update={"output": kind})
        for row in (np.full(14, value, np.float32), output(k3=0.5, k7=value)[0]):
            with np.errstate(all="raise", under="ignore"):
                found = task.decode([row], WHERE)
            assert isinstance(found, Classes)
            assert np.isfinite(found.scores).all()
            assert ((found.scores >= 0) & (found.scores <= 1)).all()
            if not np.isfinite(value) and row[3] == 0.5:
                assert found.indices[0] == 3

    @pytest.mark.parametrize("shapes", [[(13,)], [(14, 2)], [(14,), (14,)], []])
    def test_other_outputs_are_refused(self, shapes: list[tuple[int, ...]]) -> None:
        with pytest.raises(ModelError, match=r"classification: expected one output \(14\)"):
            tiny.CLASSES.decode([np.zeros(shape, np.float32) for shape in shapes], WHERE)

    def test_agreement_is_about_the_best_class(self) -> None:
        one, same, other = classes((3, 0.9)), classes((3, 0.5), (4, 0.4)), classes((4, 0.9))
        assert one.agreement(same) == Agreement(1, 0, 0)
        assert one.agreement(other) == Agreement(0, 1, 1)
        assert one.agreement(classes()) == Agreement(0, 1, 0)

    def test_it_is_written_onto_the_picture(self) -> None:
        picture = np.full((120, 200, 3), 90, np.uint8)
        drawn = np.asarray(annotate(picture, classes((3, 0.9), (1, 0.1)), NAMES))
        assert (drawn[:20, :60] != 90).any()
        assert (drawn[60:] == 90).all()
        assert (picture == 90).all()

    def test_a_picture_too_small_for_words(self) -> None:
        picture = np.full((5, 4, 3), 90, np.uint8)
        assert annotate(picture, classes((3, 0.9)), NAMES).size == (4, 5)


class TestTensors:
    def test_outputs_of_any_rank_are_kept(self) -> None:
        outputs = [np.array(3, np.float32), np.ones((2, 3, 4, 5), np.float32)]
        found = tiny.TENSORS.decode(outputs, WHERE)
        assert isinstance(found, Tensors)
        assert [each.shape for each in found.tensors] == [(), (2, 3, 4, 5)]

    def test_outputs_are_bounded_in_bytes(self) -> None:
        with pytest.raises(ModelError, match=f"at most {MAX_TENSOR_BYTES} bytes"):
            tiny.TENSORS.decode([np.zeros(MAX_TENSOR_BYTES // 4 + 1, np.float32)], WHERE)
        assert tiny.TENSORS.decode([np.zeros(MAX_TENSOR_BYTES // 4, np.float32)], WHERE)

    def test_nothing_is_drawn(self) -> None:
        picture = np.full((20, 30, 3), 90, np.uint8)
        assert (np.asarray(annotate(picture, tensors([1, 2]), ())) == 90).all()

    def test_agreement_counts_outputs(self) -> None:
        expected = tensors([1.0, 1.0], [[2.0]])
        assert expected.agreement(tensors([1.0, 1.05], [[3.0]])) == Agreement(1, 1, 1)
        assert expected.agreement(expected) == Agreement(2, 0, 0)

    def test_relative_error(self) -> None:
        one = np.array([3, 4, NAN], np.float32)
        assert relative_error(one, one) == 0
        assert relative_error(one, np.array([3, 3, NAN], np.float32)) == pytest.approx(0.2)
        assert relative_error(one, np.array([3, 4, 0], np.float32)) == INF


TASKS: list[Any] = [
    pytest.param(tiny.CLASSES, classes((3, 0.5), (1, 0.25)), id="classification"),
    pytest.param(tiny.CLASSES, classes(), id="classification of nothing"),
    pytest.param(tiny.TENSORS, tensors([[1, 2], [NAN, INF]], 5, []), id="tensors"),
    pytest.param(tiny.TENSORS, tensors(), id="no tensors"),
]


def parts(result: Any) -> list[Any]:
    if isinstance(result, Tensors):
        return [(each.shape, each.tobytes()) for each in result.tensors]
    return [result.indices.tolist(), result.scores.tolist()]


@pytest.mark.parametrize(("task", "result"), TASKS)
def test_there_and_back(task: Task, result: Any) -> None:
    for carrier in (pb.Result(), pb.Report()):
        result.write(carrier)
        data = carrier.SerializeToString()
        assert parts(task.read(type(carrier).FromString(data))) == parts(result)
    told = json.loads(json.dumps(result.to_json(task.class_names)))
    assert parts(task.from_json(told)) == parts(result)
    assert len(result.to_table(task.class_names).rows) == len(result)
    assert all(each["image_id"] == 7 for each in result.to_records(7, task.class_names))


@pytest.mark.parametrize(
    "message",
    [
        pb.Classes(indices=[1], scores=[0.5, 0.5]),
        pb.Classes(indices=[14], scores=[0.5]),
        pb.Classes(indices=[2**32 - 1], scores=[0.5]),
        pb.Classes(indices=[1], scores=[NAN]),
        pb.Classes(indices=[1], scores=[1.5]),
        pb.Classes(indices=[1] * 101, scores=[0.5] * 101),
        pb.Classes(indices=[1] * 100_000),
    ],
)
def test_classes_that_cannot_be_are_refused(message: pb.Classes) -> None:
    with pytest.raises(PayloadError, match=r"^classes: "):
        tiny.CLASSES.read(pb.Result(classes=message))


@pytest.mark.parametrize(
    "message",
    [
        pb.Tensors(ranks=[1], sides=[2], data=bytes(7)),
        pb.Tensors(ranks=[1], sides=[2, 1], data=bytes(8)),
        pb.Tensors(ranks=[2], sides=[2], data=bytes(8)),
        pb.Tensors(ranks=[9], sides=[1] * 9, data=bytes(4)),
        pb.Tensors(ranks=[0] * 65, data=bytes(4 * 65)),
        pb.Tensors(ranks=[2], sides=[2**31, 2**31], data=bytes(4)),
        pb.Tensors(data=bytes(4)),
        pb.Tensors(ranks=[1], sides=[(4 << 20) // 4 + 1], data=bytes((4 << 20) + 4)),
    ],
)
def test_tensors_that_cannot_be_are_refused(message: pb.Tensors) -> None:
    with pytest.raises(PayloadError, match=r"^tensors: "):
        tiny.TENSORS.read(pb.Result(tensors=message))


@pytest.mark.parametrize("task", [tiny.DETECTOR, tiny.CLASSES, tiny.TENSORS])
def test_no_result_or_that_of_another_task_is_refused(task: Task) -> None:
    with pytest.raises(PayloadError, match=f"^{task.message}: expected, got no result"):
        task.read(pb.Result())
    other = (
        pb.Result(classes=pb.Classes()) if task is tiny.TENSORS else pb.Result(tensors=pb.Tensors())
    )
    with pytest.raises(PayloadError, match=f"^{task.message}: expected, got "):
        task.read(other)


@pytest.mark.parametrize(
    "records", [[1], [{}], [{"class_index": "x"}], [{"shape": [2], "data": "!"}]]
)
@pytest.mark.parametrize("task", [tiny.DETECTOR, tiny.CLASSES, tiny.TENSORS])
def test_json_that_is_no_result_is_refused(task: Task, records: list[Any]) -> None:
    with pytest.raises(PayloadError):
        task.from_json(records)


def test_a_task_is_read_by_its_kind() -> None:
    for task in (tiny.DETECTOR, tiny.CLASSES, tiny.TENSORS):
        assert read_task(json.loads(task.model_dump_json())) == task
    with pytest.raises(SettingsError, match="divination"):
        read_task({"kind": "divination"})
    with pytest.raises(SettingsError, match=r"task: classification\.top"):
        read_task({**tiny.CLASSES.model_dump(), "top": 0})


def test_a_large_result_is_not_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports wait in a queue of the edge, and the cloud would not keep it."""
    bundle = tiny.build(tmp_path / "b", PLANS, task=tiny.TENSORS)
    cloud = Cloud(bundle)
    client = CloudClient(cloud.connect, pb.Hello(edge_id="test", bundle_digest=bundle.digest))
    detector = Detector(bundle, client, report="results")
    plan = find_plan(bundle, tiny.EDGE_ONLY)
    size = detector.detect(tiny.image(), plan).result.size_bytes
    monkeypatch.setattr("edge.detector.MAX_REPORTED_BYTES", size - 1)
    detector.detect(tiny.image(), plan)
    assert detector.reporter is not None
    detector.reporter.close(timeout_s=60)
    detector.close()
    reports = [message.report for message in cloud.messages if message.HasField("report")]
    assert [report.WhichOneof("outcome") for report in reports] == ["tensors", None]


def test_reports_are_bounded_in_bytes() -> None:
    async def nowhere(message: pb.CloudMessage) -> None:
        """Sent, and never answered."""

    edge = Edge(SampleSource("door", "box", "runtime"), "00" * 32, "1", nowhere)
    for number in range(MOST_REPORTS):
        edge.found(ReportedResult(number, bytes(32), 0.0, tensors(np.zeros(4000))))
    assert [each.frame_id for each in edge.results] == list(range(MOST_REPORTS - 3, MOST_REPORTS))
    edge.found(ReportedResult(99, bytes(32), 0.0, tensors(np.zeros(40_000))))
    assert not edge.results


class TestBundles:
    @pytest.mark.parametrize("task", [tiny.CLASSES, tiny.TENSORS])
    def test_the_manifest_keeps_the_task(self, tmp_path: Path, task: Any) -> None:
        assert tiny.build(tmp_path / "b", [tiny.SPLIT], task=task).manifest.task == task

    def test_an_edge_only_plan_must_suit_the_task(self, tmp_path: Path) -> None:
        other = tiny.CLASSES.model_copy(update={"class_names": ("cat", "dog")})
        with pytest.raises(
            (BundleError, ValueError), match=r"edge-only.*expected one output \(2\)"
        ):
            tiny.build(tmp_path / "b", [tiny.EDGE_ONLY], task=other)

    def test_a_bundle_of_the_schema_before_is_refused_in_one_line(self, tmp_path: Path) -> None:
        tiny.build(tmp_path / "b", [tiny.SPLIT]).close()
        manifest = tmp_path / "b" / "manifest.json"
        data = json.loads(manifest.read_bytes()) | {"schema_version": SCHEMA_VERSION - 1}
        manifest.write_text(json.dumps(data))
        with pytest.raises(BundleVersionError, match="search again with this version"):
            Bundle.open(tmp_path / "b")


@pytest.fixture(scope="module", params=[tiny.CLASSES, tiny.TENSORS], ids=["classes", "tensors"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.build(tmp_path_factory.mktemp("bundle") / "b", PLANS, task=request.param)


@pytest.fixture
def detector(bundle: Bundle) -> Iterator[Detector]:
    """An edge whose cloud is a function call."""
    cloud = Cloud(bundle)
    client = CloudClient(
        cloud.connect, pb.Hello(edge_id="test", bundle_digest=bundle.digest), answer_timeout_s=60
    )
    detector = Detector(bundle, client, report="results")
    yield detector
    detector.close()


@pytest.fixture
def apps(bundle: Bundle, detector: Detector) -> Iterable[dict[str, FastAPI]]:
    with ThreadPoolExecutor(1) as workers:
        plane = DataPlane(Tails(bundle), Admission(workers, 1))
        yield {"cloud": cloud_rest.create_app(plane), "edge": edge_rest.create_app(detector)}


class TestBothEnds:
    """A bundle of each task through edge, cloud and REST."""

    @pytest.mark.parametrize("name", PLANS)
    def test_every_plan_gives_the_tasks_result(
        self, bundle: Bundle, detector: Detector, name: str
    ) -> None:
        outcome = detector.detect(tiny.image(), find_plan(bundle, name))
        whole = detector.detect(tiny.image(), find_plan(bundle, tiny.CLOUD_ONLY))
        assert len(outcome.result) > 0
        assert outcome.result.agreement(whole.result).matched == 1
        with pytest.raises(WrongTaskError, match="no detections"):
            assert outcome.detections
        assert type(outcome.result) is type(bundle.manifest.task.empty())

    @pytest.mark.parametrize("end", ["edge", "cloud"])
    def test_infer_answers_with_the_result(
        self, bundle: Bundle, detector: Detector, apps: dict[str, FastAPI], end: str
    ) -> None:
        task: Task = bundle.manifest.task
        answer = request(apps[end], "POST", "/v1/infer", content=tiny.png()).json()
        assert answer["task"] == task.kind
        assert answer["image"] == {"width": 48, "height": 40}
        expected = detector.detect(tiny.image(), find_plan(bundle, tiny.CLOUD_ONLY)).result
        assert expected.agreement(task.from_json(answer["result"])).matched == 1

    @pytest.mark.parametrize("end", ["edge", "cloud"])
    def test_detect_names_the_route_that_serves(self, apps: dict[str, FastAPI], end: str) -> None:
        answer = request(apps[end], "POST", "/v1/detect", content=tiny.png())
        assert answer.status_code == 409
        assert "POST /v1/infer" in answer.json()["error"]["message"]

    def test_reports_are_shown_by_the_cloud(self, bundle: Bundle, detector: Detector) -> None:
        detector.detect(tiny.image(), find_plan(bundle, tiny.EDGE_ONLY))
        assert detector.reporter is not None
        detector.reporter.close(timeout_s=60)
        assert (detector.reporter.sent, detector.reporter.lost) == (1, 0)

    def test_the_clouds_routes_of_reports(self, apps: dict[str, FastAPI]) -> None:
        answer = request(apps["cloud"], "GET", "/v1/edges/door/detections")
        assert answer.status_code == 409
        assert "/v1/edges/NAME/results" in answer.json()["error"]["message"]
        assert request(apps["cloud"], "GET", "/v1/edges/door/results").status_code == 404


def test_infer_serves_detections_too(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b")
    with ThreadPoolExecutor(1) as workers:
        app = cloud_rest.create_app(DataPlane(Tails(bundle), Admission(workers, 1)))
        boxes = request(app, "POST", "/v1/detect", content=tiny.png()).json()["detections"]
        answer = request(app, "POST", "/v1/infer", content=tiny.png()).json()
        few = {"max_detections": "1", "classes": "dog"}
        dogs = request(app, "POST", "/v1/detect", content=tiny.png(), params=few).json()
        strict = request(
            app, "POST", "/v1/infer", content=tiny.png(), params={"iou_threshold": "0"}
        )
        wrong = request(app, "POST", "/v1/infer", content=tiny.png(), params={"classes": "cow"})
    assert answer["task"] == "detection"
    assert answer["result"] == boxes
    assert [each["class_name"] for each in dogs["detections"]] == ["dog"]
    assert strict.status_code == 422
    assert "iou_threshold" in strict.json()["error"]["message"]
    assert wrong.status_code == 422
    assert "no class 'cow'" in wrong.json()["error"]["message"]


def test_settings_hold_over_the_wire(tmp_path: Path) -> None:
    bundle = tiny.build(tmp_path / "b")
    cloud = Cloud(bundle)
    client = CloudClient(cloud.connect, pb.Hello(edge_id="test", bundle_digest=bundle.digest))
    detector = Detector(bundle, client)
    plan = find_plan(bundle, tiny.SPLIT)
    one = detector.detect(tiny.image(), plan, ResultSettings(max_detections=1)).detections
    dogs = detector.detect(tiny.image(), plan, ResultSettings(classes=(1,))).detections
    wanted = ResultSettings(0.5, 0.125, 7, (0, 1))
    detector.detect(tiny.image(), plan, wanted)
    with pytest.raises(SettingsError, match="IoU threshold 0"):
        detector.detect(tiny.image(), plan, ResultSettings(iou_threshold=0))
    detector.close()
    assert isinstance(one, Detections)
    assert len(one) == 1
    assert set(dogs.classes.tolist()) == {1}
    assert ResultSettings.from_frame(cloud.frames[-1]) == wanted


@pytest.mark.parametrize(
    "frame",
    [
        pb.Frame(score_threshold=1.5),
        pb.Frame(iou_threshold=NAN),
        pb.Frame(max_detections=1001),
        pb.Frame(classes=[65536]),
        pb.Frame(classes=[0] * 1001),
    ],
)
def test_settings_that_cannot_be_are_refused(frame: pb.Frame) -> None:
    with pytest.raises(PayloadError, match="settings of the frame"):
        ResultSettings.from_frame(frame)


class TestFit:
    """Images in the network's input, fitted in every way."""

    IMAGE = np.asarray(Image.fromarray(tiny.image()).resize((80, 40)))

    def test_top_left(self) -> None:
        geometry = ImageInput(height=40, width=40, fit="letterbox-top-left", padding=114)
        pixels = geometry.pixels(self.IMAGE)
        assert (pixels[:, 20:] == 114).all()
        assert (pixels[:, :20] != 114).any()
        place = geometry.place(80, 40)
        boxes = place.to_image(np.array([[0, 0, 40, 20], [10, 5, 20, 10]], np.float32))
        assert boxes.tolist() == [[0, 0, 80, 40], [20, 10, 40, 20]]

    def test_stretch(self) -> None:
        geometry = ImageInput(height=40, width=40, fit="stretch")
        expected = Image.fromarray(self.IMAGE).resize((40, 40), Image.Resampling.BILINEAR)
        assert (geometry.pixels(self.IMAGE) == np.asarray(expected).transpose(2, 0, 1)).all()
        boxes = geometry.place(80, 40).to_image(np.array([[10, 10, 20, 20]], np.float32))
        assert boxes.tolist() == [[20, 10, 40, 20]]

    def test_centre_crop(self) -> None:
        geometry = ImageInput(height=40, width=40, fit="centre-crop")
        assert (geometry.pixels(self.IMAGE) == self.IMAGE[:, 20:60].transpose(2, 0, 1)).all()
        boxes = geometry.place(80, 40).to_image(np.array([[0, 0, 40, 40]], np.float32))
        assert boxes.tolist() == [[20, 0, 60, 40]]

    @pytest.mark.parametrize("size", [(640, 427), (375, 500), (512, 512), (640, 480)])
    def test_imagenet_crop_is_torchvision_s(self, size: tuple[int, int]) -> None:
        """Resize(256) and CenterCrop(224), but for the border, where a crop sees less."""
        rng = np.random.default_rng(0)
        noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        image = noise.resize(size, Image.Resampling.BICUBIC)
        width, height = (256 * side // min(size) for side in size)
        left, top = (round((side - 224) / 2) for side in (width, height))
        scaled = image.resize((width, height), Image.Resampling.BILINEAR)
        expected = np.asarray(scaled.crop((left, top, left + 224, top + 224)))
        geometry = ImageInput(height=224, width=224, fit="imagenet-crop")
        found = geometry.pixels(np.asarray(image)).transpose(1, 2, 0)
        off = np.abs(found.astype(int) - expected)[2:-2, 2:-2]
        place = geometry.place(*size)
        assert (-place.left, -place.top) == (left, top)
        assert off.max() <= 1

    @pytest.mark.parametrize(
        "fit", ["letterbox", "letterbox-top-left", "stretch", "centre-crop", "imagenet-crop"]
    )
    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (33, 32), (640, 427)])
    def test_any_image_fits(self, fit: Any, size: tuple[int, int]) -> None:
        geometry = ImageInput(height=32, width=48, fit=fit)
        pixels = geometry.pixels(np.zeros((*size, 3), np.uint8))
        assert pixels.shape == (3, 32, 48)
        assert pixels.flags.c_contiguous
        place = geometry.place(size[1], size[0])
        x1, y1, x2, y2 = place.crop()
        assert 0 <= x1 < x2 <= size[1] + 1e-6
        assert 0 <= y1 < y2 <= size[0] + 1e-6


def test_specifications_that_make_no_sense() -> None:
    image = ImageInput(height=32, width=32)
    with pytest.raises(ValueError, match="at least 1"):
        ClassificationTask(image=image, class_names=())
    with pytest.raises(ValueError, match="less than or equal"):
        ImageInput(height=32, width=32, padding=256)
    assert TensorsTask(image=image).misfit([(4096, 4096)]) is not None


@pytest.mark.parametrize(("task", "result"), TASKS)
def test_the_demo_counts_what_two_ways_agree_on(task: Task, result: Any) -> None:
    path = Path("picture.jpg")
    way = Way("split", responses={path: {"result": result.to_json(task.class_names)}})
    agreed = same_findings(way, {path: result}, task)
    assert (agreed.missing, agreed.extra) == (0, 0)
    assert agreed.matched == (min(len(result), 1) if isinstance(result, Classes) else len(result))
