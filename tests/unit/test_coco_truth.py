"""The truth about a detector's images: COCO's own numbers, categories by name, files of others."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import CalibrationError
from common.tasks.detections import Detections
from common.tasks.labels import CATEGORY_IDS, CLASS_NAMES
from search.measure.accuracy import CocoAccuracy
from search.measure.coco_truth import NO_CATEGORY, match_categories, read_truth

NAMES = ("1.png", "2.png")
COCO_CATEGORIES = dict(zip(CATEGORY_IDS, CLASS_NAMES, strict=True))


def box(category: int, image: int = 1, **fields: object) -> dict[str, object]:
    """An object of 10 x 10 pixels."""
    return {"id": 1, "image_id": image, "category_id": category, "bbox": [0, 0, 10, 10], **fields}


def instances(path: Path, objects: Sequence[dict[str, object]], categories: dict[int, str]) -> Path:
    """Write annotations of two images, whose ids are 1 and 2."""
    document = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(NAMES, 1)],
        "annotations": list(objects),
        "categories": [{"id": each, "name": name} for each, name in categories.items()],
    }
    path.write_text(json.dumps(document))
    return path


def found(*classes: int) -> Detections:
    """A detection of each class, where the object is."""
    count = len(classes)
    return Detections(
        np.tile(np.array([[0, 0, 10, 10]], np.float32), (count, 1)),
        np.linspace(0.9, 0.5, count).astype(np.float32),
        np.array(classes, np.int32),
    )


class TestCategories:
    def test_cocos_own_have_its_numbers_with_gaps(self) -> None:
        assert match_categories(COCO_CATEGORIES, CLASS_NAMES) == CATEGORY_IDS
        assert match_categories(COCO_CATEGORIES, CLASS_NAMES)[11] == 13  # after a gap

    def test_cocos_in_darknets_spelling_or_without_names_keep_their_numbers(self) -> None:
        spelt = COCO_CATEGORIES | {5: "aeroplane", 63: "sofa"}
        assert match_categories(spelt, CLASS_NAMES) == CATEGORY_IDS
        assert match_categories(dict.fromkeys(CATEGORY_IDS, ""), CLASS_NAMES) == CATEGORY_IDS

    def test_cocos_that_a_file_numbers_by_itself_go_by_name(self) -> None:
        """Category 1 is the cat there, and no person."""
        matched = match_categories({1: "cat", 2: "dog"}, CLASS_NAMES)
        assert matched[CLASS_NAMES.index("cat")] == 1
        assert matched[CLASS_NAMES.index("dog")] == 2
        assert matched[CLASS_NAMES.index("person")] == NO_CATEGORY
        assert matched.count(NO_CATEGORY) == 78

    def test_others_go_by_name(self) -> None:
        assert match_categories({7: "face", 9: "mask"}, ["mask", "face"]) == (9, 7)
        assert match_categories({7: "face"}, ["mask", "face"]) == (NO_CATEGORY, 7)


class TestNamesThatDoNotMatch:
    def test_both_sides_are_named(self, tmp_path: Path) -> None:
        path = instances(tmp_path / "a.json", [box(7), box(8)], {7: "face", 8: "hand", 9: "foot"})
        one, other = read_truth(path, NAMES, ["face", "nose"]).warnings
        assert "1 of the network's 2 classes are no category" in one
        assert one.endswith("nose")
        assert "1 categories of the annotations are no class of the network" in other
        assert other.endswith("hand")  # of the foot there is no object

    def test_all_that_match_are_no_warning(self, tmp_path: Path) -> None:
        path = instances(tmp_path / "a.json", [box(7)], {7: "face", 8: "hand"})
        assert read_truth(path, NAMES, ["face"]).warnings == ()

    def test_what_a_class_without_a_category_finds_does_not_count(self, tmp_path: Path) -> None:
        path = instances(tmp_path / "a.json", [box(7)], {7: "face"})
        source = CocoAccuracy(path, NAMES, ["nose", "face"])
        assert source.accuracy([found(0, 1), found(0)]) == pytest.approx(100)

    def test_an_object_of_no_class_is_missed(self, tmp_path: Path) -> None:
        path = instances(tmp_path / "a.json", [box(7), box(8)], {7: "face", 8: "hand"})
        assert CocoAccuracy(path, NAMES, ["face"]).accuracy([found(0)] * 2) < 51


def test_only_the_classes_that_are_asked_for_are_judged(tmp_path: Path) -> None:
    path = instances(tmp_path / "a.json", [box(7), box(8, image=2)], {7: "face", 8: "hand"})
    results = [found(0), found()]
    everything = CocoAccuracy(path, NAMES, ["face", "hand"]).accuracy(results)
    faces = CocoAccuracy(path, NAMES, ["face", "hand"], classes=(0,)).accuracy(results)
    assert [everything, faces] == pytest.approx([50, 100])


def test_an_object_numbered_nought_can_be_found(tmp_path: Path) -> None:
    """pycocotools stores the number of what was found, and 0 for nothing."""
    path = instances(tmp_path / "a.json", [box(7, id=0)], {7: "face"})
    assert CocoAccuracy(path, NAMES, ["face"]).accuracy([found(0), found()]) == pytest.approx(100)


def test_what_other_tools_leave_out_is_filled_in(tmp_path: Path) -> None:
    """Neither area nor iscrowd."""
    path = instances(tmp_path / "a.json", [box(7)], {7: "face"})
    assert CocoAccuracy(path, NAMES, ["face"]).accuracy([found(0), found()]) == pytest.approx(100)


class TestFilesThatCannotBeUsed:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a COCO annotation file"),
            ("[1, 2]", "not a COCO annotation file"),
            ("{}", "not a COCO annotation file: no 'images' in it"),
            ('{"images": 3, "annotations": [], "categories": []}', "not a COCO annotation file"),
            (
                '{"images": [{"id": "a", "file_name": "1.png"}], "annotations": []}',
                "expected ids that are whole numbers, got 'a'",
            ),
            (
                '{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2]}]}',
                "not a COCO annotation file",
            ),
        ],
    )
    def test_no_instances(self, tmp_path: Path, text: str, message: str) -> None:
        path = tmp_path / "a.json"
        path.write_text(text)
        with pytest.raises(CalibrationError, match=message):
            read_truth(path, NAMES)

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CalibrationError, match="No such file"):
            read_truth(tmp_path / "none.json", NAMES)

    @pytest.mark.parametrize(
        ("names", "class_names", "objects", "message"),
        [
            (["3.png", "1.png"], ["face"], [box(7)], "does not list 1 of 2 .* e.g. 3.png"),
            (NAMES, ["nose"], [box(7)], "it has face, the network nose: give the network the same"),
            (NAMES, ["face"], [], "no object in these 2 images"),
            (NAMES, ["face"], [box(7, iscrowd=1)], "no object in these 2 images"),
            (NAMES, ["face"], [box(7, image=9)], "no object in these 2 images"),
        ],
    )
    def test_of_other_images_or_of_another_network(
        self,
        tmp_path: Path,
        names: Sequence[str],
        class_names: Sequence[str],
        objects: Any,
        message: str,
    ) -> None:
        path = instances(tmp_path / "a.json", objects, {7: "face"})
        with pytest.raises(CalibrationError, match=message):
            read_truth(path, names, class_names)
