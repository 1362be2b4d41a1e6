"""LAPQ: clip points chosen by the loss of the network."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows

from search.network import execute
from search.network.graph import Graph
from search.quantization import integer
from search.quantization.calibration import Distribution, Statistics, observe
from search.quantization.grids import least_error_range
from search.quantization.lapq import (
    NORMS,
    head_loss,
    lapq,
    lp_clip,
    lp_range,
    parabola_minimum,
    start_by_norm,
)
from search.quantization.network import Clips, choose_clips, quantize
from search.quantization.weights import CLIPS, Floats, round_nearest, scale_of
from search.quantization.widths import Widths, uniform
from tests.networks import branched_graph, pictures

FRAMES = pictures(4)
FETCH = ("add_4", "max_pool_8")


@pytest.fixture(scope="module")
def graph() -> Graph:
    return branched_graph()


@pytest.fixture(scope="module")
def statistics(graph: Graph) -> Statistics:
    return observe(graph, FRAMES)


def _three_bits(graph: Graph) -> dict[str, Widths]:
    return uniform(graph, 3, 3)


@pytest.mark.parametrize(("weight", "activation"), [(3, 8), (8, 3)])
def test_the_loss_falls_below_the_start_and_below_other_ranges(
    graph: Graph, statistics: Statistics, weight: int, activation: int
) -> None:
    widths = uniform(graph, weight, activation)
    loss = head_loss(graph, widths, graph.outputs, FRAMES)
    tried: list[float] = []

    def watched(clips: Clips) -> float:
        tried.append(loss(clips))
        return tried[-1]

    found = lapq(graph, statistics, widths, graph.outputs, watched, evaluations=80)
    start = min(tried[: len(NORMS) + 1])
    assert loss(found) == min(tried)
    assert loss(found) < 0.95 * start
    whole = choose_clips(graph, statistics, widths, clipping="minmax", weight_clipping="minmax")
    assert loss(found) < 0.8 * loss(whole)


@pytest.mark.parametrize("evaluations", [0, 1, len(NORMS), 23])
def test_no_more_evaluations_than_allowed(
    graph: Graph, statistics: Statistics, evaluations: int
) -> None:
    steps: list[tuple[int, int]] = []
    calls: list[Clips] = []

    def loss(clips: Clips) -> float:
        calls.append(clips)
        return float(len(calls) % 7)

    found = lapq(
        graph,
        statistics,
        _three_bits(graph),
        graph.outputs,
        loss,
        lambda done, total, _note: steps.append((done, total)),
        evaluations=evaluations,
    )
    assert len(calls) == evaluations
    assert set(found.weights) == {node.name for node in graph.nodes if node.op == "conv"}
    assert steps[-1] == (evaluations, evaluations)


def test_only_few_bits_of_the_head_are_moved(graph: Graph, statistics: Statistics) -> None:
    """Weights of 8 bits are never clipped; what lies behind the cut keeps the usual ranges."""
    widths = uniform(graph, 8, 3)
    loss = head_loss(graph, widths, FETCH, FRAMES[:1])
    found = lapq(graph, statistics, widths, FETCH, loss, evaluations=20)
    usual = choose_clips(graph, statistics, widths, clipping="mse", weight_clipping="mse")
    head = {node.name for node in graph.ancestors(FETCH)}
    for name, clip in found.weights.items():
        np.testing.assert_array_equal(clip, usual.weights[name])
    for name, ends in found.after.items():
        assert name in head or ends == usual.after[name]


def test_the_loss_is_that_of_the_integer_head(graph: Graph, statistics: Statistics) -> None:
    """Of the maps that the tail makes of the reference's codes, whatever the size of a batch."""
    widths = uniform(graph, 4, 4)
    clips = choose_clips(graph, statistics, widths, clipping="mse", weight_clipping="mse")
    frames = pictures(6)
    found = head_loss(graph, widths, FETCH, frames, _squared, correct_bias=False)(clips)
    network = quantize(graph, clips, widths)
    codes = integer.run(network, frames, FETCH)
    sent = {
        name: torch.from_numpy(network.grids[name].dequantize(each))
        for name, each in zip(FETCH, codes, strict=True)
    }
    exact = {"image": torch.from_numpy(frames).float() / 255}
    maps, teacher = (
        [execute.run(graph, feeds, graph.outputs)[name] for name in graph.outputs]
        for feeds in (sent, exact)
    )
    assert found == pytest.approx(float(_squared(maps, teacher)), rel=1e-3)


