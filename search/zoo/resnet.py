"""ResNet and ResNeXt with torchvision's names (He et al. 2016, Xie et al. 2017).

They map an image (N, 3, H, W), scaled by ImageNet's mean and deviation, to logits (N, 1000).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from torch import nn

from search.zoo.blocks import CLASSES, convolution, pooled

_WIDTHS = (64, 128, 256, 512)


class ResNetBlock(nn.Module):
    """Convolutions conv1, conv2, ... with their normalisations, around which the input is added.

    Args:
        filters: Channels of the input and of what each convolution makes.
        kernels: Size of each convolution.
        stride: Stride of the first convolution that is larger than one pixel.
        groups: Groups of that convolution.
    """

    def __init__(
        self, filters: Sequence[int], kernels: Sequence[int], stride: int, groups: int = 1
    ) -> None:
        super().__init__()
        middle = next(rank for rank, kernel in enumerate(kernels) if kernel > 1)
        self._count = len(kernels)
        for rank, (before, after) in enumerate(pairwise(filters)):
            settings = (stride, groups) if rank == middle else (1, 1)
            layer = convolution(before, after, kernels[rank], *settings)
            self.add_module(f"conv{rank + 1}", layer)
            self.add_module(f"bn{rank + 1}", nn.BatchNorm2d(after))
        first, last = filters[0], filters[-1]
        self.downsample = (
            nn.Sequential(convolution(first, last, 1, stride), nn.BatchNorm2d(last))
            if stride > 1 or first != last
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H / stride, W / stride)."""
        made = x
        for rank in range(1, self._count + 1):
            made = self.get_submodule(f"bn{rank}")(self.get_submodule(f"conv{rank}")(made))
            made = F.relu(made) if rank < self._count else made
        return F.relu(made + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A ResNet of four stages.

    Args:
        depths: Blocks of each stage.
        bottleneck: Whether blocks are of three convolutions, 1, 3 and 1, instead of two of 3.
        groups: Groups of a bottleneck's middle convolution.
        width: Channels of each of its groups at 64 channels of a stage.
    """

    def __init__(
        self, depths: Sequence[int], *, bottleneck: bool, groups: int = 1, width: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = 64
        for stage, (depth, filters) in enumerate(zip(depths, _WIDTHS, strict=True), 1):
            made = 4 * filters if bottleneck else filters
            inner = filters * width // 64 * groups
            blocks = []
            for rank in range(depth):
                stride = 2 if rank == 0 and stage > 1 else 1
                if bottleneck:
                    block = ResNetBlock((channels, inner, inner, made), (1, 3, 1), stride, groups)
                else:
                    block = ResNetBlock((channels, made, made), (3, 3), stride)
                blocks.append(block)
                channels = made
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 1000)."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(image))))
        for stage in range(1, len(_WIDTHS) + 1):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: torch.Tensor = self.fc(pooled(x))
        return logits


def resnet18() -> ResNet:
    """ResNet-18: 11,689,512 parameters."""
    return ResNet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> ResNet:
    """ResNet-50: 25,557,032 parameters."""
    return ResNet((3, 4, 6, 3), bottleneck=True)


def resnext50_32x4d() -> ResNet:
    """ResNeXt-50 of 32 groups of 4 channels: 25,028,904 parameters."""
    return ResNet((3, 4, 6, 3), bottleneck=True, groups=32, width=4)
