"""Darknet networks of the YOLOv3 family as plain torch modules.

The module maps an RGB image (N, 3, H, W) in [0, 1] to the raw map of each [yolo] layer,
(N, anchors x (5 + classes), h, w), in the order of the file. Decoding boxes is not part of it.
Every map is the image's size divided by a whole stride, as in all networks of the family; a cfg
that would give another size is refused when it is read, not when the first image comes.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's usual alias
from torch import nn

from common.errors import ModelError, WeightsError
from search.zoo.cfg import Section, parse_cfg, sources

# Darknet adds 1e-6 to the standard deviation, later forks 1e-5 to the variance, OpenCV 1e-6 to the
# variance. The published YOLOv3-tiny weights hold variances near zero: there 1e-5 moves the maps by
# 1e-3 from OpenCV's, and 1e-6 keeps them within 1e-4.
BATCH_NORM_EPS = 1e-6
_HEADER = (0, 2, 0, 0, 0)
"""Version 0.2.0 of a weights file, and a count of pictures in 64 bits."""
_ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "relu": nn.ReLU,
}


@dataclass(frozen=True)
class YoloHead:
    """Geometry of one [yolo] layer: anchors in pixels of the network's input."""

    stride: int
    anchors: tuple[tuple[float, float], ...]
    classes: int


class Convolution(nn.Module):
    """Convolution, batch normalisation (or a bias), leaky ReLU (or none)."""

    def __init__(self, section: Section, channels: int) -> None:
        super().__init__()
        filters, size = section.integer("filters", least=1), section.integer("size", 1, least=1)
        padding = size // 2 if section.integer("pad", 0) else section.integer("padding", 0)
        groups = section.integer("groups", 1, least=1)
        if channels % groups or filters % groups:
            raise section.error(f"{groups} groups do not divide the channels")
        normalised = bool(section.integer("batch_normalize", 0))
        stride = section.integer("stride", 1, least=1)
        _check_size(section, size, stride, 2 * padding)
        self.conv = nn.Conv2d(
            channels, filters, size, stride, padding, groups=groups, bias=not normalised
        )
        self.norm = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPS) if normalised else None
        activation = section.text("activation", "linear")
        if activation not in _ACTIVATIONS:
            raise section.wrong("activation", f"one of {', '.join(_ACTIVATIONS)}")
        self.activation: nn.Module = _ACTIVATIONS[activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        result: torch.Tensor = self.activation(x)
        return result


class MaxPool(nn.Module):
    """Max pooling with Darknet's padding of size - 1 in all, the larger half right and below."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        stride = section.integer("stride", 1, least=1)
        size = section.integer("size", stride, least=1)
        total = section.integer("padding", size - 1)
        _check_size(section, size, stride, total)
        before = total // 2
        after = total - before
        # Windows that start at the border and tile the map never reach the padding behind it.
        if before == 0 and size == stride:
            after = 0
        self.pads = None if before == after else (before, after, before, after)
        self.pool = nn.MaxPool2d(size, stride, before if self.pads is None else 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        if self.pads is not None:
            x = F.pad(x, self.pads, value=float("-inf"))
        result: torch.Tensor = self.pool(x)
        return result


class DarknetModule(nn.Module):
    """A network built from a cfg.

    Attributes:
        input_size: (H, W).
        heads: Geometry of each output.
        digest: SHA-256 of the weights file, in hex; empty before weights are loaded.
    """

    def __init__(self, cfg: str, *, input_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        net, *sections = parse_cfg(cfg)
        height, width = input_size or (
            net.integer("height", 416, least=32),
            net.integer("width", 416, least=32),
        )
        if net.integer("channels", 3) != 3:
            raise net.wrong("channels", "3, for RGB images")
        self.input_size = (height, width)
        self.digest = ""
        self._sections = tuple(sections)
        self._sources: list[tuple[int, ...]] = []
        self.layers = nn.ModuleList()
        heads: list[YoloHead] = []
        channels: list[int] = []
        strides: list[int] = []
        for index, section in enumerate(sections):
            named = sources(sections, index)
            read = [channels[s] if s >= 0 else 3 for s in named]
            stride = _same([strides[s] if s >= 0 else 1 for s in named], section, "strides")
            if section.kind == "convolutional":
                layer: nn.Module = Convolution(section, read[0])
                made, factor = section.integer("filters"), section.integer("stride", 1)
            elif section.kind == "maxpool":
                layer, made, factor = MaxPool(section), read[0], section.integer("stride", 1)
            elif section.kind == "upsample":
                scale = section.integer("stride", 2, least=1)
                if stride % scale:
                    raise section.error(f"upsampling by {scale} of a map at stride {stride}")
                layer, made, factor = nn.Upsample(scale_factor=scale, mode="nearest"), read[0], 1
                stride //= scale
            elif section.kind == "shortcut":
                if section.text("activation", "linear") != "linear":
                    raise section.wrong("activation", "linear")
                layer, made, factor = nn.Identity(), _same(read, section, "channels"), 1
            else:
                layer, made, factor = nn.Identity(), _part(section, sum(read))[1], 1
            if section.kind == "yolo":
                heads.append(_head(section, stride, read[0]))
            self._sources.append(named)
            self.layers.append(layer)
            channels.append(made)
            strides.append(stride * factor)
        if not heads:
            raise ModelError("the cfg has no [yolo] layer")
        unit = math.lcm(32, *strides)
        if min(height, width) < unit or height % unit or width % unit:
            raise ModelError(f"an input of {height} x {width}: both must be multiples of {unit}")
        self.heads = tuple(heads)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) in [0, 1] to the raw maps of the [yolo] layers."""
        made: list[torch.Tensor] = []
        maps: list[torch.Tensor] = []
        steps = zip(self._sections, self._sources, self.layers, strict=True)
        for section, named, layer in steps:
            read = [made[s] if s >= 0 else image for s in named]
            if section.kind == "route":
                made.append(_route(section, read))
            elif section.kind == "shortcut":
                made.append(read[0] + read[1])
            else:
                made.append(layer(read[0]))
            if section.kind == "yolo":
                maps.append(read[0])
        return tuple(maps)

    @property
    def weight_count(self) -> int:
        """Number of float32 values in a weights file of this network, its header not counted."""
        return sum(tensor.numel() for tensor in self._file_order())

    def load_weights(self, data: bytes) -> None:
        """Fill in the weights of a Darknet weights file.

        Raises:
            WeightsError: If the file is too short or too long for this network, or not finite.
        """
        values = _values(data, self.weight_count)
        tensors = self._file_order()
        if not np.isfinite(values).all():
            raise WeightsError("the weights file holds values that are not finite: it is damaged")
        start = 0
        with torch.no_grad():
            for tensor in tensors:
                part = values[start : start + tensor.numel()]
                tensor.copy_(torch.from_numpy(part.copy()).view_as(tensor))
                start += tensor.numel()
        self.digest = hashlib.sha256(data).hexdigest()

    def to_weights(self) -> bytes:
        """The weights as a Darknet file, which `load_weights` reads."""
        values = [tensor.detach().numpy().astype("<f4").tobytes() for tensor in self._file_order()]
        return b"".join([np.array(_HEADER, "<i4").tobytes(), *values])

    def _file_order(self) -> list[torch.Tensor]:
        """Tensors as Darknet writes them: offset, scale, mean, variance or bias, then kernel."""
        tensors: list[Any] = []
        for layer in self.layers:
            if isinstance(layer, Convolution):
                norm = layer.norm
                if norm is None:
                    tensors.append(layer.conv.bias)
                else:
                    tensors += [norm.bias, norm.weight, norm.running_mean, norm.running_var]
                tensors.append(layer.conv.weight)
        return tensors


def load_darknet(
    cfg: str, weights: Path | bytes, *, input_size: tuple[int, int] | None = None
) -> DarknetModule:
    """Build a network and load its weights; in eval mode.

    Args:
        cfg: Text of the cfg.
        weights: A weights file, or what it holds.
        input_size: (H, W), if not the cfg's.

    Raises:
        ModelError: If the cfg is not understood.
        WeightsError: If the weights cannot be read or do not belong to it.
    """
    module = DarknetModule(cfg, input_size=input_size)
    module.load_weights(weights if isinstance(weights, bytes) else _read(weights))
    return module.eval()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror}") from error


