"""Auto-Split: its list of configurations, on networks small enough to work out by hand."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from common.errors import ModelError
from search.allocate.auto_split import auto_split, below_uniform, candidate_ranks
from search.allocate.table import (
    IMAGE,
    FusedLayer,
    Table,
    quantization_errors,
    random_errors,
    uniform_error,
    with_errors,
)

ERRORS = {2: 64.0, 4: 16.0, 6: 4.0, 8: 1.0}
"""Of one element: equal slopes, so that an average of b bits gives every layer b bits."""


def layer(rank: int, outputs: int, weights: int, *reads: str) -> FusedLayer:
    return FusedLayer(
        rank=rank,
        name=f"l{rank}",
        predecessors=reads,
        volume_in=outputs,
        volume_out=outputs,
        weight_volume=weights,
        macs=outputs * weights,
        weight_errors={width: error * weights for width, error in ERRORS.items()},
        activation_errors={width: error * outputs for width, error in ERRORS.items()},
    )


CHAIN = Table(
    (
        layer(0, 200, 10, IMAGE),
        layer(1, 100, 20, "l0"),
        layer(2, 50, 40, "l1"),
        layer(3, 10, 80, "l2"),
    ),
    image_elements=100,
)
"""The image has 800 bits. At 2 bits the cuts send 400, 200, 100 and 20."""
SKIP = Table(
    (*CHAIN.layers[:3], replace(CHAIN.layers[3], predecessors=("l2", "l0"))), image_elements=100
)
"""The last layer reads the first one's output, too: the cuts send 400, 600, 500 and 20."""


def test_cuts_that_send_least_come_first() -> None:
    assert candidate_ranks(CHAIN) == [3, 2, 1, 0]


def test_what_a_later_layer_still_reads_is_sent_as_well() -> None:
    widths = {layer.name: 2 for layer in SKIP.layers}
    assert [SKIP.sent_bits(rank, widths) for rank in range(4)] == [400, 600, 500, 20]
    assert candidate_ranks(SKIP) == [3, 0, 2, 1]


def test_an_output_of_the_network_and_an_image_that_is_still_read_are_sent() -> None:
    table = Table((layer(0, 5, 1), layer(1, 7, 1, "l0"), layer(2, 9, 1, "l0", IMAGE)), 100)
    widths = {"l0": 2, "l1": 2, "l2": 2}
    assert [table.sent_bits(rank, widths) for rank in range(3)] == [810, 824, 32]


def test_of_cuts_that_send_as_much_the_earliest_stays() -> None:
    table = Table((layer(0, 50, 1), layer(1, 50, 1, "l0"), layer(2, 60, 1, "l1")), 100)
    assert candidate_ranks(table) == [0, 2]


def test_without_a_cut_that_sends_less_the_best_five_stay(caplog: pytest.LogCaptureFixture) -> None:
    layers = tuple(
        layer(rank, 500 - rank, 1, f"l{rank - 1}" if rank else IMAGE) for rank in range(7)
    )
    with caplog.at_level(logging.WARNING):
        table = Table(layers, 100)
        assert candidate_ranks(table) == [6, 5, 4, 3, 2]
    assert "no cut sends less than the image" in caplog.text
    # Raising their average is of no use: each is listed at the first one.
    split = [c for c in auto_split(table, 10_000) if c.cut == "l2"]
    assert [c.name for c in split] == [
        "w8.00-l2-a2-8-bit",
        "w8.00-l2-a2-raised",
        "w8.00-l2-a2-allocated",
    ]


def test_the_configurations_of_one_cut_of_a_chain() -> None:
    # At 4 bits l0 takes the whole peak of 800 bits, at 6 it is the peak; at 8 bits l1 is an image.
    # The device has 1,280 bits: 480 or 80 are left for the 30 weights.
    split = [c for c in auto_split(CHAIN, 1280) if c.cut == "l1"]
    assert [(c.name, c.activations, c.transmitted_bits, c.edge_bits) for c in split] == [
        ("w8.00-l1-a2-8-bit-over-memory", {"l0": 8, "l1": 2}, 200, 1840),
        ("w8.00-l1-a2-raised", {"l0": 4, "l1": 2}, 200, 1040),
        ("w8.00-l1-a2-allocated", {"l0": 2, "l1": 2}, 200, 1040),
        ("w8.00-l1-a4-8-bit-over-memory", {"l0": 8, "l1": 4}, 400, 1840),
        ("w8.00-l1-a4-raised", {"l0": 4, "l1": 4}, 400, 1040),
        ("w8.00-l1-a4-allocated", {"l0": 4, "l1": 4}, 400, 1040),
        ("w2.00-l1-a6-8-bit-over-memory", {"l0": 8, "l1": 6}, 600, 1660),
        ("w2.00-l1-a6-raised", {"l0": 6, "l1": 6}, 600, 1260),
        ("w2.00-l1-a6-allocated", {"l0": 6, "l1": 6}, 600, 1260),
    ]
    assert split[1].weights == {"l0": 8, "l1": 8}
    assert split[1].error == 30 * 1 + 200 * 16 + 100 * 64
    assert split[1].flags == ("raised",)
    assert split[0].flags == ("8-bit", "over-memory")


