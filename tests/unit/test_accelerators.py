"""Simulated accelerators, on layers whose cycles and bytes can be worked out by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from common.errors import SettingsError
from search.network.graph import Graph, Node, Shape
from search.prediction.accelerators import (
    EYERISS_LIKE,
    TPU_LIKE,
    Accelerator,
    MatrixProduct,
    matrix_product,
)

SMALL = Accelerator("small", rows=4, columns=4, clock_hz=1e6, dma_cycles_per_byte=0.5)


def conv(name: str, source: str, shape: Shape, taken: int, kernel: int, groups: int = 1) -> Node:
    weight = np.zeros((shape[0], taken // groups, kernel, kernel), np.float32)
    return Node(name, "conv", (source,), shape, {"groups": groups}, weight)


GRAPH = Graph(
    (
        Node("image", "input", (), (3, 32, 32)),
        conv("a", "image", (8, 16, 16), taken=3, kernel=3),
        conv("b", "a", (8, 16, 16), taken=8, kernel=3, groups=8),
        Node("c", "add", ("a", "b"), (8, 16, 16)),
        Node("d", "concat", ("c", "b"), (16, 16, 16)),
        Node("e", "reshape", ("d",), (4096, 1, 1)),
        conv("f", "e", (10, 1, 1), taken=4096, kernel=1),
    ),
    ("f",),
)
BYTES = dict.fromkeys(GRAPH.by_name, 8)


def ms(name: str, weight_bits: int = 8, **bits: int) -> float:
    return SMALL.layer_ms(GRAPH, GRAPH[name], weight_bits, BYTES | bits)


@pytest.mark.parametrize(
    ("name", "product", "cycles"),
    [
        # ceil(27 / 4) x ceil(8 / 4) folds, of 2 x 4 + 4 - 2 cycles and one for each pixel
        ("a", MatrixProduct(256, 27, 8), 7 * 2 * (10 + 256)),
        # a product for each group, of one channel: three quarters of the columns idle
        ("b", MatrixProduct(256, 9, 1, groups=8), 8 * 3 * 1 * (10 + 256)),
        # fully connected: a single pixel
        ("f", MatrixProduct(1, 4096, 10), 1024 * 3 * (10 + 1)),
        ("c", None, 0),
    ],
)
def test_cycles_of_the_array(name: str, product: MatrixProduct | None, cycles: int) -> None:
    assert matrix_product(GRAPH[name]) == product
    assert (0 if product is None else SMALL.product_cycles(product)) == cycles
    assert SMALL.array_ms(GRAPH[name]) == pytest.approx(cycles / 1e3)


def test_an_array_never_takes_fewer_cycles_than_its_elements_need() -> None:
    for node in GRAPH.nodes:
        for design in (SMALL, EYERISS_LIKE, TPU_LIKE):
            cycles = design.array_ms(node) * design.clock_hz / 1e3
            assert cycles * design.rows * design.columns >= node.macs


def test_the_dma_moves_weights_inputs_and_output_at_their_widths() -> None:
    array_ms = 3724 / 1e3  # a cycle takes a microsecond
    assert ms("a") == pytest.approx(array_ms + 0.5 * (216 + 3072 + 2048) / 1e3)
    assert ms("a", 2) == pytest.approx(array_ms + 0.5 * (54 + 3072 + 2048) / 1e3)
    assert ms("a", a=4) == pytest.approx(array_ms + 0.5 * (216 + 3072 + 1024) / 1e3)
    assert ms("c", b=2) == pytest.approx(0.5 * (2048 + 512 + 2048) / 1e3)


def test_joins_and_reshapes_take_no_time() -> None:
    assert [SMALL.moved(node) for node in GRAPH.nodes[3:6]] == [("a", "b", "c"), (), ()]
    assert ms("d") == ms("e") == 0.0


def test_a_stalling_schedule_slows_the_array_and_not_the_dma() -> None:
    half = replace(SMALL, utilisation=0.5)
    node = GRAPH["a"]
    assert half.array_ms(node) == 2 * SMALL.array_ms(node)
    assert half.moving_ms(80) == SMALL.moving_ms(80) == pytest.approx(5e-3)


def test_a_chip_that_keeps_its_tensors_moves_weights_alone() -> None:
    keeping = replace(SMALL, keeps_tensors=True)
    assert [keeping.moved(node) for node in GRAPH.nodes] == [()] * len(GRAPH.nodes)
    array_ms = keeping.array_ms(GRAPH["a"])
    assert keeping.layer_ms(GRAPH, GRAPH["a"], 4, BYTES) == pytest.approx(array_ms + 0.5 * 0.108)


def test_the_designs_are_those_of_the_original() -> None:
    assert EYERISS_LIKE.rows * EYERISS_LIKE.columns == 336
    assert TPU_LIKE.rows * TPU_LIKE.columns == 5376
    # a byte takes a nanosecond, and a thirteenth of one
    assert EYERISS_LIKE.moving_ms(8e6) == pytest.approx(1.0, rel=0.01)
    assert TPU_LIKE.moving_ms(8e6) == pytest.approx(1 / 13, rel=0.01)


@pytest.mark.parametrize(
    "wrong", [{"rows": 0}, {"clock_hz": -1.0}, {"utilisation": 0.0}, {"utilisation": 1.5}]
)
def test_impossible_designs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="small: rows, columns, clock and DMA"):
        replace(SMALL, **wrong)
