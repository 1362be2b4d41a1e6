"""Comparing curves of bytes against accuracy: Bjontegaard deltas, and bytes at equal accuracy."""

from collections.abc import Sequence

import bjontegaard
import numpy as np

Curve = Sequence[tuple[float, float]]
"""Points (bytes per frame, accuracy)."""


def frontier(curve: Curve) -> list[tuple[float, float]]:
    """The points that no other one beats in both, by rising bytes: measured curves are noisy."""
    kept: list[tuple[float, float]] = []
    for size, accuracy in sorted(curve, key=lambda p: (p[0], -p[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((size, accuracy))
    return kept


def bd_rate(anchor: Curve, test: Curve) -> float | None:
    """Bytes in percent that `test` takes more (or, below zero, less) than `anchor`.

    On average over the accuracies that both reach (Bjontegaard, VCEG-M33, 2001; piecewise cubic, of
    the frontiers). None where the curves share too little accuracy to compare.
    """
    one, other = frontier(anchor), frontier(test)
    low = max(one[0][1], other[0][1])
    high = min(one[-1][1], other[-1][1])
    if min(len(one), len(other)) < 2 or high <= low:
        return None
    delta = bjontegaard.bd_rate(
        *map(list, zip(*one, strict=True)),
        *map(list, zip(*other, strict=True)),
        method="pchip",
        require_matching_points=False,
        min_overlap=0,
    )
    return float(delta)


def bytes_at(curve: Curve, accuracy: float) -> float | None:
    """Bytes at which the frontier of a curve reaches an accuracy, None where it does not.

    Between points the logarithm of the bytes is interpolated.
    """
    points = frontier(curve)
    accuracies = [a for _, a in points]
    if not accuracies[0] <= accuracy <= accuracies[-1]:
        return None
    return float(np.exp(np.interp(accuracy, accuracies, np.log([size for size, _ in points]))))
