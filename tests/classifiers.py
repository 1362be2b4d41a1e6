"""Classifiers with seeded weights, and a small one whose answers depend on what is in a picture."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from PIL import Image
from torch import nn

from search.network.importers.factory import build_module

COLOURS = ((220, 40, 40), (40, 220, 40), (40, 40, 220), (220, 220, 40))
NAMES = ("red", "green", "blue", "yellow")


def seeded(factory: str) -> nn.Module:
    """A network of the zoo with random weights whose maps neither vanish nor grow."""
    module = build_module(factory)
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # statistics of the one batch
    with torch.no_grad():
        module.train()
        module(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return module.eval()


class ColourClassifier(nn.Module):
    """Tells the colour of a picture, by a depthwise and two plain convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.by_channel = nn.Conv2d(8, 8, 3, 2, 1, groups=8)
        self.last = nn.Conv2d(8, 16, 1)
        self.classes = nn.Linear(16, len(NAMES))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to logits (N, 4)."""
        x = F.relu6(self.by_channel(F.relu(self.first(image))))
        x = F.adaptive_avg_pool2d(F.relu(self.last(x)), 1).flatten(1)
        logits: torch.Tensor = self.classes(x)
        return logits


def trained() -> ColourClassifier:
    """A classifier of colours, taught on plain ones in a second."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        module = ColourClassifier()
    truth = torch.arange(len(COLOURS)).repeat(8)
    plain = (torch.tensor(COLOURS)[truth] / 127.5 - 1)[:, :, None, None]
    optimiser = torch.optim.Adam(module.parameters(), 0.02)
    for _ in range(60):
        images = plain + 0.3 * torch.randn(len(truth), 3, 32, 32, generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(module(images), truth).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return module.eval()


def pictures(folder: Path, count: int) -> None:
    """Write pictures of one colour each, with noise; their names begin with it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = number % len(COLOURS)
        noise = rng.normal(0, 30, (12, 16, 3))
        pixels = (np.array(COLOURS[kind]) + noise).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels).resize((64, 48), Image.Resampling.BICUBIC)
        picture.save(folder / f"{NAMES[kind]}-{number:03}.png")
