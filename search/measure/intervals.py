"""Confidence intervals of a loss of average precision measured on few images.

    COCOeval.evaluate() -> WeightedAp -> AP for any weights of the images -> bootstrap interval

AP is no mean over images, so it has no standard error to read off. The bootstrap (B. Efron,
"Bootstrap Methods: Another Look at the Jackknife", 1979) draws as many images as there are, with
replacement, and computes AP anew; an image drawn twice has weight 2. The floating-point network and
a plan are judged on the same draws, so what makes images hard for both cancels out.

AP is that of T.-Y. Lin et al., "Microsoft COCO: Common Objects in Context", 2014, as pycocotools
computes it: interpolated at 101 recalls, area "all", at most 100 detections per image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100
KEEP_LEVEL = 0.9
"""Level of the one-sided interval by whose upper end a plan is judged."""
# Weight vectors worked on at once: so few that what is made of them stays in the caches.
_BATCH = 16

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Category:
    """One category's detections by falling score, up to the last one that finds an object.

    Precision has its maxima where an object is found, and recall rises nowhere else. So it is
    enough to know precision and recall at `found`, and what comes after the last is of no interest.

    Attributes:
        objects: (I,) objects to be found in each image.
        images: (D,) image of each detection.
        found: (P,) the detections that find an object at any IoU, ascending.
        hits: (T, P) whether they do so at each IoU.
        counted: (R, D) which detections count: those that match what is to be ignored do not. IoUs
            mostly agree on this, so there are few distinct rows.
        row: (T,) the row of `counted` for each IoU.
    """

    objects: Floats
    images: NDArray[np.intp]
    found: NDArray[np.intp]
    hits: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    row: NDArray[np.intp]

    @classmethod
    def of(cls, results: Sequence[dict[str, Any] | None], ious: int) -> Self:
        """Build from pycocotools' results, one per image; None for an image without any."""
        objects = np.zeros(len(results))
        scores, images = [np.empty(0)], [np.empty(0, np.intp)]
        matched, ignored = [np.empty((ious, 0), bool)], [np.empty((ious, 0), bool)]
        for image, result in enumerate(results):
            if result is not None:
                objects[image] = np.count_nonzero(np.asarray(result["gtIgnore"]) == 0)
                scores.append(np.asarray(result["dtScores"][:MAX_DETECTIONS], float))
                images.append(np.full(scores[-1].size, image))
                matched.append(result["dtMatches"][:, :MAX_DETECTIONS] != 0)
                ignored.append(result["dtIgnore"][:, :MAX_DETECTIONS] != 0)
        # As pycocotools: a stable sort, so equal scores stay in the order of the images.
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        counted = ~np.concatenate(ignored, axis=1)[:, order]
        hits = np.concatenate(matched, axis=1)[:, order] & counted
        found = hits.any(axis=0).nonzero()[0]
        end = found[-1] + 1 if found.size else 0
        rows, row = np.unique(counted[:, :end], axis=0, return_inverse=True)
        return cls(
            objects, np.concatenate(images)[order][:end], found, hits[:, found], rows, row.ravel()
        )

    def precision(self, weights: Floats, objects: Floats, recalls: Floats, iou: slice) -> Floats:
        """Interpolated precision, averaged over `recalls`.

        Args:
            weights: (B, I) of the images.
            objects: (B,) weight of the objects to be found, positive.
            recalls: (R,) ascending from 0.
            iou: Which IoUs, T of them.

        Returns:
            (B, T).
        """
        hits, row = self.hits[iou], self.row[iou]
        if not self.found.size:
            return np.zeros((len(weights), len(hits)))
        each = weights[:, self.images]
        seen = np.stack([(each * some).cumsum(axis=1)[:, self.found] for some in self.counted], 1)
        true = (each[:, None, self.found] * hits).cumsum(axis=2)
        precision = true / (seen[:, row] + np.spacing(1))
        best = np.maximum.accumulate(precision[:, :, ::-1], axis=2)[:, :, ::-1]
        # The recalls that are first reached at a detection take the best precision from there on.
        reached = np.searchsorted(recalls, true / objects[:, None, None], side="right")
        newly = np.diff(reached, axis=2, prepend=0)
        averaged: Floats = np.einsum("btp,btp->bt", best, newly) / len(recalls)
        return averaged


