"""Losses of a network's outputs against those of the network that teaches it (distillation).

For a detector, every anchor's objectness counts, and its classes and box by how much of an object
the teacher saw there; for other networks, the squared error of the maps in units of their deviation
(Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias

from common.tasks.detections import DetectorSpec, YoloHeadSpec

Loss = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]
"""Loss of one network's maps, (N, C, H, W) each, against another's; a scalar, per image."""

# On YOLOv3-tiny at 6 KB, 5 against 1 brings one point of agreement (AP) with the teacher.
_BOX_WEIGHT = 5.0


def distillation_loss(detector: DetectorSpec | None) -> Loss:
    """The loss for a detector, or for any network."""
    if detector is None:
        return feature_loss
    return lambda maps, teacher: sum(
        (
            _yolo_loss(one, other, head)
            for one, other, head in zip(maps, teacher, detector.heads, strict=True)
        ),
        start=maps[0].new_zeros(()),
    )


def feature_loss(maps: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean squared error of each map (N, C, H, W), in units of the teacher's variance."""
    errors = [
        F.mse_loss(m, t) / t.var().clamp(min=1e-12) for m, t in zip(maps, teacher, strict=True)
    ]
    return torch.stack(errors).mean()


def _yolo_loss(found: torch.Tensor, teacher: torch.Tensor, head: YoloHeadSpec) -> torch.Tensor:
    """Per image: divergence of objectness, plus that of classes and boxes where objects are."""
    n, _, height, width = found.shape
    shape = n, len(head.anchors), 5 + head.classes, height, width
    found, teacher = found.view(shape), teacher.view(shape)
    objectness = torch.sigmoid(teacher[:, :, 4])
    objects = _divergence(found[:, :, 4], teacher[:, :, 4]).sum()
    classes = (_divergence(found[:, :, 5:], teacher[:, :, 5:]).sum(2) * objectness).sum()
    centres = (torch.sigmoid(found[:, :, :2]) - torch.sigmoid(teacher[:, :, :2])) ** 2
    sizes = (found[:, :, 2:4] - teacher[:, :, 2:4]) ** 2
    boxes = ((centres + sizes).sum(2) * objectness).sum()
    return (objects + classes + _BOX_WEIGHT * boxes) / n


def _divergence(found: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of two Bernoulli distributions given by their logits."""
    target = torch.sigmoid(teacher)
    cross = F.binary_cross_entropy_with_logits(found, target, reduction="none")
    own = F.binary_cross_entropy_with_logits(teacher, target, reduction="none")
    return cross - own