def test_the_configurations_of_one_cut_with_a_skip() -> None:
    # Behind l1 both outputs travel: neither is raised, and at 4 bits they are larger than an image.
    split = [c for c in auto_split(SKIP, 1280) if c.cut == "l1"]
    assert [(c.name, c.activations, c.transmitted_bits, c.edge_bits) for c in split] == [
        ("w8.00-l1-a2-8-bit", {"l0": 2, "l1": 2}, 600, 1040),
        ("w8.00-l1-a2-raised", {"l0": 2, "l1": 2}, 600, 1040),
        ("w8.00-l1-a2-allocated", {"l0": 2, "l1": 2}, 600, 1040),
    ]


def test_a_cut_whose_weights_never_fit_is_not_listed() -> None:
    cuts = {c.cut for c in auto_split(CHAIN, 800 + 2 * 70) if "uniform" not in c.flags}
    assert cuts == {"l0", "l1", "l2", ""}


def test_edge_only_and_cloud_only_close_the_list() -> None:
    *uniform, cloud = auto_split(CHAIN, 2000)[-5:]
    assert [(c.name, c.edge_bits, c.error) for c in uniform] == [
        ("w2.00-l3-a2-uniform", 150 * 2 + 800, 510 * 64),
        ("w4.00-l3-a4-uniform", 150 * 4 + 800, 510 * 16),
        ("w6.00-l3-a6-uniform-over-memory", 150 * 6 + 1200, 510 * 4),
        ("w8.00-l3-a8-uniform-over-memory", 150 * 8 + 1600, 510),
    ]
    assert all(c.transmitted_bits == 0 for c in uniform)
    assert (cloud.name, cloud.cut, cloud.transmitted_bits) == ("cloud-only", "", 800)
    assert (cloud.edge_bits, cloud.error, cloud.weights, cloud.activations) == (0, 0, {}, {})


def test_only_what_errs_less_than_uniform_2_bits_is_worth_simulating() -> None:
    everything = auto_split(CHAIN, 2000)
    kept = below_uniform(everything, CHAIN)
    assert uniform_error(CHAIN, 2) == 510 * 64
    assert [c.name for c in everything if c not in kept] == ["w2.00-l3-a2-uniform"]
    assert {c.cut for c in below_uniform(everything, CHAIN, bits=8)} == {""}


def test_a_layer_without_weights_needs_no_errors_of_them() -> None:
    pool = replace(layer(1, 25, 0, "l0"), weight_errors={})
    table = Table((layer(0, 100, 10), pool, layer(2, 10, 20, "l1")), 100)
    split = [c for c in auto_split(table, 2000) if c.cut == "l1"]
    assert split
    assert all(c.weights == {"l0": 8} for c in split)


def test_a_table_out_of_order_is_refused() -> None:
    with pytest.raises(ModelError, match="l0: not in topological order"):
        Table((layer(0, 1, 1, "l1"), layer(1, 1, 1)), 1)
    with pytest.raises(ModelError, match="without layers"):
        Table((), 1)


def test_random_errors_are_those_of_uniform_noise_and_fall_with_the_width() -> None:
    layers = (layer(0, 300_000, 30_000), layer(1, 100_000, 10_000, "l0"))
    drawn = random_errors(layers, seed=1)
    assert random_errors(layers, seed=1) == drawn
    assert random_errors(layers, seed=2) != drawn
    for width, error in drawn[0].weight_errors.items():
        # Uniform in [-1, 1], three quarters of all weights: a step of noise has step^2 / 12.
        assert error == pytest.approx(0.75 * (2 / (2**width - 1)) ** 2 / 12, rel=0.05)
    for one in drawn:
        for errors in (one.weight_errors, one.activation_errors):
            assert list(errors) == [2, 4, 6, 8]
            assert list(errors.values()) == sorted(errors.values(), reverse=True)


def test_the_error_of_a_tensor_is_that_of_a_linear_quantizer_over_its_range() -> None:
    tensor = np.array([[0.0, 0.4, 1.0], [2.0, 2.6, 3.0]], np.float32)
    errors = quantization_errors(tensor, (1, 2))
    assert errors[1] == pytest.approx((0 + 0.4**2 + 1 + 1 + 0.4**2 + 0) / 6)
    assert errors[2] == pytest.approx((0.4**2 + 0.4**2) / 6)
    assert quantization_errors(tensor, (2,), share=0.25)[2] == pytest.approx(errors[2] / 4)


def test_a_constant_tensor_has_no_error() -> None:
    assert quantization_errors(np.full(5, 1.5)) == {2: 0, 4: 0, 6: 0, 8: 0}


def test_the_errors_of_real_tensors_are_weighted_by_volume() -> None:
    layers = (layer(0, 3, 1), layer(1, 1, 0, "l0"))
    tensor = np.array([0.0, 0.4, 1.0])
    measured = with_errors(layers, {"l0": tensor}, {"l0": tensor, "l1": tensor}, (1,))
    whole = 0.4**2 / 3
    assert measured[0].weight_errors[1] == pytest.approx(whole)
    assert measured[1].weight_errors == {}
    assert measured[0].activation_errors[1] == pytest.approx(0.75 * whole)
    assert measured[1].activation_errors[1] == pytest.approx(0.25 * whole)
