"""Heads in 8 bits: the runtime reproduces the integer reference, tails reproduce torch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.errors import CalibrationError, ModelError, ParityError
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import enumerate_cuts
from search.network.quant_params import QuantParams
from search.quantization import integer
from search.quantization.calibration import Distribution, observe
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.grids import least_error_range
from search.quantization.network import QuantizedGraph
from search.quantization.recipe import rounded
from tests.networks import SIZE, branched_graph

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 3, *SIZE), np.uint8)


@pytest.fixture(scope="module")
def network() -> QuantizedGraph:
    graph = branched_graph()
    return rounded(graph, observe(graph, FRAMES), reduced_range=saturates_int8())


def test_every_head_reproduces_the_integer_reference(network: QuantizedGraph) -> None:
    for cut in enumerate_cuts(network.graph, max_tensors=8)[1:]:
        codes = open_model(head_model(network, cut.tensors)).run({"image": FRAMES[:1]})
        check_parity(codes, integer.run(network, FRAMES[:1], cut.tensors), what=cut.name)


def test_reduced_range_keeps_weights_to_seven_bits(network: QuantizedGraph) -> None:
    graph = network.graph
    reduced = rounded(graph, observe(graph, FRAMES), reduced_range=True)
    assert max(int(np.abs(conv.weight).max()) for conv in reduced.convs.values()) == 63
    codes = open_model(head_model(reduced, graph.outputs)).run({"image": FRAMES[:1]})
    check_parity(codes, integer.run(reduced, FRAMES[:1], graph.outputs), what="reduced")


def test_the_integer_head_is_close_to_the_network(network: QuantizedGraph) -> None:
    graph = network.graph
    image = torch.from_numpy(FRAMES[:1]).float() / 255
    exact = execute.run(graph, {"image": image}, graph.outputs)
    for name, codes in zip(
        graph.outputs, integer.run(network, FRAMES[:1], graph.outputs), strict=True
    ):
        truth = exact[name].numpy()
        noise = network.grids[name].dequantize(codes) - truth
        assert np.mean(noise**2) < 0.02 * np.mean(truth**2)


def test_every_tail_takes_batches_and_reproduces_torch(
    network: QuantizedGraph, tmp_path: Path
) -> None:
    graph = network.graph
    weights = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    image = torch.from_numpy(FRAMES[:2]).float() / 255
    whole = execute.run(graph, {"image": image}, graph.outputs)
    for cut in enumerate_cuts(graph, max_tensors=8)[:-1]:
        path = tmp_path / "tail.onnx"
        path.write_bytes(tail_model(graph, cut, weights))
        sent = execute.run(graph, {"image": image}, cut.tensors)
        outputs = open_model(path).run({name: value.numpy() for name, value in sent.items()})
        for name, output in zip(graph.outputs, outputs, strict=True):
            np.testing.assert_allclose(output, whole[name].numpy(), atol=2e-5)


def test_grids_hold_zero_and_saturate() -> None:
    grid = QuantParams.over(-1.0, 3.0)
    assert grid.dequantize(grid.quantize(np.zeros(1, np.float32)))[0] == 0
    assert grid.quantize(np.array([-9.0, 9.0], np.float32)).tolist() == [0, 255]
    assert QuantParams.over(0.5, 2.0).zero_point == 0


def test_least_error_clips_a_lonely_outlier() -> None:
    counts = np.zeros(2048)
    counts[:200] = 1e6
    counts[-1] = 1
    low, high = least_error_range(Distribution(0.0, 100.0, counts), 8)
    assert low == 0
    assert high < 50


def test_saturated_products_are_found_by_the_gate() -> None:
    expected = [np.full((1, 8, 8, 8), 100, np.uint8)]
    off_by_two = [expected[0].copy()]
    off_by_two[0][0, 0, 0, 0] = 102
    with pytest.raises(ParityError, match="largest difference is 2"):
        check_parity(off_by_two, expected, what="head")
    many_off_by_one = [expected[0] + np.uint8(1)]
    with pytest.raises(ParityError, match=r"0\.000%"):
        check_parity(many_off_by_one, expected, what="head")


def test_constant_and_missing_calibration_is_refused() -> None:
    graph = branched_graph()
    with pytest.raises(CalibrationError, match="no calibration images"):
        observe(graph, FRAMES[:0])


def test_not_a_model_is_one_line() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime refuses") as caught:
        open_model(b"not a model")
    assert "\n" not in str(caught.value)
