"""Networks of this year's shapes, from a file to a bundle whose plans all run.

Weights are seeded, so accuracy means nothing: the searches have no limit on it, or measure none.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import splitpoint
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network.cuts import find_cuts
from search.network.graph import IMAGE
from search.network.operators.registry import may_be_in_head
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.recipe import rounded
from search.source import NetworkSource, SourceNetwork, open_network
from tests.structures import SIZE, YoloV8, exported, seeded, two_stages
from tests.zoo import pictures

CARD = 'labels = ["a", "b", "c"]\n[input]\nfit = "stretch"\nstd = [255, 255, 255]\n'
NETWORKS = ("decoded", "maps", "attention", "two-stages")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("structures")
    modules = {
        "decoded": YoloV8(decoded=True),
        "maps": YoloV8(decoded=False),
        "attention": YoloV8(decoded=True, attention=True),
    }
    made = {name: exported(seeded(each), folder / f"{name}.onnx") for name, each in modules.items()}
    made["two-stages"] = two_stages(folder / "two-stages.onnx")
    decoders = {
        "maps": "[task.decoder]\nkind = 'yolov8'\nbins = 16\nlogits = true\n",
        "two-stages": "[task.decoder]\nkind = 'boxes'\noutputs = ['boxes', 'scores', 'classes']\n"
        "columns = ['x1', 'y1', 'x2', 'y2']\n",
    }
    for name, path in made.items():
        decoder = decoders.get(name, "[task.decoder]\nkind = 'yolov8'\n")
        path.with_suffix(".toml").write_text(CARD + decoder)
    return made


@pytest.fixture(params=NETWORKS, scope="module")
def file(request: pytest.FixtureRequest, files: dict[str, Path]) -> Path:
    return files[request.param]


@pytest.fixture(scope="module")
def network(file: Path) -> SourceNetwork:
    return open_network(NetworkSource(str(file)))


def image(seed: int) -> NDArray[np.uint8]:
    """(1, 3, H, W) pixels."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE))).transpose(2, 0, 1)[None].copy()


def test_the_graph_computes_what_the_file_does(
    file: Path, network: SourceNetwork, tmp_path: Path
) -> None:
    graph = network.graph
    whole = find_cuts(graph).cuts[0]
    weights = SharedWeights.of(graph.nodes)
    write_weights(tmp_path, weights)
    (tmp_path / "whole.onnx").write_bytes(tail_model(graph, whole, weights))
    scaled = image(1).astype(np.float32) / 255
    session = open_model(file)
    expected = session.run({session.inputs[0].name: scaled})
    found = open_model(tmp_path / "whole.onnx").run({IMAGE: scaled})
    for want, got in zip(expected, found, strict=True):
        want = want if want.shape[:1] == got.shape[:1] == (1,) else want[None]
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max(initial=1e-9))


def test_all_that_a_head_may_hold_is_reproduced(network: SourceNetwork) -> None:
    graph = network.graph
    frames = np.concatenate([image(seed) for seed in range(4)])
    quantized = rounded(graph, observe(graph, frames), reduced_range=saturates_int8())
    able = {IMAGE}
    for node in graph.nodes[1:]:
        if node.name not in quantized.refused and able.issuperset(node.inputs):
            able.add(node.name)
    names = [node.name for node in graph.nodes[1:] if node.name in able]
    session = open_model(head_model(quantized, names))
    for frame in frames:
        made = session.run({IMAGE: frame[None]})
        check_parity(made, integer.run(quantized, frame[None], names), what=network.task.kind)


def test_cuts_are_found(network: SourceNetwork) -> None:
    found = find_cuts(network.graph)
    splits = [c for c in found.cuts if c.kind == "split" and all(map(may_be_in_head, c.head))]
    assert len(splits) >= 3
    assert [found.cuts[0].kind, found.cuts[-1].kind] == ["cloud-only", "edge-only"]
    assert found.cuts[-1].rest


def test_every_plan_of_a_search_runs(file: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 32)
    refined = file.stem == "attention"  # a tail that torch does not compute to its end
    result = splitpoint.search(
        str(file),
        calibration=tmp_path / "pictures",
        link="3mbit/20ms",
        out=tmp_path / "bundle",
        max_drop=None,
        accuracy=refined,
        format_trials=1,
        adapt_steps=2,
        context_steps=4,
        cache=tmp_path / "cache",
    )
    assert {each.candidate.cut.kind for each in result.kept} == {"cloud-only", "split", "edge-only"}
    picture = np.asarray(Image.open(tmp_path / "pictures" / "000.jpg").convert("RGB"))
    with (
        splitpoint.CloudServer(tmp_path / "bundle") as cloud,
        splitpoint.EdgeDetector(tmp_path / "bundle", cloud.grpc_address) as edge,
        splitpoint.open_bundle(tmp_path / "bundle") as bundle,
    ):
        for digest, plan in bundle.plans.items():
            assert edge.detect(picture, plan=digest.hex()).plan == plan
    assert all((each.accuracy is not None) == refined for each in result.kept)
    alone = [
        plan
        for plan in json.loads((tmp_path / "bundle" / "manifest.json").read_text())["plans"]
        if plan["tail"] is None
    ]
    assert all(plan["rest"] is not None for plan in alone)
