"""The zoo's classifiers: their size, the names of their weights, and their graphs."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import ModelError
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import Cut, enumerate_cuts
from search.network.graph import Graph
from search.network.importers.factory import build_module
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import head_model
from search.quantization.recipe import rounded
from search.zoo.registry import MODELS, TorchModel, zoo_model
from tests.classifiers import seeded

CLASSIFIERS = {name: each for name, each in MODELS.items() if isinstance(each, TorchModel)}
SIZE = (64, 64)

# Parameters and 10^9 multiply-accumulates at 224 pixels, as torchvision publishes them. The last is
# counted here: the 0.407 of EfficientNet-Lite's authors are more than products.
PUBLISHED = {
    "resnet-18": (11_689_512, 1.814),
    "resnet-50": (25_557_032, 4.089),
    "resnext-50": (25_028_904, 4.230),
    "googlenet": (6_624_904, 1.498),
    "mnasnet": (4_383_312, 0.314),
    "mobilenet-v2": (3_504_872, 0.301),
    "efficientnet-lite0": (4_652_008, 0.385),
}


def on_paper(name: str) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return build_module(CLASSIFIERS[name].factory)


def multiplications(module: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions and products of one image."""
    counted: list[int] = []

    def count(layer: nn.Module, _inputs: object, made: torch.Tensor) -> None:
        assert isinstance(layer.weight, torch.Tensor)
        counted.append(made.numel() * layer.weight[0].numel())

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    module(torch.zeros(1, 3, *size, device="meta"))
    return sum(counted)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_parameters_and_multiplications_are_those_published(name: str) -> None:
    module = on_paper(name)
    parameters, billions = PUBLISHED[name]
    assert sum(tensor.numel() for tensor in module.parameters()) == parameters
    assert multiplications(module, (224, 224)) / 1e9 == pytest.approx(billions, abs=6e-4)


def digest_of(state: Iterable[tuple[str, torch.Tensor]]) -> str:
    """SHA-256 of the sorted lines "name shape" of a state dict."""
    lines = sorted(f"{name} {'x'.join(map(str, tensor.shape))}" for name, tensor in state)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    ("name", "count", "digest"),
    [
        # of mobilenet_v2-b0353104.pth and efficientnet-lite0-57934424.pth
        ("mobilenet-v2", 314, "2a196dc04125b8ce696f40d01e523bf91e7c3f4cfaf09ca3f4cdce41e0302d59"),
        (
            "efficientnet-lite0",
            296,
            "49e2faab8cee1d848675d1a4050d96c5aeb076088f25ee34353cc3e8eb168030",
        ),
    ],
)
def test_names_of_weights_are_those_of_the_published_file(
    name: str, count: int, digest: str
) -> None:
    state = on_paper(name).state_dict()
    assert len(state) == count
    assert digest_of(state.items()) == digest


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norms(*names: str) -> set[str]:
    return {f"{name}.{each}" for name in names for each in NORM}


