"""GoogLeNet with torchvision's names, without the heads that only training needs (Szegedy 2015).

It maps an image (N, 3, H, W) in [-1, 1] to logits (N, 1000). torchvision's `transform_input`, which
makes that of an image scaled by ImageNet's mean and deviation, is left to the model card: both
together scale by 127.5.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from torch import nn

from search.zoo.blocks import CLASSES, convolution, pooled

_EPS = 1e-3


class NormalisedConvolution(nn.Module):
    """Convolution `conv`, batch normalisation `bn`, ReLU."""

    def __init__(self, channels: int, filters: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = convolution(channels, filters, kernel, stride)
        self.bn = nn.BatchNorm2d(filters, eps=_EPS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H / stride, W / stride)."""
        return F.relu(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches of a map, joined by channel.

    Args:
        channels: Of the map.
        single: Channels of the branch of one pixel.
        second: Channels of the two convolutions of the second branch.
        third: Channels of those of the third, whose kernel is 3 pixels in torchvision's weights,
            and not 5 as in the paper.
        pool: Channels behind the pooling.
    """

    def __init__(
        self, channels: int, single: int, second: tuple[int, int], third: tuple[int, int], pool: int
    ) -> None:
        super().__init__()
        self.branch1 = NormalisedConvolution(channels, single)
        self.branch2, self.branch3 = (
            nn.Sequential(
                NormalisedConvolution(channels, before), NormalisedConvolution(before, after, 3)
            )
            for before, after in (second, third)
        )
        self.branch4 = nn.Sequential(
            nn.MaxPool2d(3, 1, 1, ceil_mode=True), NormalisedConvolution(channels, pool)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, sum of the branches, H, W)."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)


class GoogLeNet(nn.Module):
    """GoogLeNet: 6,624,904 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = NormalisedConvolution(3, 64, 7, 2)
        self.conv2 = NormalisedConvolution(64, 64)
        self.conv3 = NormalisedConvolution(64, 192, 3)
        self.inception3a = Inception(192, 64, (96, 128), (16, 32), 32)
        self.inception3b = Inception(256, 128, (128, 192), (32, 96), 64)
        self.inception4a = Inception(480, 192, (96, 208), (16, 48), 64)
        self.inception4b = Inception(512, 160, (112, 224), (24, 64), 64)
        self.inception4c = Inception(512, 128, (128, 256), (24, 64), 64)
        self.inception4d = Inception(512, 112, (144, 288), (32, 64), 64)
        self.inception4e = Inception(528, 256, (160, 320), (32, 128), 128)
        self.inception5a = Inception(832, 256, (160, 320), (32, 128), 128)
        self.inception5b = Inception(832, 384, (192, 384), (48, 128), 128)
        self.fc = nn.Linear(1024, CLASSES)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 1000)."""
        x = _halved(self.conv1(image))
        x = _halved(self.conv3(self.conv2(x)))
        x = _halved(self.inception3b(self.inception3a(x)))
        x = self.inception4c(self.inception4b(self.inception4a(x)))
        x = self.inception4e(self.inception4d(x))
        x = self.inception5b(self.inception5a(_halved(x, 2)))
        logits: torch.Tensor = self.fc(pooled(x))
        return logits


def _halved(x: torch.Tensor, kernel: int = 3) -> torch.Tensor:
    """Max pooling by 2, of what is left at the border, too."""
    return F.max_pool2d(x, kernel, 2, ceil_mode=True)
