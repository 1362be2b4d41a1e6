"""Small networks that hold every operator of the graph, with seeded random weights."""

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from search.network.graph import Graph
from search.network.importers.torch_module import import_module
from search.network.passes import optimise

SIZE = (32, 32)


class ConvBlock(nn.Module):
    """Convolution, batch normalisation, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.1)


class Branched(nn.Module):
    """Residual, pooled, split and joined branches, two outputs: a small YOLOv3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 8)
        self.narrow = ConvBlock(8, 4, 1)
        self.wide = ConvBlock(4, 8)
        self.deep = ConvBlock(8, 16, stride=2)
        self.plain = nn.Conv2d(16, 16, 3, 1, 1)
        self.coarse = nn.Conv2d(16, 14, 1)
        self.lateral = ConvBlock(8, 8, 1)
        self.fine = nn.Conv2d(16, 14, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.max_pool2d(self.stem(x), 2)
        x = x + self.wide(self.narrow(x))
        route = x
        x = F.relu(self.plain(self.deep(x)))
        x = F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=float("-inf")), 2, 1)
        x = F.max_pool2d(x, 5, 1, 2)
        up = F.interpolate(self.lateral(x[:, 8:]), scale_factor=2.0, mode="nearest")
        return self.coarse(x), self.fine(torch.cat([up, route], 1))


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights and running statistics, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.3)
                if layer.bias is not None:
                    layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator) * 0.1)
            elif isinstance(layer, nn.PReLU):
                layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator))
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                shape = layer.weight.shape
                layer.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                layer.bias.copy_(torch.randn(shape, generator=generator) * 0.2)
                layer.running_mean.copy_(torch.randn(shape, generator=generator) * 0.2)
                layer.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
    return module.eval()


def branched_graph() -> Graph:
    """The optimised graph of `Branched`."""
    return optimise(import_module(seeded(Branched()), SIZE))


def pictures(count: int) -> NDArray[np.uint8]:
    """(N, 3, H, W) smooth pictures, all different."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        blocks = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        made.append(np.asarray(blocks.resize(SIZE, Image.Resampling.BICUBIC)).transpose(2, 0, 1))
    return np.stack(made)