# One block of each kind, and how many names there are in all.
NAMED: dict[str, tuple[int, str, set[str]]] = {
    "resnet-18": (
        122,
        "layer2.0.",
        {"conv1.weight", "conv2.weight", "downsample.0.weight"}
        | norms("bn1", "bn2", "downsample.1"),
    ),
    "resnet-50": (
        320,
        "layer1.0.",
        {"conv1.weight", "conv2.weight", "conv3.weight", "downsample.0.weight"}
        | norms("bn1", "bn2", "bn3", "downsample.1"),
    ),
    "resnext-50": (
        320,
        "layer4.2.",
        {"conv1.weight", "conv2.weight", "conv3.weight"} | norms("bn1", "bn2", "bn3"),
    ),
    "googlenet": (
        344,
        "inception4a.",
        {
            f"{branch}.conv.weight"
            for branch in (
                "branch1",
                *("branch2.0", "branch2.1", "branch3.0", "branch3.1"),
                "branch4.1",
            )
        }
        | norms("branch1.bn", "branch2.0.bn", "branch2.1.bn", "branch3.0.bn", "branch3.1.bn")
        | norms("branch4.1.bn"),
    ),
    "mnasnet": (
        314,
        "layers.9.2.layers.",
        {"0.weight", "3.weight", "6.weight"} | norms("1", "4", "7"),
    ),
}
TOP = {
    "resnet-18": {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
    "resnet-50": {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
    "resnext-50": {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"},
    "googlenet": {
        *("conv1", "conv2", "conv3", "inception3a", "inception3b", "inception4a", "inception4b"),
        *("inception4c", "inception4d", "inception4e", "inception5a", "inception5b", "fc"),
    },
    "mnasnet": {"layers", "classifier"},
}


@pytest.mark.parametrize("name", NAMED)
def test_names_of_weights_are_torchvision_s(name: str) -> None:
    names = set(on_paper(name).state_dict())
    count, prefix, inside = NAMED[name]
    assert len(names) == count
    assert {each.removeprefix(prefix) for each in names if each.startswith(prefix)} == inside
    assert {each.partition(".")[0] for each in names} == TOP[name]
    last = "classifier.1" if name == "mnasnet" else "fc"
    assert {f"{last}.weight", f"{last}.bias"} <= names


def images(count: int, seed: int = 0) -> np.ndarray:
    """Coarse noise, (count, 3, 64, 64) uint8."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8).repeat(8, 2).repeat(8, 3)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_graphs_compute_what_torch_computes(name: str) -> None:
    module = seeded(CLASSIFIERS[name].factory)
    graph = optimise(import_module(module, SIZE))
    image = torch.from_numpy(images(1)).float() / 255
    with torch.inference_mode():
        expected = module(image)
    found = execute.run(graph, {"image": image}, graph.outputs)[graph.outputs[0]]
    assert found.shape == (1, 1000)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    counted = multiplications(on_paper(name), SIZE)
    assert sum(node.macs for node in graph.nodes) == pytest.approx(counted, rel=1e-3)


@pytest.fixture(scope="module", params=["resnet-18", "mobilenet-v2"])
def graph(request: pytest.FixtureRequest) -> Graph:
    """A graph with residuals, and one with depthwise convolutions."""
    module = seeded(CLASSIFIERS[request.param].factory)
    return optimise(import_module(module, SIZE))


def spread(cuts: Sequence[Cut], count: int) -> Sequence[Cut]:
    """So many cuts, or a few more, from the first to the last."""
    return cuts[:: max(1, len(cuts) // count)]


def test_head_then_tail_is_the_whole_network(graph: Graph) -> None:
    image = torch.from_numpy(images(1)).float() / 255
    cuts = enumerate_cuts(graph)
    assert 20 <= len(cuts) <= 100
    chosen = spread(cuts, 16)
    names = {name for cut in chosen for name in cut.tensors} | set(graph.outputs)
    made = execute.run(graph, {"image": image}, sorted(names))
    for cut in chosen:
        sent = {name: made[name] for name in cut.tensors}
        joined = execute.run(graph, sent, graph.outputs)
        for name in graph.outputs:
            assert torch.equal(joined[name], made[name]), cut.name


def test_integer_heads_reproduce_the_reference(graph: Graph) -> None:
    frames = images(4)
    network = rounded(graph, observe(graph, frames), reduced_range=saturates_int8())
    splits = [cut for cut in enumerate_cuts(graph) if cut.kind == "split"]
    image = images(1, seed=1)
    for fetched in (*(cut.tensors for cut in spread(splits, 2)), graph.outputs):
        head = open_model(head_model(network, fetched))
        expected = integer.run(network, image, fetched)
        check_parity(head.run({"image": image}), expected, what="+".join(fetched))


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("efficientnet-lite0", (200, 224), "of at least 32 and multiples of 32, such as 192x224"),
        ("yolov3-tiny", (500, 500), "yolov3-tiny takes .* multiples of 32, such as 512x512"),
        ("resnet-18", (16, 224), "sides of at least 32, such as 32x224"),
    ],
)
def test_sizes_that_a_network_cannot_take_are_refused(
    name: str, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        zoo_model(name).sized(size)


def test_other_sizes_are_taken() -> None:
    assert zoo_model("resnet-18").sized(None) == (224, 224)
    assert zoo_model("resnet-18").sized((97, 131)) == (97, 131)
    assert zoo_model("yolov3").sized((512, 608)) == (512, 608)


def test_every_model_says_what_it_is_for() -> None:
    assert {name: model.task for name, model in MODELS.items()} == {
        **dict.fromkeys(("yolov3-tiny", "yolov3", "yolov3-spp"), "detection"),
        **dict.fromkeys(CLASSIFIERS, "classification"),
    }
    for model in MODELS.values():
        assert Path(model.weights.name).suffix in (".weights", ".pth")
