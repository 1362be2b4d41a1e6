"""Fitting context models: the probability of an element given its neighbours, fitted on images.

The activity of an element is a masked 3 x 3 convolution of its neighbours' magnitudes (van den
Oord et al., "Pixel recurrent neural networks", 2016, with one linear layer, so that coding stays
sparse and in whole numbers). It is trained by gradient descent as the log-odds of one ordinal
regression (McCullagh 1980): a magnitude of j or more has the logit s(j) x activity + t(j), with
s(1) = 1 and t(1) = 0. Then weights and biases are rounded to the coder's units, and the tables
are counted from the activities that the coder itself computes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from numpy.typing import NDArray

from common.codec.context_model import (
    CLASSES,
    MAX_MAGNITUDE,
    NEIGHBOURS,
    PRECISION,
    UNIT,
    ContextModel,
    class_of,
    even_tables,
)
from common.codec.slow_context import activities
from common.errors import CalibrationError

Symbols = NDArray[np.uint8]
Progress = Callable[[int, int], None]

MIN_FRAMES = 16

_BATCH_SIZE = 8
_WINDOW = 64
_LEARNING_RATE = 6e-3
_ORDINAL_RATE = 1e-2
_LEVELS = 5
_MOST_EPOCHS = 12
# A class in which nothing was counted still needs a table; few counts are unreliable.
_PRIOR = 0.02
_ELEMENTS_COUNTED = 1 << 25


def fit_context(
    symbols: Symbols,
    levels: int,
    *,
    previous: Symbols | None = None,
    start: ContextModel | None = None,
    most_steps: int = 500,
    progress: Progress = lambda _done, _total: None,
) -> ContextModel:
    """Fit a model to the symbols of one tensor.

    Args:
        symbols: (N, C, H, W) of N images, below `levels`.
        levels: Number of different symbols.
        previous: (N, C, H, W) of the frame before each, for a model that looks back.
        start: A model of the same tensor behind another quantizer, to begin with.
        most_steps: Steps of Adam, each on 8 images, mirrored half of the times; fewer if every
            image has then been seen 12 times.
        progress: Called with steps done and in total.

    Raises:
        CalibrationError: If there are too few images.
    """
    if len(symbols) < MIN_FRAMES:
        raise CalibrationError(
            f"{len(symbols)} images to fit a context model: at least {MIN_FRAMES} are needed, or "
            "it learns these images by heart; 64 or more are better"
        )
    magnitudes = magnitudes_of(np.bincount(symbols.ravel(), minlength=levels))
    steps = min(most_steps, -(-_MOST_EPOCHS * len(symbols) // _BATCH_SIZE))
    weights, before, bias = _train(symbols, previous, magnitudes, start, steps, progress)
    magnitudes = np.minimum(magnitudes, MAX_MAGNITUDE)
    model = ContextModel(weights, before, bias, magnitudes, even_tables(levels))
    return counted(model, symbols, previous)


def magnitudes_of(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Distance of each symbol from the most frequent one, from counts (L,)."""
    rest = int(np.argmax(counts))
    return np.abs(np.arange(len(counts)) - rest).astype(np.uint8)