def _values(data: bytes, count: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """`count` values behind the header: version (3 x int32), then a counter of 64 or 32 bits."""
    if len(data) < 12:
        expected = f"{20 + 4 * count:,} bytes are expected"
        raise WeightsError(f"weights of {len(data)} bytes are cut off in the header: {expected}")
    major, minor = (int(part) for part in np.frombuffer(data, "<i4", 2))
    header = 20 if major * 10 + minor >= 2 else 16
    expected_bytes = header + 4 * count
    if len(data) != expected_bytes:
        cause = "they were cut off" if len(data) < expected_bytes else "they belong to another cfg"
        raise WeightsError(
            f"the weights have {len(data):,} bytes, this network needs {expected_bytes:,}: {cause}"
        )
    return np.frombuffer(data, "<f4", offset=header)


def _check_size(section: Section, size: int, stride: int, padding: int) -> None:
    """Refuse a window whose map would not be exactly the one before it divided by the stride."""
    if not size - stride <= padding < size:
        raise section.error(
            f"size={size}, stride={stride} with {padding} pixels of padding in all: expected "
            f"padding of {max(size - stride, 0)} to {size - 1}, which keeps maps a whole fraction "
            "of the image"
        )


def _route(section: Section, read: list[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat(read, 1) if len(read) > 1 else read[0]
    start, count = _part(section, joined.shape[1])
    return joined if count == joined.shape[1] else joined[:, start : start + count]


def _part(section: Section, channels: int) -> tuple[int, int]:
    """First channel and number of channels that a section lets through: all, or one group."""
    groups = section.integer("groups", 1, least=1)
    group = section.integer("group_id", 0)
    if channels % groups:
        raise section.wrong("groups", f"a divisor of the {channels} channels")
    if group >= groups:
        raise section.wrong("group_id", f"less than groups={groups}")
    return group * (channels // groups), channels // groups


def _same(values: list[int], section: Section, what: str) -> int:
    if len(set(values)) != 1:
        raise section.error(f"[{section.kind}] joins maps of unequal {what}: {values}")
    return values[0]


def _head(section: Section, stride: int, channels: int) -> YoloHead:
    numbers = section.sizes("anchors")
    anchors = list(zip(numbers[::2], numbers[1::2], strict=False))
    if len(numbers) % 2 or section.integer("num", len(anchors)) != len(anchors):
        raise section.wrong("anchors", "as many pairs of width and height as num= says")
    mask = section.integers("mask") if "mask" in section.options else tuple(range(len(anchors)))
    if any(not 0 <= m < len(anchors) for m in mask):
        raise section.wrong("mask", f"numbers of anchors, 0 to {len(anchors) - 1}")
    classes = section.integer("classes", least=1)
    if channels != len(mask) * (5 + classes):
        raise section.error(
            f"[yolo] needs {len(mask) * (5 + classes)} channels, the layer before it has {channels}"
        )
    return YoloHead(stride, tuple(anchors[m] for m in mask), classes)