@dataclass(frozen=True, eq=False)
class WeightedAp:
    """Average precision of one network's detections, for any weights of the images.

    A whole weight is that many copies of the image, so long as no scores are equal: the equal
    scores of two copies would take turns, here they stay together. A weight of 0 leaves it out.

    Attributes:
        image_ids: (I,) the images, in the order of the weights.
        category_ids: The categories, ascending.
        ious: (T,) from 0.50 to 0.95.
    """

    image_ids: tuple[int, ...]
    category_ids: tuple[int, ...]
    ious: tuple[float, ...]
    _recalls: Floats
    _categories: tuple[_Category, ...]

    @classmethod
    def of(cls, evaluation: COCOeval, *, pooled: bool = False) -> Self:
        """Build from an evaluation after `evaluate`; `accumulate` is not needed.

        Args:
            evaluation: The matches of detections and objects, category by category.
            pooled: Whether all categories are ranked as one. An object is still found only by a
                detection of its category, but AP is no mean over categories then.

        Raises:
            ValueError: If `evaluate` was not called.
        """
        results, settings = evaluation.evalImgs, evaluation.params
        if not results:
            raise ValueError("expected an evaluation with results: call its evaluate() first")
        images, areas = len(settings.imgIds), len(settings.areaRng)
        everything = settings.areaRngLbl.index("all") * images
        each = [
            results[start : start + images]
            for start in range(everything, len(results), areas * images)
        ]
        if pooled:
            each = [[_together(image) for image in zip(*each, strict=True)]]
        categories = tuple(_Category.of(found, len(settings.iouThrs)) for found in each)
        one = pooled or not settings.useCats
        return cls(
            tuple(int(image) for image in settings.imgIds),
            (-1,) if one else tuple(int(category) for category in settings.catIds),
            tuple(float(iou) for iou in settings.iouThrs),
            np.asarray(settings.recThrs),
            categories,
        )

    def ap(self, weights: Floats | None = None, iou: float | None = None) -> float:
        """AP in percent; 0 if no image of positive weight has an object.

        Args:
            weights: (I,) non-negative; None for 1 each.
            iou: One of the evaluation's IoUs; None for the mean over all of them.

        Raises:
            ValueError: If the weights or the IoU are none of these.
        """
        one = np.ones(len(self.image_ids)) if weights is None else np.asarray(weights, float)
        return float(self.aps(one[None], iou)[0])

    def aps(self, weights: Floats, iou: float | None = None) -> Floats:
        """AP in percent for each row of weights; see `ap`.

        Args:
            weights: (B, I) non-negative.
            iou: As for `ap`.

        Returns:
            (B,).
        """
        weights = np.asarray(weights, float)
        if weights.ndim != 2 or weights.shape[1] != len(self.image_ids):
            raise ValueError(
                f"expected weights of {len(self.image_ids)} images, got shape {weights.shape}"
            )
        if not (np.isfinite(weights) & (weights >= 0)).all():
            raise ValueError("expected finite weights of 0 or more")
        chosen = self._slice(iou)
        batches = np.split(weights, range(_BATCH, len(weights), _BATCH))
        return np.concatenate([self._batch(batch, chosen) for batch in batches])

    def judges_like(self, other: "WeightedAp") -> bool:
        """Whether the other's detections were judged by the same truth, so that they compare."""
        mine, theirs = (
            (one.image_ids, one.category_ids, one.ious, len(one._categories))
            for one in (self, other)
        )
        return mine == theirs and all(
            np.array_equal(one.objects, two.objects)
            for one, two in zip(self._categories, other._categories, strict=True)
        )

    def _batch(self, weights: Floats, iou: slice) -> Floats:
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for category in self._categories:
            objects = weights @ category.objects
            rows = objects > 0
            if rows.any():
                precision = category.precision(weights[rows], objects[rows], self._recalls, iou)
                total[rows] += precision.mean(axis=1)
                present += rows
        return 100 * total / np.maximum(present, 1)

    def _slice(self, iou: float | None) -> slice:
        if iou is None:
            return slice(None)
        near = np.isclose(self.ious, iou, rtol=0, atol=1e-6).nonzero()[0]
        if not near.size:
            raise ValueError(f"expected one of the IoUs {self.ious}, got {iou}")
        return slice(near[0], near[0] + 1)


