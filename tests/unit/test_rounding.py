"""Few bits: grids and weights, rounding together, and the file of widths that people edit."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import SettingsError
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network.cuts import enumerate_cuts
from search.network.graph import Graph
from search.network.quant_params import QuantParams
from search.quantization import integer, reconstruct
from search.quantization.adaround import adaround
from search.quantization.calibration import Distribution, Statistics, observe
from search.quantization.export import head_model
from search.quantization.grids import RANGES, Clipping
from search.quantization.layers import layers_of
from search.quantization.network import Rounding
from search.quantization.recipe import reconstructed, rounded
from search.quantization.recipes import RECIPES, Recipe, recipe
from search.quantization.weights import CLIPS, limits, round_nearest, scale_of
from search.quantization.widths import Widths, read_widths, uniform, write_widths
from tests.networks import branched_graph, pictures

FRAMES = pictures(8)


@pytest.fixture(autouse=True)
def _few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough of AdaRound for a small network."""
    few = {**reconstruct._ROUNDINGS, "adaround": partial(adaround, steps=150)}
    monkeypatch.setattr(reconstruct, "_ROUNDINGS", few)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return branched_graph()


@pytest.fixture(scope="module")
def statistics(graph: Graph) -> Statistics:
    return observe(graph, FRAMES)


def test_aciq_keeps_all_of_what_has_no_spread() -> None:
    weight = np.full((2, 1, 1, 3), 0.5, np.float32)
    weight[1] = 0
    np.testing.assert_array_equal(CLIPS["aciq"](weight, 4), [0.5, 0.0])
    assert RANGES["aciq"](Distribution(0.0, 4.0, np.eye(1, 64, 3)[0]), 4) == (0.0, 4.0)


