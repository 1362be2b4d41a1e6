"""Building blocks that the zoo's classifiers share.

Only names matter to published weights: a block takes the names of its parts from its network.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from torch import nn

CLASSES = 1000
"""Number of ImageNet's classes."""


def convolution(
    channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    """Convolution without a bias, padded so that it keeps the size but for the stride."""
    return nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)


def pooled(x: torch.Tensor) -> torch.Tensor:
    """Mean of each channel: (N, C, H, W) to (N, C)."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class SamePadding(nn.Conv2d):
    """Convolution without a bias, padded as TensorFlow does for maps that the stride divides.

    What padding is needed in all is split in halves, the larger one right and below.
    """

    def __init__(
        self, channels: int, filters: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(channels, filters, kernel, stride, groups=groups, bias=False)
        before = (kernel - stride) // 2
        after = kernel - stride - before
        self._pads = (before, after, before, after) if kernel > 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H / stride, W / stride)."""
        padded = x if self._pads is None else F.pad(x, self._pads)
        made: torch.Tensor = super().forward(padded)
        return made


class InvertedResidual(nn.Sequential):
    """Layers in a row, whose input is added to what they make if both have one shape.

    Args:
        parts: Layers by name.
        adds: Whether the input is added.
    """

    def __init__(self, parts: Iterable[tuple[str, nn.Module]], *, adds: bool) -> None:
        super().__init__()
        for name, part in parts:
            self.add_module(name, part)
        self._adds = adds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H / stride, W / stride)."""
        made: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return x + made if self._adds else made
