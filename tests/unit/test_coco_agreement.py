"""Average precision, by our own weights, is that of pycocotools and of faster-coco-eval."""

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.tasks.detections import Detections
from common.tasks.labels import CATEGORY_IDS, CLASS_NAMES
from search.measure.accuracy import CocoAccuracy

CLASSES = 6
SAME = 1e-6
"""In percent: the tools give shares of 1, which is a hundred times less."""


@dataclass(frozen=True)
class Sample:
    """Images with their truth, as COCO writes it, and what a detector found in them."""

    truth: dict[str, Any]
    found: list[Detections]

    @property
    def results(self) -> list[dict[str, Any]]:
        """Entries of a COCO results file."""
        return [
            record
            for image, each in zip(self.truth["images"], self.found, strict=True)
            for record in each.to_records(image["id"], CLASS_NAMES)
        ]


def sample(seed: int, images: int) -> Sample:
    """Some images have no object, no detection, a crowd, or more than 100 detections."""
    rng = np.random.default_rng(seed)
    objects: list[dict[str, Any]] = []
    found = []
    for image in range(1, images + 1):
        boxes = _boxes(rng, int(rng.integers(0, 8)) if rng.random() > 0.2 else 0)
        classes = rng.integers(0, CLASSES, len(boxes))
        for box, index in zip(boxes, classes, strict=True):
            sides = [float(side) for side in (*box[:2], *(box[2:] - box[:2]))]
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": 10 * image,
                    "category_id": CATEGORY_IDS[index],
                    "bbox": sides,
                    "area": sides[2] * sides[3],
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
        found.append(_detections(rng, boxes, classes))
    return Sample(
        {
            "images": [{"id": 10 * k, "file_name": f"{k}.jpg"} for k in range(1, images + 1)],
            "annotations": objects,
            "categories": [
                {"id": each, "name": name}
                for each, name in zip(CATEGORY_IDS, CLASS_NAMES, strict=True)
            ],
        },
        found,
    )


def _boxes(rng: np.random.Generator, count: int) -> Any:
    corners = rng.uniform(0, 300, (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 150, (count, 2))], axis=1)


def _detections(rng: np.random.Generator, boxes: Any, classes: Any) -> Detections:
    """Objects found once or twice, or missed, or of another class, and much that is not there."""
    if rng.random() < 0.15:
        return Detections.empty()
    repeats = rng.integers(0, 3, len(boxes))
    invented = int(rng.integers(0, 12)) if rng.random() > 0.1 else 150
    near = np.repeat(boxes, repeats, axis=0)
    near += rng.normal(0, 4, near.shape)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
    labels = np.concatenate([np.repeat(classes, repeats), rng.integers(0, CLASSES, invented)])
    if invented > 100:
        labels[:] = labels[0]  # more of one class than are considered
    scores = (rng.random(len(labels)) / 2).round(2)  # many are equal
    scores[: len(near)] += 0.25
    order = np.argsort(-scores, kind="stable")
    return Detections(
        np.concatenate([near, _boxes(rng, invented)])[order].astype(np.float32),
        scores[order].astype(np.float32),
        labels[order].astype(np.int32),
    )


def by_pycocotools(each: Sample) -> tuple[float, float]:
    return _stats(COCO, COCOeval, each)


def by_faster_coco_eval(each: Sample) -> tuple[float, float]:
    return _stats(faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, each)


def _stats(coco: Any, evaluation: Any, each: Sample) -> tuple[float, float]:
    """AP and AP50 in percent, by a tool with the interface of pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = {"info": {}, **json.loads(json.dumps(each.truth))}
        truth.createIndex()
        judged = evaluation(truth, truth.loadRes(each.results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return 100 * float(judged.stats[0]), 100 * float(judged.stats[1])


def ours(each: Sample, folder: Path) -> tuple[float, float]:
    path = folder / "instances.json"
    path.write_text(json.dumps(each.truth))
    source = CocoAccuracy(path, [image["file_name"] for image in each.truth["images"]])
    return source.accuracy(each.found), source.at("AP50", 0.5).accuracy(each.found)


@pytest.mark.parametrize("tool", [by_pycocotools, by_faster_coco_eval])
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), images=st.integers(1, 14))
def test_on_any_images(
    tmp_path: Path, tool: Callable[[Sample], tuple[float, float]], seed: int, images: int
) -> None:
    each = sample(seed, images)
    if not each.results or all(found["iscrowd"] for found in each.truth["annotations"]):
        return  # no tool gives a number: ours refuses the truth, or says 0
    assert ours(each, tmp_path) == pytest.approx(tool(each), abs=SAME)


@pytest.mark.parametrize("tool", [by_pycocotools, by_faster_coco_eval])
def test_on_many_images(tmp_path: Path, tool: Callable[[Sample], tuple[float, float]]) -> None:
    """All that may occur does occur in these."""
    each = sample(seed=7, images=60)
    with_objects = {found["image_id"] for found in each.truth["annotations"]}
    assert 0 < len(with_objects) < 60
    assert {found["iscrowd"] for found in each.truth["annotations"]} == {0, 1}
    counts = [len(found) for found in each.found]
    assert min(counts) == 0
    assert max(counts) > 100
    expected = tool(each)
    assert 5 < expected[0] < expected[1] < 95
    assert ours(each, tmp_path) == pytest.approx(expected, abs=SAME)