def _together(results: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """Merge one image's results of several categories into one category."""
    known = [result for result in results if result is not None]
    if not known:
        return None
    scores = np.concatenate([np.asarray(result["dtScores"], float) for result in known])
    order = np.argsort(-scores, kind="mergesort")
    return {
        "gtIgnore": np.concatenate([np.asarray(result["gtIgnore"]) for result in known]),
        "dtScores": scores[order],
        **{
            name: np.concatenate([result[name] for result in known], axis=1)[:, order]
            for name in ("dtMatches", "dtIgnore")
        },
    }


def drop_interval(
    reference: WeightedAp,
    candidate: WeightedAp,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    iou: float | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the AP that a candidate loses, in percentage points.

    Args:
        reference: Of the floating-point network.
        candidate: Of what replaces it, judged by the same truth.
        resamples: Draws of images; both are judged on the same ones.
        level: Probability that the interval is to have, in (0, 1).
        seed: Of the draws.
        iou: As for `WeightedAp.ap`.

    Returns:
        The ends of the interval of reference AP minus candidate AP. Few images with rare categories
        make the draws' AP differ from that of all images, so the ends need not lie around the drop
        on all images.

    Raises:
        ValueError: If the two were not judged by the same truth, or an argument is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    drops = _drops(reference, candidate, resamples=resamples, seed=seed, iou=iou)
    low, high = np.quantile(drops, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def drop_bound(
    reference: WeightedAp,
    candidate: WeightedAp,
    *,
    resamples: int = 400,
    level: float = 0.9,
    seed: int = 0,
    iou: float | None = None,
) -> float:
    """Upper end of a one-sided percentile bootstrap interval of the AP that a candidate loses.

    It is never below the drop on the images themselves, and 0 for a candidate whose detections
    equal the reference's.

    Args:
        reference: As for `drop_interval`.
        candidate: As for `drop_interval`.
        resamples: As for `drop_interval`.
        level: Probability that the drop is to be below the bound, in (0, 1).
        seed: As for `drop_interval`.
        iou: As for `WeightedAp.ap`.

    Returns:
        Points of AP.

    Raises:
        ValueError: As `drop_interval`.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    drops = _drops(reference, candidate, resamples=resamples, seed=seed, iou=iou)
    return max(float(np.quantile(drops, level)), reference.ap(iou=iou) - candidate.ap(iou=iou))


def mean_interval(
    losses: Floats, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of losses (N,), as `drop_interval` of AP.

    Raises:
        ValueError: If there are no losses, or an argument is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    means = _means(losses, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_bound(losses: Floats, *, resamples: int = 400, level: float = 0.9, seed: int = 0) -> float:
    """Upper end of a one-sided bootstrap interval of the mean of losses (N,), as `drop_bound`.

    Raises:
        ValueError: As `mean_interval`.
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    means = _means(losses, resamples, seed)
    return max(float(np.quantile(means, level)), float(losses.mean()))


def images_needed(images: int, drop: float, bound: float, limit: float) -> int | None:
    """Estimate the number of images needed to show that the measured drop is within a limit.

    The distance of the bound from the drop shrinks with the square root of the number of images.

    Args:
        images: Number of images measured so far.
        drop: Measured drop on them.
        bound: Upper end of the drop's interval.
        limit: Largest drop allowed.

    Returns:
        The number, rounded up to two digits; None if no number of images would.
    """
    if drop >= limit:
        return None
    needed = images * max(1.0, ((bound - drop) / (limit - drop)) ** 2)
    digit = int(10 ** max(0, len(str(math.ceil(needed))) - 2))
    return math.ceil(needed / digit) * digit


def _drops(
    reference: WeightedAp,
    candidate: WeightedAp,
    *,
    resamples: int,
    seed: int,
    iou: float | None,
) -> Floats:
    """Reference AP minus candidate AP on each of `resamples` draws of images."""
    if not reference.judges_like(candidate):
        raise ValueError("expected two evaluations of the same images, categories and objects")
    if resamples < 1:
        raise ValueError(f"expected resamples of 1 or more, got {resamples}")
    images = len(reference.image_ids)
    draws = np.random.default_rng(seed).multinomial(images, [1 / images] * images, resamples)
    weights = draws.astype(float)
    return reference.aps(weights, iou) - candidate.aps(weights, iou)


def _means(losses: Floats, resamples: int, seed: int) -> Floats:
    """Mean loss on each of `resamples` draws of images."""
    if not losses.size or resamples < 1:
        raise ValueError(f"expected losses and resamples, got {losses.size} and {resamples}")
    images = len(losses)
    draws = np.random.default_rng(seed).multinomial(images, [1 / images] * images, resamples)
    means: Floats = draws @ losses / images
    return means
