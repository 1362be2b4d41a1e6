"""Losses of a network's outputs against those of the network that teaches it (distillation).

Every task has one of its own name (Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural
Network", 2015). For a YOLOv3, every anchor's objectness counts, and its classes and box by how much
of an object the teacher saw there; for other detectors, the squared error of the outputs in units
of their deviation; for a classifier, the divergence of its probabilities.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from common.tasks.base import Task
from common.tasks.classification import ClassificationTask
from common.tasks.decoders.yolov3 import AnchorMap, YoloV3
from common.tasks.detections import DetectionTask

Loss = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]
"""Loss of one network's outputs, (N, ...) each, against another's; a scalar, per image."""

# On YOLOv3-tiny at 6 KB, 5 against 1 brings one point of agreement (AP) with the teacher.
_BOX_WEIGHT = 5.0


def distillation_loss(task: Task | None) -> Loss:
    """The loss for a task, by its name, or for any network."""
    return feature_loss if task is None else LOSSES[task.kind](task)


def feature_loss(maps: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared error of each output (N, ...), in units of the teacher's variance."""
    errors = [
        F.mse_loss(m, t) / t.var().clamp(min=1e-12) for m, t in zip(maps, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def relative_loss(outputs: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Squared error of each output (N, ...), over the teacher's sum of squares."""
    errors = [
        ((o - t) ** 2).sum() / (t**2).sum().clamp(min=1e-12)
        for o, t in zip(outputs, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def _detection_loss(task: Task) -> Loss:
    if not isinstance(task, DetectionTask) or not isinstance(task.decoder, YoloV3):
        return feature_loss
    heads, classes = task.decoder.heads, len(task.class_names)
    return lambda maps, teacher: sum(
        (
            _yolo_loss(one, other, head, classes)
            for one, other, head in zip(maps, teacher, heads, strict=True)
        ),
        start=maps[0].new_zeros(()),
    )


def _classification_loss(task: Task) -> Loss:
    """Kullback-Leibler divergence of the softmax from the teacher's (in nats, per image)."""
    logits = not isinstance(task, ClassificationTask) or task.output == "logits"

    def logs(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        values = outputs[0].flatten(1)
        return F.log_softmax(values, 1) if logits else values.clamp(min=1e-12).log()

    return lambda outputs, teacher: F.kl_div(
        logs(outputs), logs(teacher), reduction="batchmean", log_target=True
    )


def _yolo_loss(
    found: torch.Tensor, teacher: torch.Tensor, head: AnchorMap, classes: int
) -> torch.Tensor:
    """Per image: divergence of objectness, plus that of classes and boxes where objects are."""
    n, _, height, width = found.shape
    shape = n, len(head.anchors), 5 + classes, height, width
    found, teacher = found.view(shape), teacher.view(shape)
    objectness = torch.sigmoid(teacher[:, :, 4])
    objects = _divergence(found[:, :, 4], teacher[:, :, 4]).sum()
    kinds = (_divergence(found[:, :, 5:], teacher[:, :, 5:]).sum(2) * objectness).sum()
    centres = (torch.sigmoid(found[:, :, :2]) - torch.sigmoid(teacher[:, :, :2])) ** 2
    sizes = (found[:, :, 2:4] - teacher[:, :, 2:4]) ** 2
    boxes = ((centres + sizes).sum(2) * objectness).sum()
    return (objects + kinds + _BOX_WEIGHT * boxes) / n


def _divergence(found: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of two Bernoulli distributions given by their logits."""
    target = torch.sigmoid(teacher)
    cross = F.binary_cross_entropy_with_logits(found, target, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return cross - own


LOSSES: Final[Mapping[str, Callable[[Task], Loss]]] = MappingProxyType(
    {
        "detection": _detection_loss,
        "classification": _classification_loss,
        "tensors": lambda _: relative_loss,
    }
)
"""Losses by the kind of the task."""