def test_corrected_biases_lower_the_loss(graph: Graph, statistics: Statistics) -> None:
    widths = uniform(graph, 3, 8)
    clips = choose_clips(graph, statistics, widths, clipping="mse", weight_clipping="mse")
    plain, corrected = (
        head_loss(graph, widths, graph.outputs, FRAMES, correct_bias=correct)(clips)
        for correct in (False, True)
    )
    assert corrected < 0.9 * plain


@pytest.mark.parametrize("bits", [3, 8])
def test_the_second_norm_is_that_of_least_squared_error(bits: int) -> None:
    sample = np.random.default_rng(0).laplace(0, 1, (4, 2000)).astype(np.float32)

    def error(clip: Floats) -> Floats:
        scale = scale_of(clip, bits)
        off = sample - round_nearest(sample, scale, bits) * scale[:, None]
        return np.asarray((off**2).sum(1), np.float32)

    assert (error(lp_clip(sample, bits, 2)) <= 1.05 * error(CLIPS["mse"](sample, bits))).all()


def test_a_larger_norm_clips_less() -> None:
    sample = np.random.default_rng(0).laplace(0, 1, (4, 5000)).astype(np.float32)
    clips = [lp_clip(sample, 4, p) for p in (1.5, 2.0, 3.0, 4.0)]
    assert all((low <= high).all() for low, high in itertools.pairwise(clips))
    assert (clips[0] < 0.8 * clips[-1]).all()
    counts, _ = np.histogram(np.abs(sample), 2048, (0, 12))
    distribution = Distribution(0.0, 12.0, counts.astype(np.float64))
    highs = [lp_range(distribution, 4, p)[1] for p in (1.5, 2.0, 3.0, 4.0)]
    assert highs == sorted(highs)
    assert lp_range(distribution, 4, 2.0) == pytest.approx(
        least_error_range(distribution, 4), rel=0.05
    )


def test_parabolas_are_fitted_exactly() -> None:
    def minimum(of: Callable[[float], float]) -> float | None:
        return parabola_minimum(NORMS, [of(p) for p in NORMS])

    assert minimum(lambda p: 3 * (p - 2.7) ** 2 + 5) == pytest.approx(2.7, abs=1e-9)
    assert minimum(lambda p: -((p - 2.7) ** 2)) is None
    assert minimum(lambda p: (p - 9) ** 2) is None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (lambda p: (p - 2.6) ** 2, 2.6),  # the vertex, which was not sampled
        (lambda p: -((p - 2.9) ** 2), 4.0),  # opens downwards: the best that was sampled
        (lambda p: p, 2.0),  # the vertex is far off
        (lambda p: (p - 2.6) ** 2 + 9 * (p not in NORMS), 2.5),  # the parabola was wrong
    ],
)
def test_the_start_is_at_the_best_norm(losses: Callable[[float], float], expected: float) -> None:
    def at_norm(p: float) -> Clips:
        return Clips({"p": (0.0, p)}, {}, {})

    found = start_by_norm(at_norm, lambda clips: losses(clips.after["p"][1]))
    assert found.after["p"][1] == pytest.approx(expected)


def _squared(maps: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over images, so that batches of any size can be put together."""
    return torch.stack([F.mse_loss(m, t) for m, t in zip(maps, teacher, strict=True)]).sum()