def counted(model: ContextModel, symbols: Symbols, previous: Symbols | None = None) -> ContextModel:
    """Copy of a model whose tables are counted from these symbols (N, C, H, W)."""
    levels = model.levels
    counts = np.zeros(CLASSES * levels, np.int64)
    for index in range(0, len(symbols), max(1, symbols.size // _ELEMENTS_COUNTED)):
        earlier = None if previous is None else previous[index]
        kinds = class_of(activities(symbols[index], earlier, model))
        cells = (kinds * levels + symbols[index]).ravel()
        counts += np.bincount(cells, minlength=CLASSES * levels)
    return replace(model, cumulative=_tables(counts.reshape(CLASSES, levels)))


def ideal_bytes(model: ContextModel, symbols: Symbols, previous: Symbols | None = None) -> float:
    """Code length in bytes of one tensor (C, H, W) by the model: the lower bound of the coder."""
    kinds = class_of(activities(symbols, previous, model))
    frequencies = np.diff(model.cumulative.astype(np.int64))[kinds, symbols]
    return float((PRECISION - np.log2(frequencies)).sum() / 8)


def _tables(counts: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Cumulative frequencies in 2^15 of counts (classes, levels); each symbol gets at least 1."""
    levels = counts.shape[1]
    everywhere = counts.sum(0) + 1.0
    # An empty class, beyond all activities that were seen, takes after the nearest one.
    filled = counts.astype(np.float64)
    seen = np.flatnonzero(counts.sum(1))
    for empty in np.flatnonzero(counts.sum(1) == 0):
        filled[empty] = counts[seen[np.argmin(np.abs(seen - empty))]]
    filled += _PRIOR * levels * everywhere / everywhere.sum()
    shares = filled / filled.sum(1, keepdims=True)
    frequencies = 1 + np.floor(shares * ((1 << PRECISION) - levels)).astype(np.int64)
    rows = np.arange(len(counts))
    frequencies[rows, shares.argmax(1)] += (1 << PRECISION) - frequencies.sum(1)
    cumulative = np.zeros((len(counts), levels + 1), np.uint16)
    cumulative[:, 1:] = np.cumsum(frequencies, 1)
    return cumulative


def _train(
    symbols: Symbols,
    previous: Symbols | None,
    magnitudes: NDArray[np.uint8],
    start: ContextModel | None,
    steps: int,
    progress: Progress,
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int16]]:
    """Weights (5, C, C) and (9 or 0, C), and biases (C,), in the coder's units."""
    generator = torch.Generator().manual_seed(0)
    channels = symbols.shape[1]
    mask = _mask(channels)
    active = np.count_nonzero(magnitudes[symbols], axis=(0, 2, 3)) + 0.5
    odds = active / (symbols.size / channels + 1 - active)
    kernel = (torch.zeros_like(mask) if start is None else _kernel(start)).requires_grad_()
    bias = torch.from_numpy(np.log(odds)).float().requires_grad_()
    back = torch.zeros(channels, 1, 3, 3, requires_grad=True)
    levels = min(int(magnitudes.max()), _LEVELS)
    slopes = torch.ones(max(levels - 1, 0), requires_grad=True)
    offsets = torch.zeros(max(levels - 1, 0), requires_grad=True)
    batch = min(_BATCH_SIZE, len(symbols))
    rates = [_LEARNING_RATE, _ORDINAL_RATE]
    optimizer = torch.optim.Adam([{"params": [kernel, back, bias]}, {"params": [slopes, offsets]}])
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rates, total_steps=steps)
    order: list[int] = []
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(len(symbols), generator=generator).tolist()
        chosen = [order.pop() for _ in range(batch)]
        places = _window(symbols, generator)
        mirrored = bool(torch.rand(1, generator=generator) < 0.5)
        seen = _batch(magnitudes, symbols, chosen, places, mirrored=mirrored)
        near = seen.clamp(max=MAX_MAGNITUDE).float()
        activity = F.conv2d(F.pad(near, (1, 1, 1, 0)), kernel * mask, bias)
        if previous is not None:
            earlier = _batch(magnitudes, previous, chosen, places, mirrored=mirrored)
            earlier = earlier.clamp(max=MAX_MAGNITUDE).float()
            activity = activity + F.conv2d(earlier, back, padding=1, groups=channels)
        optimizer.zero_grad()
        torch.autograd.backward(_nats(activity, seen, slopes, offsets))
        optimizer.step()
        schedule.step()
        progress(step, steps)
    kernel = kernel.detach() * mask
    taps = torch.stack([kernel[:, :, 1 + down, 1 + right].T for down, right in NEIGHBOURS])
    taps_before = back.detach().reshape(channels, -1).T if previous is not None else taps[:0, 0]
    return (
        _in_units(taps, torch.int8),
        _in_units(taps_before, torch.int8),
        _in_units(bias.detach(), torch.int16),
    )


def _kernel(model: ContextModel) -> torch.Tensor:
    """The weights of a model as (C target, C source, 2, 3)."""
    channels = model.channels
    kernel = torch.zeros(channels, channels, 2, 3)
    for (down, right), tap in zip(NEIGHBOURS, model.weights, strict=True):
        kernel[:, :, 1 + down, 1 + right] = torch.from_numpy(tap.T / np.float32(UNIT))
    return kernel


def _mask(channels: int) -> torch.Tensor:
    """(C, C, 2, 3): which channel (second) of which neighbour a channel (first) may look at.

    Nothing below is known yet: the row above and the own one are enough.
    """
    mask = torch.zeros(channels, channels, 2, 3)
    for down, right in NEIGHBOURS[1:]:
        mask[:, :, 1 + down, 1 + right] = 1
    mask[:, :, 1, 1] = torch.ones(channels, channels).tril(-1)
    return mask


def _window(symbols: Symbols, generator: torch.Generator) -> tuple[slice, slice]:
    """A part, at most 64 x 64, of large tensors (N, C, H, W)."""
    starts = [
        int(torch.randint(0, max(0, size - _WINDOW) + 1, (1,), generator=generator))
        for size in symbols.shape[2:]
    ]
    return slice(starts[0], starts[0] + _WINDOW), slice(starts[1], starts[1] + _WINDOW)


def _batch(
    magnitudes: NDArray[np.uint8],
    symbols: Symbols,
    chosen: list[int],
    places: tuple[slice, slice],
    *,
    mirrored: bool,
) -> torch.Tensor:
    """Magnitudes (n, C, h, w) of some images."""
    seen = torch.from_numpy(magnitudes[symbols[chosen][:, :, places[0], places[1]]])
    return seen.flip(3) if mirrored else seen


def _nats(
    activity: torch.Tensor, seen: torch.Tensor, slopes: torch.Tensor, offsets: torch.Tensor
) -> torch.Tensor:
    """Mean code length of an image in nats, magnitudes above the last level left out."""
    total = F.binary_cross_entropy_with_logits(activity, (seen >= 1).float(), reduction="sum")
    for level, (slope, offset) in enumerate(zip(slopes, offsets, strict=True), 2):
        reached = seen >= level - 1
        total = total + F.binary_cross_entropy_with_logits(
            slope * activity[reached] + offset, (seen[reached] >= level).float(), reduction="sum"
        )
    return total / len(seen)


def _in_units(values: torch.Tensor, kind: torch.dtype) -> NDArray[Any]:
    """Round values to 1/32 nat."""
    largest = 127 if kind == torch.int8 else 32767
    rounded = torch.round(values * UNIT).clamp(-largest, largest).to(kind)
    return np.ascontiguousarray(rounded.numpy())
