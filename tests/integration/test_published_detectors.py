"""Published detectors in ONNX, decoded here: their AP on COCO pictures is what it should be.

The limits are far below the published figures (YOLOX-nano 25.8, PicoDet-S 30.6 on val2017) as
the pictures are few; a wrong layout, order or preprocessing gives a few points at most.
"""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.imaging.images import list_images, read_image
from common.runtime.registry import open_model
from common.tasks.base import ImageInput, ResultSettings
from common.tasks.decoders.picodet import PicoDet
from common.tasks.decoders.yolox import YoloX
from common.tasks.detections import DetectionTask
from common.tasks.labels import CLASS_NAMES
from search.measure.accuracy import CocoAccuracy

IMAGES = 32
SETTINGS = ResultSettings(score_threshold=0.01, iou_threshold=0.6)
MEAN = np.array([[[0.485]], [[0.456]], [[0.406]]], np.float32) * 255
DEVIATION = np.array([[[0.229]], [[0.224]], [[0.225]]], np.float32) * 255


@pytest.fixture
def models(data_dir: Path) -> Path:
    folder = data_dir / "models"
    if not folder.is_dir():
        pytest.skip(f"no {folder} with published networks")
    return folder


def average_precision(data_dir: Path, model: Path, task: DetectionTask) -> float:
    session = open_model(model)
    shapes = [tuple(output.shape[1:]) for output in session.outputs]
    assert task.misfit(shapes) is None
    paths = list_images(data_dir / "coco_val" / "images")[:IMAGES]
    found = []
    for path in paths:
        image = read_image(path)
        inputs = {session.inputs[0].name: _normalised(task.image.pixels(image))}
        outputs = [each[0] for each in session.run(inputs)]
        where = task.image.place(image.shape[1], image.shape[0])
        found.append(task.decode(outputs, where, SETTINGS))
    annotations = data_dir / "coco_val" / "instances_val.json"
    return CocoAccuracy(annotations, [path.name for path in paths]).accuracy(found)


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = (pixels.astype(np.float32) - MEAN) / DEVIATION
    return values[None]


def test_yolox_nano_of_an_export_that_only_reshapes_its_maps(data_dir: Path, models: Path) -> None:
    task = DetectionTask(
        image=ImageInput(height=640, width=640, fit="letterbox-top-left", padding=114),
        decoder=YoloX(layout="maps", logits=True),
        class_names=CLASS_NAMES,
    )
    assert average_precision(data_dir, models / "kiven_yolox_nano.onnx", task) > 20


def test_picodet_s(data_dir: Path, models: Path) -> None:
    task = DetectionTask(
        image=ImageInput(height=416, width=416, fit="stretch"),
        decoder=PicoDet(),
        class_names=CLASS_NAMES,
    )
    assert average_precision(data_dir, models / "picodet_s_416_coco.onnx", task) > 24