@pytest.mark.parametrize(("weight", "activation"), [(4, 8), (2, 6), (8, 4), (6, 2)])
def test_heads_of_few_bits_reproduce_the_integer_reference(
    graph: Graph, statistics: Statistics, weight: int, activation: int
) -> None:
    widths, reduced = uniform(graph, weight, activation), saturates_int8()
    network = rounded(graph, statistics, widths, reduced_range=reduced)
    for cut in enumerate_cuts(graph, max_tensors=8)[1:]:
        codes = open_model(head_model(network, cut.tensors)).run({"image": FRAMES[:1]})
        check_parity(codes, integer.run(network, FRAMES[:1], cut.tensors), what=cut.name)
        for name, made in zip(cut.tensors, codes, strict=True):
            assert made.max() < 1 << network.grids[name].bits
    low, high = limits(weight)
    for conv in network.convs.values():
        assert low <= conv.weight.min() <= conv.weight.max() <= high
        assert conv.stored_bytes == -(-conv.weight.size * weight // 8) + 8 * len(conv.scale)


@pytest.mark.parametrize("rounding", ["adaround", "descent"])
def test_rounding_together_beats_rounding_to_the_nearest(
    graph: Graph, statistics: Statistics, rounding: Rounding
) -> None:
    """Judged by each layer's output on what it really reads, positions that were not sampled."""
    widths = {name: Widths(weight=3) for name in uniform(graph)}
    network = rounded(graph, statistics, widths)
    better = reconstructed(network, graph.outputs, FRAMES[:6], Recipe(rounding=rounding))
    unseen = FRAMES[6:]
    gains = []
    for layer in layers_of(better, graph.outputs, unseen):
        name = layer.node.name
        errors = [
            float(layer.error(torch.from_numpy(conv.real)))
            for conv in (network.convs[name], better.convs[name])
        ]
        gains.append(errors[1] / errors[0])
    assert np.exp(np.mean(np.log(gains))) < 0.9


def test_corrected_biases_leave_no_mean_error(graph: Graph, statistics: Statistics) -> None:
    network = rounded(graph, statistics, uniform(graph, 4, 8))
    means = []
    for how in (Recipe(rounding="nearest", correct_bias=False), Recipe(rounding="nearest")):
        corrected = reconstructed(network, graph.outputs, FRAMES, how)
        for layer in layers_of(corrected, graph.outputs, FRAMES):
            conv = corrected.convs[layer.node.name]
            source = corrected.grids[layer.node.inputs[0]]
            bias = torch.from_numpy(conv.bias * conv.scale * np.float32(source.scale)).float()
            off = layer.sums(torch.from_numpy(conv.real), bias) - layer.target
            means.append(float(off.mean(0).abs().mean()))
    half = len(means) // 2
    assert sum(means[half:]) < 0.2 * sum(means[:half])


@pytest.mark.parametrize("name", list(RECIPES))
def test_every_recipe_rounds_a_network(graph: Graph, statistics: Statistics, name: str) -> None:
    how = recipe(name)
    network = rounded(graph, statistics, uniform(graph, 4, 8), how)
    better = reconstructed(network, graph.outputs, FRAMES[:2], how)
    assert set(better.convs) == set(network.convs)


def test_unknown_recipes_are_named() -> None:
    with pytest.raises(SettingsError, match="unknown quantizer 'x': choose one of default"):
        recipe("x")


@pytest.mark.parametrize("clipping", list(RANGES))
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ranges_lie_within_what_was_seen(clipping: Clipping, bits: int) -> None:
    rng = np.random.default_rng(0)
    for sample in (rng.laplace(0, 1, 50_000), np.abs(rng.normal(0, 1, 50_000))):
        low, high = float(sample.min()), float(sample.max())
        low = min(low, 0.0) if low < 0 else 0.0
        counts, _ = np.histogram(sample, 2048, (low, high))
        found = RANGES[clipping](Distribution(low, high, counts.astype(float)), bits)
        assert low - 1e-6 <= found[0] <= 0 < found[1] <= high + 1e-6


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_aciq_is_the_optimum_on_its_own_prior(bits: int) -> None:
    """No other symmetric clip point has noticeably less error on Laplace samples."""
    sample = np.random.default_rng(0).laplace(0, 2, 400_000).astype(np.float32)
    most = float(np.abs(sample).max())
    counts, _ = np.histogram(sample, 4096, (-most, most))
    chosen = RANGES["aciq"](Distribution(-most, most, counts.astype(float)), bits)

    def error(clip: float) -> float:
        step = 2 * clip / (1 << bits)  # mid-rise, as the formula assumes
        codes = np.clip(np.floor(sample / step) + 0.5, 0.5 - (1 << bits - 1), (1 << bits - 1) - 0.5)
        return float(np.mean((codes * step - sample) ** 2))

    best = min(error(clip) for clip in np.linspace(0.2, most, 200))
    assert error(chosen[1]) < 1.05 * best


def test_least_error_of_weights_is_never_worse_than_the_whole_range() -> None:
    weight = np.random.default_rng(0).standard_t(3, (16, 8, 3, 3)).astype(np.float32)
    for bits in (2, 3, 4):
        errors = []
        for method in ("minmax", "mse"):
            scale = scale_of(CLIPS[method](weight, bits), bits)
            real = round_nearest(weight, scale, bits) * scale[:, None, None, None]
            errors.append(np.square(real - weight).sum((1, 2, 3)))
        assert (errors[1] <= errors[0] * (1 + 1e-6)).all()


def test_grids_of_few_bits_saturate_at_their_own_top() -> None:
    grid = QuantParams.over(-1.0, 2.0, 2)
    assert grid.top == 3
    assert grid.quantize(np.array([-9, 0, 9], np.float32)).tolist() == [0, 1, 3]


@pytest.mark.parametrize("name", ["widths.yaml", "widths.json"])
def test_widths_survive_a_file(graph: Graph, tmp_path: Path, name: str) -> None:
    widths = uniform(graph, 4, 8) | {"conv_0": Widths(weight=8, activation=6)}
    write_widths(tmp_path / name, widths)
    assert read_widths(tmp_path / name, graph) == widths


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("conv_0: {weight: 4, activation: 99}", "conv_0.activation: .* less than or equal to 8"),
        ("conv_0: {weight: 1}", "conv_0.weight: .* greater than or equal to 2"),
        ("conv_0: {bits: 4}", "conv_0.bits: Extra inputs"),
        ("conv_99: {weight: 4}", "no layer conv_99; it has conv_0, "),
        ("- conv_0", "valid dictionary"),
        ("{", "no configuration of widths"),
        ("", "valid dictionary"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_bad_files_of_widths_are_one_line(
    graph: Graph, tmp_path: Path, text: str, error: str
) -> None:
    path = tmp_path / "widths.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=error) as caught:
        read_widths(path, graph)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_widths_is_named(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_widths(tmp_path / "none.yaml", graph)
