"""The published YOLOv3-tiny, cut everywhere and in 8 bits, on real images."""

from pathlib import Path

import numpy as np
import pytest
import torch

from common.imaging.images import read_image
from common.imaging.placement import fit_image
from common.machine import saturates_int8
from common.runtime.parity import check_parity
from common.runtime.registry import open_model
from search.network import execute
from search.network.cuts import enumerate_cuts
from search.network.graph import Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise
from search.quantization import integer
from search.quantization.calibration import observe
from search.quantization.export import head_model
from search.quantization.recipe import rounded
from search.zoo.registry import TrainedModule, load_model


@pytest.fixture(scope="module")
def trained(tiny_weights: Path) -> TrainedModule:
    """The network."""
    return load_model("yolov3-tiny", weights=tiny_weights)


@pytest.fixture(scope="module")
def graph(trained: TrainedModule) -> Graph:
    """Its graph."""
    return optimise(import_module(trained.module, trained.image_size))


@pytest.fixture(scope="module")
def frames(data_dir: Path) -> np.ndarray:
    """Eight real images, letterboxed, (8, 3, 416, 416)."""
    paths = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:8]
    return np.stack([fit_image(read_image(path), (416, 416)) for path in paths])


def test_head_then_tail_is_the_whole_network_for_every_cut(
    graph: Graph, frames: np.ndarray
) -> None:
    image = torch.from_numpy(frames[:1]).float() / 255
    whole = execute.run(graph, {"image": image}, graph.outputs)
    cuts = enumerate_cuts(graph)
    assert len(cuts) == 32
    for cut in cuts:
        sent = execute.run(graph, {"image": image}, cut.tensors)
        joined = execute.run(graph, sent, graph.outputs)
        for name in graph.outputs:
            assert (joined[name] - whole[name]).abs().max() == 0, cut.name


def test_int8_heads_reproduce_the_reference_on_real_images(
    graph: Graph, frames: np.ndarray
) -> None:
    network = rounded(graph, observe(graph, frames), reduced_range=saturates_int8())
    for fetched in (("max_pool_7",), ("conv_8",), ("conv_8", "conv_13"), graph.outputs):
        head = open_model(head_model(network, fetched))
        for frame in frames[:2]:
            check_parity(
                head.run({"image": frame[None]}),
                integer.run(network, frame[None], fetched),
                what="+".join(fetched),
            )
