"""Confidence: weighted AP against pycocotools, the bootstrap interval by what it must do."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from search.measure.intervals import WeightedAp, drop_bound, drop_interval, images_needed

CATEGORIES = (1, 3, 7, 8)
Record = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """The objects and detections of one image, without its id."""

    objects: tuple[Record, ...]
    detections: tuple[Record, ...]


def scenes(count: int, *, seed: int = 0, miss: float = 0.2, noise: float = 4.0) -> list[Scene]:
    """Images with found, missed, doubly found, ignored and invented objects."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        objects: list[Record] = []
        detections: list[Record] = []
        for _ in range(rng.integers(0, 7)):
            # The last category occurs in detections only.
            category = int(rng.choice(CATEGORIES[:-1], p=[0.6, 0.3, 0.1]))
            box = [*rng.uniform(0, 200, 2), *rng.uniform(15, 120, 2)]
            crowd = int(rng.random() < 0.15)
            objects.append({"category_id": category, "bbox": box, "iscrowd": crowd})
            for _ in range(rng.integers(1, 3) if rng.random() > miss else 0):
                moved = [float(side) for side in box + rng.normal(0, noise, 4)]
                moved[2:] = [max(side, 5.0) for side in moved[2:]]
                detections.append(
                    {"category_id": category, "bbox": moved, "score": rng.uniform(0.2, 1)}
                )
        for _ in range(rng.integers(0, 6)):
            box = [*rng.uniform(0, 200, 2), *rng.uniform(15, 120, 2)]
            category = int(rng.choice(CATEGORIES))
            detections.append({"category_id": category, "bbox": box, "score": rng.random()})
        made.append(Scene(tuple(objects), tuple(detections)))
    return made


def evaluation_of(images: Sequence[Scene], *, max_detections: int = 100) -> COCOeval:
    """Evaluated, not accumulated."""
    objects = [
        {**found, "image_id": image, "area": found["bbox"][2] * found["bbox"][3]}
        for image, scene in enumerate(images, 1)
        for found in scene.objects
    ]
    detections = [
        {**found, "image_id": image, "area": found["bbox"][2] * found["bbox"][3], "iscrowd": 0}
        for image, scene in enumerate(images, 1)
        for found in scene.detections
    ]
    truth, found = COCO(), COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        for coco, annotations in ((truth, objects), (found, detections)):
            coco.dataset = {
                "info": {},
                "images": [{"id": image} for image in range(1, len(images) + 1)],
                "annotations": [{"id": n, **each} for n, each in enumerate(annotations, 1)],
                "categories": [{"id": category} for category in CATEGORIES],
            }
            coco.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.maxDets = [10, 100, max_detections]
        evaluation.evaluate()
    return evaluation


