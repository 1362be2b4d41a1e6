"""LAPQ: clip points chosen by the loss of the network, for all tensors of a head at once.

    statistics --least Lp error, p by the loss--> start --Powell's method--> Clips

Nahshan et al., "Loss aware post-training quantization", Machine Learning 110, 2021. With few bits
the best clip point of one tensor depends on those of the others, so clipping tensor by tensor is
only a start: all clip points are those of least Lp norm of the rounding error, for several p
(section 4.1); the loss is close to quadratic in p, and a parabola through the samples gives the
best one (section 4.2). From there Powell's method, which needs no gradient, moves all clip points
together (section 4.3).

Different from the paper: what moves is one factor per tensor, for the range of an activation or
for the clip points of all channels of a convolution's weights; tensors of 8 bits keep their start;
biases are corrected before the loss is taken, as the recipes do it afterwards; Powell's directions
are begun again after every sweep; evaluations are limited, and the best clip points seen returned.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from common.errors import ModelError
from common.imaging.images import unit_range
from common.runtime.registry import open_model
from search.network import execute
from search.network.graph import IMAGE, Graph, Node
from search.network.losses import Loss, feature_loss
from search.network.operators.registry import last_computable, makes_values
from search.network.quant_params import QuantParams
from search.quantization.calibration import Distribution, Statistics
from search.quantization.export import head_model
from search.quantization.grids import Range
from search.quantization.network import (
    Clips,
    QuantizedGraph,
    choose_clips,
    has_table,
    integer_bias,
    quantize,
)
from search.quantization.weights import Floats, largest, round_nearest, scale_of
from search.quantization.widths import FULL, Configuration, Widths

ClipLoss = Callable[[Clips], float]
Progress = Callable[[int, int, str], None]

NORMS = (2.0, 2.5, 3.0, 3.5, 4.0)

_BATCH = 4
_SAMPLES = 2048
_SHARES = np.linspace(1.0, 0.04, 33)
"""Fractions of the whole range that are tried as clip points."""

_MOST_OCTAVES = 0.5
"""Largest move of a clip point in the first sweep: logarithm to base 2 of its factor."""

_LEAST_OCTAVES = 0.03
_LINE_TOLERANCE = 0.1
"""Tolerance of a line search, as a fraction of its reach."""


def lapq(
    graph: Graph,
    statistics: Statistics,
    widths: Configuration,
    fetch: Sequence[str],
    loss: ClipLoss,
    progress: Progress = lambda _done, _total, _note: None,
    *,
    evaluations: int = 200,
) -> Clips:
    """Choose ranges by the loss; those of tensors behind the cut are of least squared error.

    Args:
        graph: The network, optimised.
        statistics: Distributions of its tensors on calibration images.
        widths: Bits by node.
        fetch: The tensors of a cut.
        loss: What clip points cost: `head_loss`.
        progress: Called with evaluations done, in all, and the least loss so far.
        evaluations: Most calls of `loss`; the start takes one for each of `NORMS` and one more.

    Returns:
        The clip points of least loss among all that were tried.
    """
    space = _Space.of(graph, statistics, widths, fetch)
    trials = _Trials(loss, evaluations, progress, best=space.rest)
    with suppress(_BudgetSpentError):
        start_by_norm(space.at_norm, trials)
        _move_together(space, trials)
    trials.finish()
    return trials.best


def head_loss(
    graph: Graph,
    widths: Configuration,
    fetch: Sequence[str],
    frames: NDArray[np.uint8],
    loss: Loss = feature_loss,
    *,
    correct_bias: bool = True,
    threads: int = 1,
    reduced_range: bool = False,
) -> ClipLoss:
    """The loss of the network with an integer head on given clip points, rounded to the nearest.

    The head runs as it will when deployed, every code exact; the tail runs in floating point.

    Args:
        graph: The network, optimised.
        widths: Bits by node.
        fetch: The tensors of a cut.
        frames: (N, 3, H, W) calibration images; 8 to 16 are enough.
        loss: Of maps against those of the network in floating point, per image.
        correct_bias: Whether the mean error of each channel is taken out of its bias.
        threads: Of the head's runtime.
        reduced_range: As for `network.quantize`.

    Raises:
        ModelError: When called, if a node of the head has no integer form.
    """
    head = replace(graph, nodes=graph.ancestors(fetch), outputs=tuple(fetch))
    batches = [frames[start : start + _BATCH] for start in range(0, len(frames), _BATCH)]
    teachers = [_maps(graph, {IMAGE: torch.from_numpy(unit_range(each))}) for each in batches]
    samples = _input_samples(head, frames) if correct_bias else {}

    def evaluate(clips: Clips) -> float:
        network = quantize(head, clips, widths, reduced_range=reduced_range)
        model = open_model(head_model(_corrected(network, samples), fetch), threads=threads)
        total = 0.0
        for batch, teacher in zip(batches, teachers, strict=True):
            codes = [model.run({IMAGE: frame[None]}) for frame in batch]
            sent = {
                name: torch.from_numpy(network.grids[name].dequantize(np.concatenate(each)))
                for name, each in zip(fetch, zip(*codes, strict=True), strict=True)
            }
            total += len(batch) * float(loss(_maps(graph, sent), teacher))
        return total / len(frames)

    return evaluate


def start_by_norm(at_norm: Callable[[float], Clips], loss: ClipLoss) -> Clips:
    """Clip points at the p of least loss: a sampled one, or the minimum of a parabola.

    Args:
        at_norm: Clip points of least Lp error by p.
        loss: What they cost.
    """
    sampled = [at_norm(p) for p in NORMS]
    losses = [loss(clips) for clips in sampled]
    least = int(np.argmin(losses))
    between = parabola_minimum(NORMS, losses)
    if between is not None:
        clips = at_norm(between)
        if loss(clips) < losses[least]:
            return clips
    return sampled[least]


def parabola_minimum(places: Sequence[float], values: Sequence[float]) -> float | None:
    """Minimum of the least-squares parabola; None if it has none between the places."""
    square, linear, _ = np.polyfit(places, values, 2)
    if square <= 0:
        return None
    found = float(-linear / (2 * square))
    return found if min(places) <= found <= max(places) else None


def lp_range(distribution: Distribution, bits: int, p: float) -> Range:
    """The range of least Lp norm of the rounding error on the histogram.

    `grids.least_error_range` is the case p = 2.
    """
    values, counts = distribution.centres.astype(np.float32), distribution.counts
    best, least = (distribution.low, distribution.high), np.inf
    for low in min(distribution.low, 0.0) * _SHARES[::2] if distribution.low < 0 else (0.0,):
        for high in distribution.high * _SHARES if distribution.high > 0 else (0.0,):
            grid = QuantParams.over(float(low), float(high), bits)
            error = np.abs(grid.dequantize(grid.quantize(values)) - values)
            norm = float(np.dot(counts, error**p))
            if norm < least:
                best, least = (float(low), float(high)), norm
    return best


def lp_clip(weight: Floats, bits: int, p: float) -> Floats:
    """The clip point of least Lp norm of the rounding error of each channel."""
    flat = weight.reshape(len(weight), -1)
    most = largest(flat, bits)
    best, least = most, np.full(len(flat), np.inf)
    for share in _SHARES:
        clip = (most * np.float32(share)).astype(np.float32)
        scale = scale_of(clip, bits)
        error = np.abs(flat - round_nearest(flat, scale, bits) * scale[:, None])
        norm = np.power(error, np.float32(p)).sum(1, dtype=np.float64)
        best = np.where(norm < least, clip, best)
        least = np.minimum(norm, least)
    return best


def _maps(graph: Graph, sent: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    maps = execute.run(graph, sent, last_computable(graph))
    return [maps[name] for name in last_computable(graph)]


def _input_samples(head: Graph, frames: NDArray[np.uint8]) -> dict[str, Floats]:
    """Sample each convolution's input in floating point, (C_in, n), spread over the frames."""
    convs = [node for node in head.nodes if node.op == "conv"]
    read = tuple({node.inputs[0] for node in convs})
    each = -(-_SAMPLES // len(frames))
    parts: dict[str, list[Floats]] = {name: [] for name in read}
    for frame in frames:
        values = execute.run(head, {IMAGE: torch.from_numpy(unit_range(frame[None]))}, read)
        for name, tensor in values.items():
            flat = tensor[0].flatten(1).numpy()
            parts[name].append(flat[:, :: max(1, flat.shape[1] // each)])
    return {node.name: np.concatenate(parts[node.inputs[0]], 1) for node in convs}


def _corrected(network: QuantizedGraph, samples: Mapping[str, Floats]) -> QuantizedGraph:
    """Biases without the mean error that rounded inputs and weights make on samples of inputs."""
    convs = dict(network.convs)
    for name, values in samples.items():
        node, conv = network.graph[name], convs[name]
        if node.weight is None:
            raise ModelError(f"{name}: a convolution without weights")
        source = network.grids[node.inputs[0]]
        rounded = source.dequantize(source.quantize(values)).mean(1)
        off = _mean_sums(node, conv.real, rounded) - _mean_sums(node, node.weight, values.mean(1))
        bias = -off if node.bias is None else node.bias - off
        convs[name] = replace(conv, bias=integer_bias(bias, source, conv.scale))
    return replace(network, convs=convs)


def _mean_sums(node: Node, weight: Floats, means: Floats) -> Floats:
    """(C_out,) mean of a convolution's sums, given those of its input channels (C_in,)."""
    groups = node.attributes["groups"]
    kernels = weight.sum((2, 3)).reshape(groups, len(weight) // groups, -1)
    return np.asarray(np.einsum("gok,gk->go", kernels, means.reshape(groups, -1)).ravel(), "f4")


class _BudgetSpentError(Exception):
    """No evaluation is left."""


class _Trials:
    """Counts evaluations of a loss and keeps the best clip points."""

    def __init__(
        self, loss: ClipLoss, evaluations: int, progress: Progress, *, best: Clips
    ) -> None:
        self._loss = loss
        self._total = evaluations
        self._progress = progress
        self._done = 0
        self._least = np.inf
        self.best = best

    def __call__(self, clips: Clips) -> float:
        if self._done >= self._total:
            raise _BudgetSpentError
        value = self._loss(clips)
        if value < self._least:
            self.best, self._least = clips, value
        self._done += 1
        self._progress(self._done, self._total, f"{self._least:.4g}")
        return value

    def finish(self) -> None:
        """Report that no evaluation follows."""
        self._progress(self._total, self._total, f"{self._least:.4g}")


@dataclass(frozen=True, eq=False)
class _Space:
    """The clip points that are searched: those of a head.

    Attributes:
        rest: Clip points of the whole network, of least squared error.
        head: The nodes that make new values, in the order of execution.
        statistics: Distributions of their tensors.
        widths: Bits by node.
    """

    rest: Clips
    head: tuple[Node, ...]
    statistics: Statistics
    widths: Configuration

    @classmethod
    def of(
        cls, graph: Graph, statistics: Statistics, widths: Configuration, fetch: Sequence[str]
    ) -> "_Space":
        """Search space of the head that makes the tensors `fetch`."""
        rest = choose_clips(graph, statistics, widths, clipping="mse", weight_clipping="mse")
        prefix = graph.ancestors(fetch)
        head = tuple(node for node in prefix if makes_values(node))
        return cls(rest, head, statistics, widths)

    @property
    def ranges(self) -> tuple[str, ...]:
        """Tensors of fewer than 8 bits."""
        return tuple(node.name for node in self.head if self._bits(node).activation < 8)

    @property
    def convs(self) -> tuple[str, ...]:
        """Convolutions with weights of fewer than 8 bits."""
        return tuple(
            node.name for node in self.head if node.op == "conv" and self._bits(node).weight < 8
        )

    def at_norm(self, p: float) -> Clips:
        """Clip points of least Lp error; weights of 8 bits are not clipped."""
        after, before = dict(self.rest.after), dict(self.rest.before)
        weights = dict(self.rest.weights)
        for node in self.head:
            bits = self._bits(node)
            after[node.name] = lp_range(self.statistics.after[node.name], bits.activation, p)
            if has_table(node):
                before[node.name] = lp_range(self.statistics.before[node.name], 8, p)
            if node.name in self.convs and node.weight is not None:
                weights[node.name] = lp_clip(node.weight, bits.weight, p)
        return Clips(after, before, weights)

    def scaled(self, clips: Clips, octaves: NDArray[np.float64]) -> Clips:
        """Clip points moved by 2^octaves: (R + C,) for `ranges`, then `convs`."""
        factors = np.exp2(octaves).tolist()
        after, weights = dict(clips.after), dict(clips.weights)
        for name, factor in zip(self.ranges, factors, strict=False):
            low, high = after[name]
            after[name] = low * factor, high * factor
        for name, factor in zip(self.convs, factors[len(self.ranges) :], strict=True):
            weights[name] = weights[name] * np.float32(factor)
        return replace(clips, after=after, weights=weights)

    def _bits(self, node: Node) -> Widths:
        return self.widths.get(node.name, FULL)


def _move_together(space: _Space, trials: _Trials) -> None:
    """Sweeps of Powell's method, each from the best clip points seen and half as wide.

    A line search on a loss with steps in it may leave a good place and not find back.
    """
    count = len(space.ranges) + len(space.convs)
    reach = _MOST_OCTAVES
    while count and reach > _LEAST_OCTAVES:
        start = trials.best
        minimize(
            lambda octaves, start=start: trials(space.scaled(start, octaves)),
            np.zeros(count),
            method="Powell",
            bounds=[(-reach, reach)] * count,
            options={"xtol": _LINE_TOLERANCE * reach, "maxiter": 1},
        )
        reach /= 2
