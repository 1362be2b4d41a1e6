"""The nine graphs that the onnx package ships for tests of backends, with their stored outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import find_cuts
from search.network.graph import IMAGE, Graph
from search.network.importers.onnx_file import import_onnx, read_onnx
from search.network.importers.scaling import InputScaling
from search.network.operators.registry import computable_nodes
from search.network.passes import optimise
from search.quantization.export import SharedWeights, tail_model, write_weights

FOLDER = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = sorted(FOLDER.glob("light_*.onnx"))
SIZE = 224
MOST_CUTS = 24

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=MODELS, ids=lambda path: path.stem)
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def graph(model: Path) -> Graph:
    return optimise(import_onnx(read_onnx(model), InputScaling()))


@pytest.fixture(scope="module")
def image() -> NDArray[np.float32]:
    """The input that the package's runner feeds: (1, 3, H, W)."""
    values = np.arange(3 * SIZE * SIZE).reshape(1, 3, SIZE, SIZE)
    return (values / values.size).astype(np.float32)


def test_all_nine_are_there() -> None:
    assert len(MODELS) == 9


def test_the_whole_makes_what_the_package_stored(
    model: Path, graph: Graph, image: NDArray[np.float32], tmp_path: Path
) -> None:
    stored = onnx.TensorProto()
    stored.ParseFromString((FOLDER / f"{model.stem}_output_0.pb").read_bytes())
    whole, weights = find_cuts(graph).cuts[0], SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    (tmp_path / "whole.onnx").write_bytes(tail_model(graph, whole, weights))
    (found,) = open_model(tmp_path / "whole.onnx").run({IMAGE: image})
    expected = numpy_helper.to_array(stored).reshape(found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-5)


def test_every_cut_leaves_the_outputs_as_they_are(graph: Graph, image: NDArray[np.float32]) -> None:
    assert len(computable_nodes(graph)) == len(graph.nodes)
    cuts = [cut for cut in find_cuts(graph).cuts if cut.kind == "split"]
    assert cuts
    chosen = cuts[:: -(-len(cuts) // MOST_CUTS)]
    sent = {name for cut in chosen for name in cut.tensors}
    feeds = {IMAGE: torch.from_numpy(image)}
    values = execute.run(graph, feeds, [*sent, *graph.outputs])
    for cut in chosen:
        made = execute.run(graph, {name: values[name] for name in cut.tensors}, graph.outputs)
        for name in graph.outputs:
            assert torch.equal(made[name], values[name]), cut.name