def expected(evaluation: COCOeval) -> tuple[float, float]:
    """(AP, AP50) in percent by pycocotools; it says -1 where there are no objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, 100 * evaluation.stats[0]), max(0.0, 100 * evaluation.stats[1])


def weighted_ap(images: Sequence[Scene]) -> WeightedAp:
    return WeightedAp.of(evaluation_of(images))


def both(ap: WeightedAp, weights: NDArray[np.float64] | None = None) -> tuple[float, float]:
    return ap.ap(weights), ap.ap(weights, 0.5)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 15), noise=st.floats(0, 12))
def test_unit_weights_give_the_ap_of_pycocotools(seed: int, count: int, noise: float) -> None:
    evaluation = evaluation_of(scenes(count, seed=seed, noise=noise))
    found = both(WeightedAp.of(evaluation))
    assert found == pytest.approx(expected(evaluation), abs=1e-9)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    copies=st.lists(st.integers(0, 3), min_size=2, max_size=9).filter(any),
)
def test_a_whole_weight_is_that_many_copies_of_the_image(seed: int, copies: list[int]) -> None:
    images = scenes(len(copies), seed=seed)
    copied = [scene for scene, times in zip(images, copies, strict=True) for _ in range(times)]
    found = both(weighted_ap(images), np.array(copies, float))
    assert found == pytest.approx(expected(evaluation_of(copied)), abs=1e-9)


def test_equal_scores_are_ordered_as_pycocotools_orders_them() -> None:
    images = [
        replace(
            scene,
            detections=tuple({**d, "score": round(d["score"], 1)} for d in scene.detections),
        )
        for scene in scenes(40)
    ]
    evaluation = evaluation_of(images)
    assert both(WeightedAp.of(evaluation)) == pytest.approx(expected(evaluation), abs=1e-9)


def test_only_the_best_hundred_detections_of_an_image_count() -> None:
    late = {"category_id": 1, "bbox": [0.0, 0.0, 50.0, 50.0]}
    invented = ({**late, "bbox": [300.0, 0.0, 9.0, 9.0], "score": 0.9 - k / 999} for k in range(99))
    image = Scene(
        ({**late, "iscrowd": 0}, {**late, "bbox": [100.0, 0.0, 50.0, 50.0], "iscrowd": 0}),
        (
            *invented,
            {**late, "score": 0.2},
            {**late, "bbox": [100.0, 0.0, 50.0, 50.0], "score": 0.1},
        ),
    )
    evaluation = evaluation_of([image], max_detections=300)
    # One of two objects, at the hundredth place: precision 1 % at 51 of 101 recalls.
    assert WeightedAp.of(evaluation).ap() == pytest.approx(51 / 101)
    assert expected(evaluation)[0] == pytest.approx(51 / 101)


def test_only_the_proportion_of_weights_matters() -> None:
    ap = weighted_ap(scenes(12))
    weights = np.random.default_rng(0).uniform(0, 2, 12)
    assert both(ap, weights * 5) == pytest.approx(both(ap, weights), abs=1e-9)


def test_many_weights_at_once_are_each_alone() -> None:
    ap = weighted_ap(scenes(12))
    weights = np.random.default_rng(0).integers(0, 3, (150, 12)).astype(float)
    assert ap.aps(weights).tolist() == pytest.approx([ap.ap(each) for each in weights])


def test_nothing_detected_is_an_ap_of_zero() -> None:
    assert both(weighted_ap([replace(scene, detections=()) for scene in scenes(5)])) == (0.0, 0.0)


def test_no_objects_at_all_is_an_ap_of_zero() -> None:
    ap = weighted_ap(scenes(5))
    assert both(ap, np.zeros(5)) == (0.0, 0.0)


def test_the_interval_holds_the_drop_and_narrows_with_more_images() -> None:
    widths = []
    for count in (30, 480):
        reference = weighted_ap(scenes(count, seed=3))
        candidate = weighted_ap(worse(scenes(count, seed=3)))
        low, high = drop_interval(reference, candidate)
        assert low < reference.ap() - candidate.ap() < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_identical_detections_lose_nothing_for_sure() -> None:
    images = scenes(10)
    assert drop_interval(weighted_ap(images), weighted_ap(images)) == (0.0, 0.0)


def test_a_higher_level_and_the_other_order_of_networks() -> None:
    one, other = weighted_ap(scenes(30)), weighted_ap(worse(scenes(30)))
    low, high = drop_interval(one, other, level=0.8, iou=0.5)
    lower, higher = drop_interval(one, other, level=0.99, iou=0.5)
    assert lower < low < high < higher
    assert drop_interval(other, one, level=0.8, iou=0.5) == pytest.approx((-high, -low))


def test_the_same_seed_gives_the_same_interval() -> None:
    one, other = weighted_ap(scenes(20)), weighted_ap(worse(scenes(20)))
    assert drop_interval(one, other, seed=4) == drop_interval(one, other, seed=4)
    assert drop_interval(one, other, seed=4) != drop_interval(one, other, seed=5)


def test_evaluations_by_different_truths_are_refused() -> None:
    with pytest.raises(ValueError, match="same images"):
        drop_interval(weighted_ap(scenes(5, seed=1)), weighted_ap(scenes(5, seed=2)))
    with pytest.raises(ValueError, match="same images"):
        drop_interval(weighted_ap(scenes(5)), weighted_ap(scenes(6)))


@pytest.mark.parametrize("weights", [[1.0] * 4, [1.0, 1.0, -1.0], [1.0, 1.0, float("nan")]])
def test_impossible_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_ap(scenes(3)).ap(np.array(weights))


def test_other_impossible_arguments_are_refused() -> None:
    ap = weighted_ap(scenes(3))
    with pytest.raises(ValueError, match="IoUs"):
        ap.ap(iou=0.52)
    with pytest.raises(ValueError, match="level"):
        drop_interval(ap, ap, level=1.0)
    with pytest.raises(ValueError, match="resamples"):
        drop_interval(ap, ap, resamples=0)
    with pytest.raises(ValueError, match=r"evaluate\(\)"):
        WeightedAp.of(COCOeval(None, None, "bbox"))


def worse(images: Sequence[Scene]) -> list[Scene]:
    """Every fifth detection is lost, and every seventh moved."""
    made = []
    number = 0
    for scene in images:
        kept = []
        for detection in scene.detections:
            number += 1
            x, y, width, height = detection["bbox"]
            if number % 7 == 0:
                x += width / 5
            if number % 5:
                kept.append({**detection, "bbox": [x, y, width, height]})
        made.append(replace(scene, detections=tuple(kept)))
    return made


def test_the_bound_of_a_drop_is_the_upper_end_of_an_interval_twice_as_sure() -> None:
    one, other = weighted_ap(scenes(30)), weighted_ap(worse(scenes(30)))
    _, high = drop_interval(one, other, level=0.8, resamples=400)
    assert drop_bound(one, other, level=0.9) == pytest.approx(high)
    assert drop_bound(one, other, level=0.99) > high
    assert drop_bound(other, one) >= other.ap() - one.ap()


def test_what_finds_the_same_surely_loses_nothing() -> None:
    images = scenes(10)
    assert drop_bound(weighted_ap(images), weighted_ap(images)) == 0.0


def test_the_images_that_would_tell_grow_with_the_square_of_the_margin() -> None:
    assert images_needed(16, drop=1.0, bound=5.0, limit=3.0) == 64
    assert images_needed(16, drop=1.0, bound=3.0, limit=3.0) == 16
    assert images_needed(16, drop=2.9, bound=6.0, limit=3.0) == 16_000
    assert images_needed(16, drop=3.0, bound=6.0, limit=3.0) is None


def test_pooled_categories_are_ranked_as_one() -> None:
    images = scenes(20)
    pooled = WeightedAp.of(evaluation_of(images), pooled=True)
    everything = [
        Scene(
            tuple({**each, "category_id": 1} for each in scene.objects),
            tuple({**each, "category_id": 1} for each in scene.detections),
        )
        for scene in images
    ]
    # With one category both are the same, but for detections that find an object of another.
    assert pooled.ap() <= weighted_ap(everything).ap()
    alone = WeightedAp.of(evaluation_of(everything), pooled=True)
    assert alone.ap() == pytest.approx(weighted_ap(everything).ap())
    assert pooled.category_ids == (-1,)
