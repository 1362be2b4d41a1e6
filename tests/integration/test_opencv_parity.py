"""The reader of Darknet files against OpenCV's: the published YOLOv3-tiny on real images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from common.imaging.images import read_image
from common.imaging.placement import fit_image
from search.zoo.registry import DarknetModel, load_model, zoo_model

MAPS = ["conv_15", "conv_22"]  # OpenCV's names of the layers before the two [yolo]
Maps = list[NDArray[np.float32]]


@pytest.fixture(scope="module")
def images(data_dir: Path) -> NDArray[np.float32]:
    """Four real images, letterboxed, (4, 3, 416, 416) in [0, 1]."""
    paths = sorted((data_dir / "coco_val" / "images").glob("*.jpg"))[:4]
    pixels = np.stack([fit_image(read_image(path), (416, 416)) for path in paths])
    return pixels.astype(np.float32) / np.float32(255)


@pytest.fixture(scope="module")
def theirs(
    tiny_weights: Path, images: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory
) -> Maps:
    """OpenCV's maps of the images, one array per [yolo] layer."""
    cfg = tmp_path_factory.mktemp("opencv") / "net.cfg"
    model = zoo_model("yolov3-tiny")
    assert isinstance(model, DarknetModel)
    cfg.write_text(model.cfg)
    network = cv2.dnn.readNetFromDarknet(str(cfg), str(tiny_weights))
    # Winograd's transforms alone cost 1e-4 here; the comparison is of what is computed.
    network.enableWinograd(False)
    network.setInput(images)
    return [np.asarray(one, np.float32) for one in network.forward(MAPS)]


def _largest_difference(module: nn.Module, images: NDArray[np.float32], theirs: Maps) -> float:
    with torch.inference_mode():
        ours = [one.numpy() for one in module(torch.from_numpy(images))]
    assert [one.shape for one in ours] == [one.shape for one in theirs]
    return max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))


def test_raw_maps_are_those_of_opencv(
    tiny_weights: Path, images: NDArray[np.float32], theirs: Maps
) -> None:
    module = load_model("yolov3-tiny", weights=tiny_weights).module
    assert _largest_difference(module, images, theirs) <= 1e-4


def test_the_epsilon_of_later_forks_would_not_agree(
    tiny_weights: Path, images: NDArray[np.float32], theirs: Maps
) -> None:
    module = load_model("yolov3-tiny", weights=tiny_weights).module
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eps = 1e-5
    assert _largest_difference(module, images, theirs) > 1e-4
