"""Coordinate descent: weights rounded one after the other, each making up for all the others.

With X (n, K) what a layer really reads and Y (n, C) its sums in floating point, both centred (the
bias takes care of means), the integers q of one channel at scale s should minimise

    |X (s q) - Y|^2 / n  =  s^2 q'Hq - 2 s q'b + const        H = X'X / n,  b = X'Y / n

which is quadratic: the best integer of one weight, all others held, is known in closed form.
Weights are visited in order until nothing changes (Behdin et al., "QuantEase", 2023; the same
objective as OBQ and GPTQ, Frantar et al., 2022, without their fixed order and single pass). Unlike
AdaRound a weight may move by any number of steps, and the cost is that of a few products of
matrices. Scales are searched with it: of several per channel the best is refitted by least squares.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from search.network.quant_params import QuantizedConv
from search.quantization.layers import SampledLayer
from search.quantization.weights import limits

Floats = NDArray[np.float32]
_Solution = tuple[Floats, Floats, Floats]  # integers (K, C), scales (C,), errors (C,)

_FACTORS = (1.0, 0.85, 0.7, 0.55, 0.4, 0.3)
_DAMPING = 1e-3
_PASSES = 4
_BLOCK = 128


def coordinate_descent(layer: SampledLayer, conv: QuantizedConv) -> QuantizedConv:
    """Weights and scales of least error of the layer's sums.

    Args:
        layer: The layer on calibration images.
        conv: Rounded in any way; its number of bits is kept.
    """
    groups, shape = layer.patches.shape[1], layer.weight.shape
    weights = layer.weight.reshape(groups, shape[0] // groups, -1)
    targets = layer.target.reshape(len(layer.target), groups, -1)
    integers, scales = [], []
    for group in range(groups):
        problem = _Problem(layer.patches[:, group], targets[:, group], weights[group].T, conv.bits)
        found, scale = problem.solve()
        integers.append(found.T)
        scales.append(scale)
    return replace(
        conv,
        weight=np.concatenate(integers).reshape(shape).astype(np.int8),
        scale=np.concatenate(scales).astype(np.float32),
    )


class _Problem:
    """The quadratic of all channels of a group.

    Args:
        patches: (n, K).
        target: (n, C).
        weight: (K, C) in floating point: what the damping pulls towards.
        bits: Of an integer.
    """

    def __init__(
        self, patches: torch.Tensor, target: torch.Tensor, weight: Floats, bits: int
    ) -> None:
        centred, wanted = patches - patches.mean(0), target - target.mean(0)
        gram = (centred.T @ centred / len(patches)).numpy()
        damping = max(_DAMPING * float(np.trace(gram)) / len(gram), 1e-12)
        self._gram = gram + np.float32(damping) * np.eye(len(gram), dtype=np.float32)
        self._wanted = (centred.T @ wanted / len(patches)).numpy() + np.float32(damping) * weight
        self._weight = weight
        self._low, self._high = limits(bits)

    def solve(self) -> tuple[Floats, Floats]:
        """Integers (K, C) and scales (C,): one pass on every scale, then on from the best."""
        reach = np.abs(self._weight).max(0) / self._high
        reach = np.where(reach > 0, reach, 1.0).astype(np.float32)
        best = np.zeros_like(self._weight), reach, np.full(len(reach), np.inf)
        for factor in _FACTORS:
            scale = reach * np.float32(factor)
            start = np.clip(np.rint(self._weight / scale), self._low, self._high)
            best = self._better(best, start, scale, passes=1)
        best = self._better(best, *best[:2], passes=_PASSES)
        best = self._better(best, best[0], self._refitted(*best[:2]), passes=_PASSES)
        return best[0], best[1]

    def _better(self, known: _Solution, start: Floats, scale: Floats, *, passes: int) -> _Solution:
        """Per channel, keep the better of a known solution and the result of a descent."""
        found, error = self._descend(start, scale, passes=passes)
        better = error < known[2]
        return (
            np.where(better, found, known[0]),
            np.where(better, scale, known[1]),
            np.where(better, error, known[2]),
        )

    def _refitted(self, integers: Floats, scale: Floats) -> Floats:
        """The scale of least error for given integers."""
        along = (integers * self._wanted).sum(0)
        square = (integers * (self._gram @ integers)).sum(0)
        usable = (along > 0) & (square > 0)
        return np.where(usable, along / np.where(usable, square, 1), scale).astype(np.float32)

    def _descend(self, start: Floats, scale: Floats, *, passes: int) -> tuple[Floats, Floats]:
        """Visit all weights, until none changes; returns integers and errors up to a constant."""
        integers = start.astype(np.float32)
        gradient = self._gram @ (integers * scale) - self._wanted
        diagonal = np.diag(self._gram)
        for _ in range(passes):
            changed = False
            for first in range(0, len(integers), _BLOCK):
                block = slice(first, first + _BLOCK)
                before = integers[block].copy()
                local = gradient[block].copy()  # the rest follows once per block
                within = self._gram[block, block]
                for row in range(len(before)):
                    k = first + row
                    moved = integers[k] - local[row] / (diagonal[k] * scale)
                    moved = np.clip(np.rint(moved), self._low, self._high)
                    step = (moved - integers[k]) * scale
                    if step.any():
                        integers[k] = moved
                        local += within[:, row, None] * step
                steps = (integers[block] - before) * scale
                if steps.any():
                    changed = True
                    gradient += self._gram[:, block] @ steps
            if not changed:
                break
        return integers, (integers * scale * (gradient - self._wanted)).sum(0)
