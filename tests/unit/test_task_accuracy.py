"""Losses and accuracies of tasks: classification by labels or agreement, tensors by their error."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from common.errors import CalibrationError, SettingsError
from common.tasks.base import ImageInput, TaskResult
from common.tasks.classification import Classes
from common.tasks.decoders.yolov8 import YoloV8
from common.tasks.detections import Detections, DetectionTask
from common.tasks.tensors import Tensors
from search.measure.accuracy import AccuracySource, CocoAccuracy
from search.measure.frames import load_frames
from search.measure.intervals import mean_bound, mean_interval
from search.measure.mean_accuracy import (
    ClassAgreement,
    LabelAccuracy,
    TensorAgreement,
    class_labels,
)
from search.measure.sources import SOURCES, Basis, accuracy_metrics
from search.network.losses import LOSSES, distillation_loss, feature_loss, relative_loss
from tests import tiny

NAMES = ("1.png", "2.png", "3.png", "4.png")


def classes(*indices: int) -> Classes:
    return Classes(np.array(indices, np.int32), np.linspace(0.9, 0.1, len(indices)).astype("f4"))


def tensors(*values: Any) -> Tensors:
    return Tensors(tuple(np.array(each, np.float32) for each in values))


def accuracy_source(basis: Basis) -> AccuracySource:
    """The metric that decides a search."""
    return accuracy_metrics(basis).sources[0]


def test_every_task_has_a_loss_and_a_source() -> None:
    kinds = {each.kind for each in (tiny.DETECTOR, tiny.CLASSES, tiny.TENSORS)}
    assert set(LOSSES) == set(SOURCES) == kinds


class TestLabels:
    def test_top_one_and_top_three(self) -> None:
        found: list[TaskResult] = [classes(1, 2, 3), classes(2, 1, 3), classes(3, 2, 1), classes(5)]
        assert LabelAccuracy([1, 1, 1, 1]).accuracy(found) == 25
        assert LabelAccuracy([1, 1, 1, 1], top=3).accuracy(found) == 75
        assert LabelAccuracy([1, 1, 1, 1], top=3).metric == "top-3 accuracy"

    def test_on_the_first_images_only(self) -> None:
        assert LabelAccuracy([1, 1, 1, 1]).accuracy([classes(1), classes(2)]) == 50

    def test_of_a_csv_file(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.csv"
        path.write_text("1.png,kind 3\n2.png, 4\n3.png,0\n4.png,kind 13\nfifth.png,kind 1\n")
        assert class_labels(path, NAMES, tiny.CLASSES) == [3, 4, 0, 13]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1.png,0\n", "no class of 3 evaluation images, e.g. 2.png"),
            ("1.png,0\n2.png,0\n3.png,0\n4.png,cow\n", "no class 'cow'"),
            ("1.png\n", "no class of 4"),
        ],
    )
    def test_that_are_not_there(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "labels.csv"
        path.write_text(text)
        with pytest.raises(CalibrationError, match=message):
            class_labels(path, NAMES, tiny.CLASSES)
        with pytest.raises(CalibrationError, match="not a CSV file"):
            class_labels(tmp_path / "none.csv", NAMES, tiny.CLASSES)

    def test_of_class_folders(self, tmp_path: Path) -> None:
        for folder in ("kind 2", "kind 5"):
            (tmp_path / folder).mkdir()
            for number in range(5):
                Image.fromarray(tiny.image(number)).save(tmp_path / folder / f"{number}.png")
        frames = load_frames(tmp_path, tiny.CLASSES.image, 64, lambda *_: None)
        assert frames.names[0] == "kind 2/0.png"
        labels = class_labels(tmp_path, frames.names, tiny.CLASSES)
        assert labels == [2] * 5 + [5] * 5

    def test_images_in_no_class_folder(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="a folder for each class"):
            class_labels(tmp_path, NAMES, tiny.CLASSES)


class TestAgreement:
    REFERENCE: tuple[TaskResult, ...] = (classes(1, 2), classes(2, 1), classes(3, 1), classes(4))

    def test_the_reference_agrees_with_itself(self) -> None:
        source = ClassAgreement(self.REFERENCE)
        assert source.accuracy(self.REFERENCE) == 100
        assert source.drop(self.REFERENCE, self.REFERENCE, 0.99) == (0, 0)
        assert source.most_lost(self.REFERENCE, self.REFERENCE, 0.9) == 0

    def test_another_best_class_is_a_loss(self) -> None:
        source = ClassAgreement(self.REFERENCE)
        found = [classes(1), classes(1, 2), classes(3), classes(4)]
        assert source.accuracy(found) == 75
        low, middle = source.drop(self.REFERENCE, found, 0.9)
        assert 0 <= low < middle
        assert 25 <= source.most_lost(self.REFERENCE, found, 0.9) <= 75

    def test_the_relative_error_of_tensors(self) -> None:
        reference: list[TaskResult] = [tensors([3, 4], [1]), tensors([3, 4], [2])]
        source = TensorAgreement(reference)
        assert source.accuracy(reference) == 100
        found = [tensors([3, 3], [1]), tensors([3, 4], [900])]
        assert source.accuracy(found) == pytest.approx(100 * (1 - (0.1 + 0.5) / 2))

    def test_results_of_another_task_are_a_mistake_of_ours(self) -> None:
        with pytest.raises(TypeError, match="expected classes, got Tensors"):
            ClassAgreement([tensors([1])])


def test_the_bound_is_that_of_the_mean() -> None:
    """The bootstrap of a mean is nearly normal: compare with the standard error."""
    losses = np.random.default_rng(1).normal(5, 20, 2000)
    error = losses.std() / np.sqrt(len(losses))
    low, high = mean_interval(losses, resamples=4000, level=0.9)
    np.testing.assert_allclose(
        [low, high], [losses.mean() - 1.645 * error, losses.mean() + 1.645 * error], atol=0.1
    )
    bound = mean_bound(losses, resamples=4000, level=0.9)
    assert bound == pytest.approx(losses.mean() + 1.282 * error, abs=0.1)


class TestSources:
    def test_of_each_task(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.csv"
        path.write_text("".join(f"{name},1\n" for name in NAMES))
        reference = [classes(1)] * 4
        agreed = Basis(tiny.CLASSES, NAMES, None, reference)
        assert accuracy_source(agreed).metric == "top-1 agreement"
        labelled = Basis(tiny.CLASSES, NAMES, path, reference)
        assert accuracy_source(labelled).metric == "top-1 accuracy"
        with pytest.raises(CalibrationError, match="without annotations"):
            accuracy_source(Basis(tiny.TENSORS, NAMES, path, [tensors([1])]))

    @pytest.mark.parametrize(
        ("top", "tops", "metrics"),
        [
            (5, None, ["top-1 accuracy", "top-5 accuracy"]),
            (3, None, ["top-1 accuracy"]),  # no more than three are reported
            (5, (4,), ["top-4 accuracy"]),
        ],
    )
    def test_a_classifier_is_judged_by_its_best_few(
        self, tmp_path: Path, top: int, tops: tuple[int, ...] | None, metrics: list[str]
    ) -> None:
        path = tmp_path / "labels.csv"
        path.write_text("".join(f"{name},1\n" for name in NAMES))
        task = tiny.CLASSES.model_copy(update={"top": top})
        found = accuracy_metrics(Basis(task, NAMES, path, tops=tops))
        assert [source.metric for source in found.sources] == metrics

    def test_without_labels_the_best_class_is_to_be_among_the_best(self) -> None:
        reference = [classes(1), classes(2), classes(3), classes(4)]
        basis = Basis(tiny.CLASSES, NAMES, None, reference, tops=(3,))
        source = accuracy_source(basis)
        assert source.metric == "top-3 agreement"
        assert source.accuracy([classes(0, 1), classes(9, 8, 2), classes(0), classes(4)]) == 75

    def test_what_no_network_can_be_judged_by(self) -> None:
        with pytest.raises(SettingsError, match=r"--top 5: the network reports 3 classes .*1 to 3"):
            accuracy_source(Basis(tiny.CLASSES, NAMES, None, [classes(1)] * 4, tops=(5,)))
        with pytest.raises(SettingsError, match=r"--top is for classifiers.* detection"):
            accuracy_source(Basis(tiny.DETECTOR, NAMES, None, [], tops=(5,)))

    def test_categories_go_by_their_names(self, tmp_path: Path) -> None:
        """A detector of faces, whose class 0 is the category 7 of the annotations."""
        path = tmp_path / "faces.json"
        box = {"id": 1, "image_id": 5, "category_id": 7, "bbox": [0, 0, 10, 10], "area": 100}
        data = {
            "images": [{"id": 5, "file_name": "1.png"}],
            "annotations": [{**box, "iscrowd": 0}],
            "categories": [{"id": 7, "name": "face"}],
        }
        path.write_text(json.dumps(data))
        found = Detections(
            np.array([[0, 0, 10, 10]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32)
        )
        assert CocoAccuracy(path, ["1.png"], ["face"]).accuracy([found]) == pytest.approx(100)


class TestLosses:
    def test_other_detectors_take_the_generic_one(self) -> None:
        image = ImageInput(height=32, width=32)
        task = DetectionTask(image=image, decoder=YoloV8(), class_names=("cat",))
        assert distillation_loss(task) is feature_loss
        assert distillation_loss(None) is feature_loss

    def test_a_classifiers_is_the_divergence(self) -> None:
        loss = distillation_loss(tiny.CLASSES)
        teacher, found = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[0.0, 1.0, 0.5]])
        one, other = teacher.softmax(1), found.softmax(1)
        expected = (one * (one / other).log()).sum()
        assert loss([found], [teacher]).item() == pytest.approx(expected.item(), rel=1e-5)
        assert loss([teacher], [teacher]).item() == pytest.approx(0, abs=1e-7)

    def test_of_probabilities(self) -> None:
        task = tiny.CLASSES.model_copy(update={"output": "probabilities"})
        teacher, found = torch.tensor([[0.75, 0.25, 0.0]]), torch.tensor([[0.5, 0.25, 0.25]])
        expected = 0.75 * np.log(0.75 / 0.5)
        assert distillation_loss(task)([found], [teacher]).item() == pytest.approx(
            expected, rel=1e-4
        )

    def test_of_tensors_is_relative(self) -> None:
        assert distillation_loss(tiny.TENSORS) is relative_loss
        teacher = [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]])]
        found = [torch.tensor([[3.0, 3.0]]), torch.tensor([[1.0]])]
        assert relative_loss(found, teacher).item() == pytest.approx(1 / 25 / 2)

    @pytest.mark.parametrize("task", [tiny.DETECTOR, tiny.CLASSES, tiny.TENSORS])
    def test_each_can_be_trained_by(self, task: Any) -> None:
        shape = (1, 14, 1, 1) if task is tiny.CLASSES else (1, 14, 4, 4)
        torch.manual_seed(0)
        teacher = torch.randn(shape)
        found = (teacher + torch.randn(shape)).requires_grad_()
        loss = distillation_loss(task)([found], [teacher])
        (slope,) = torch.autograd.grad(loss, found)
        assert torch.isfinite(slope).all()
        better = distillation_loss(task)([found.detach() - 0.05 * slope], [teacher])
        assert better < loss
