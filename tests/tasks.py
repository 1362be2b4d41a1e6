"""Tasks for tests."""

from common.tasks.base import ImageInput
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import DetectionTask


def yolo_task(
    height: int, width: int, heads: tuple[AnchorMap, ...], class_names: tuple[str, ...]
) -> DetectionTask:
    """A YOLOv3 of this input."""
    return DetectionTask(
        image=ImageInput(height=height, width=width),
        decoder=YoloV3(heads=heads),
        class_names=class_names,
    )
