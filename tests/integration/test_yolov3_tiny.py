"""The published YOLOv3-tiny: against OpenCV on a real image, and through every cut."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from common.errors import WeightsError
from common.images import letterbox, read_image
from common.runtime import Model, check_parity
from search import execute, integer
from search.calibration import observe
from search.cuts import enumerate_cuts
from search.graph import Graph
from search.importer import import_module
from search.onnx_models import head_model
from search.passes import optimise
from search.quantize import quantize
from search.weights import fetch
from search.zoo.darknet import DarknetModule
from search.zoo.registry import MODELS, load_model


@pytest.fixture(scope="module")
def weights() -> Path:
    """The published weights, fetched and verified."""
    try:
        return fetch(MODELS["yolov3-tiny"].weights)
    except WeightsError as error:
        pytest.skip(f"the weights cannot be fetched: {error}")


@pytest.fixture(scope="module")
def module(weights: Path) -> DarknetModule:
    """The network."""
    return load_model("yolov3-tiny", weights=weights)


@pytest.fixture(scope="module")
def graph(module: DarknetModule) -> Graph:
    """Its graph."""
    return optimise(import_module(module, module.input_size))


@pytest.fixture(scope="module")
def frames(data_dir: Path) -> np.ndarray:
    """Eight real images, letterboxed, (8, 3, 416, 416)."""
    paths = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:8]
    return np.stack([letterbox(read_image(path), (416, 416)) for path in paths])


def test_maps_agree_with_opencv_on_a_real_image(
    module: DarknetModule, weights: Path, frames: np.ndarray, tmp_path: Path
) -> None:
    cfg = tmp_path / "net.cfg"
    cfg.write_text(MODELS["yolov3-tiny"].cfg)
    network = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    # Winograd's transforms alone cost 1e-4 here; the comparison is of what is computed.
    network.enableWinograd(False)
    image = frames[:1].astype(np.float32) / 255
    network.setInput(image)
    theirs = network.forward(["conv_15", "conv_22"])
    with torch.inference_mode():
        ours = module(torch.from_numpy(image))
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy(), other, atol=1e-4, rtol=0)


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
    network = quantize(graph, observe(graph, frames))
    for fetched in (("max_pool_7",), ("conv_8",), ("conv_8", "conv_13"), graph.outputs):
        head = Model(head_model(network, fetched))
        for frame in frames[:2]:
            check_parity(
                head.run({"image": frame[None]}),
                integer.run(network, frame[None], fetched),
                what="+".join(fetched),
            )
