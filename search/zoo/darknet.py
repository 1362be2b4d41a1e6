"""Darknet networks of the YOLOv3 family as plain torch modules.

The module maps an RGB image (N, 3, H, W) in [0, 1] to the raw map of each [yolo] layer,
(N, anchors x (5 + classes), h, w), in the order of the file. Decoding boxes is not part of it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch user knows
from torch import nn

from common.errors import ModelError, WeightsError
from search.zoo.cfg import Section, parse_cfg

# Darknet adds 1e-6 to the standard deviation, later forks 1e-5 to the variance; the published
# YOLOv3-tiny weights hold variances near zero, for which OpenCV's choice, 1e-6 here, is the
# reference.
BATCH_NORM_EPS = 1e-6


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
            raise ModelError(f"cfg line {section.line}: {groups} groups do not divide the channels")
        normalised = bool(section.integer("batch_normalize", 0))
        stride = section.integer("stride", 1, least=1)
        self.conv = nn.Conv2d(
            channels, filters, size, stride, padding, groups=groups, bias=not normalised
        )
        self.norm = nn.BatchNorm2d(filters, eps=BATCH_NORM_EPS) if normalised else None
        activation = section.text("activation", "linear")
        if activation not in ("linear", "leaky", "relu"):
            raise ModelError(f"cfg line {section.line}: activation={activation} is not supported")
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, filters, H', W')."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.activation == "leaky":
            return F.leaky_relu(x, 0.1)
        return F.relu(x) if self.activation == "relu" else x


class MaxPool(nn.Module):
    """Max pooling with Darknet's padding of size - 1 in all, the larger half right and below."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.stride = section.integer("stride", 1, least=1)
        self.size = section.integer("size", self.stride, least=1)
        before = (self.size - 1) // 2
        # With a stride of the size, padding would only add windows that are cut off again.
        total = 0 if self.stride == self.size else self.size - 1
        self.before, self.after = (before, total - before) if total else (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, H', W')."""
        if self.before == self.after:
            return F.max_pool2d(x, self.size, self.stride, self.before)
        pads = (self.before, self.after, self.before, self.after)
        return F.max_pool2d(F.pad(x, pads, value=float("-inf")), self.size, self.stride)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.factor = float(section.integer("stride", 2, least=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) to (N, C, factor H, factor W)."""
        return F.interpolate(x, scale_factor=self.factor, mode="nearest")


class DarknetModule(nn.Module):
    """A network built from a cfg.

    Attributes:
        input_size: (H, W).
        heads: Geometry of each output.
        digest: SHA-256 of the weights file, in hex; empty before weights are loaded.
    """

    def __init__(self, cfg: str, *, input_size: int | None = None) -> None:
        super().__init__()
        net, *sections = parse_cfg(cfg)
        height = input_size or net.integer("height", 416, least=32)
        width = input_size or net.integer("width", 416, least=32)
        if height % 32 or width % 32:
            raise ModelError(f"an input of {height} x {width}: both must be multiples of 32")
        self.input_size = (height, width)
        self.digest = ""
        self._sections = tuple(sections)
        self._sources: list[tuple[int, ...]] = []
        self.layers = nn.ModuleList()
        heads: list[YoloHead] = []
        channels: list[int] = []
        strides: list[int] = []
        for index, section in enumerate(sections):
            sources = _sources(section, index)
            read = [channels[s] if s >= 0 else net.integer("channels", 3) for s in sources]
            stride = strides[sources[0]] if sources[0] >= 0 else 1
            if section.kind == "convolutional":
                layer: nn.Module = Convolution(section, read[0])
                made, factor = section.integer("filters"), section.integer("stride", 1)
            elif section.kind == "maxpool":
                layer, made, factor = MaxPool(section), read[0], section.integer("stride", 1)
            elif section.kind == "upsample":
                layer, made, factor = Upsample(section), read[0], 1
                stride //= section.integer("stride", 2)
            else:
                layer, factor = nn.Identity(), 1
                made = sum(read) // section.integer("groups", 1, least=1)
                if section.kind == "shortcut":
                    made = _same(read, section)
            if section.kind == "yolo":
                heads.append(_head(section, stride, read[0]))
            self._sources.append(sources)
            self.layers.append(layer)
            channels.append(made)
            strides.append(stride * factor)
        if not heads:
            raise ModelError("the cfg has no [yolo] layer")
        self.heads = tuple(heads)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(N, 3, H, W) in [0, 1] to the raw maps of the [yolo] layers."""
        made: list[torch.Tensor] = []
        maps: list[torch.Tensor] = []
        steps = zip(self._sections, self._sources, self.layers, strict=True)
        for section, sources, layer in steps:
            read = [made[s] if s >= 0 else image for s in sources]
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
        values = _values(data)
        tensors = self._file_order()
        expected = self.weight_count
        if len(values) != expected:
            raise WeightsError(
                f"the weights file holds {len(values):,} values, this network needs {expected:,}: "
                "it belongs to another cfg or was cut off"
            )
        if not np.isfinite(values).all():
            raise WeightsError("the weights file holds values that are not finite: it is damaged")
        start = 0
        with torch.no_grad():
            for tensor in tensors:
                part = values[start : start + tensor.numel()]
                tensor.copy_(torch.from_numpy(part.copy()).view_as(tensor))
                start += tensor.numel()
        self.digest = hashlib.sha256(data).hexdigest()

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


def load_darknet(cfg: str, weights: Path, *, input_size: int | None = None) -> DarknetModule:
    """Build a network and load its weights; in eval mode.

    Raises:
        ModelError: If the cfg is not understood.
        WeightsError: If the weights cannot be read or do not belong to it.
    """
    module = DarknetModule(cfg, input_size=input_size)
    try:
        data = weights.read_bytes()
    except OSError as error:
        raise WeightsError(f"{weights}: cannot be read: {error.strerror}") from error
    module.load_weights(data)
    return module.eval()


def _values(data: bytes) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """The values behind the header: version (3 x int32), then a counter of 64 or 32 bits."""
    if len(data) < 20:
        raise WeightsError(f"a weights file of {len(data)} bytes is cut off in its header")
    major, minor = np.frombuffer(data, "<i4", 2)
    header = 20 if int(major) * 10 + int(minor) >= 2 else 16
    if (len(data) - header) % 4:
        raise WeightsError("the weights file ends in the middle of a value: it was cut off")
    return np.frombuffer(data, "<f4", offset=header)


def _sources(section: Section, index: int) -> tuple[int, ...]:
    """Indices of the layers that a section reads; -1 is the image."""
    if section.kind == "route":
        named = section.integers("layers")
    elif section.kind == "shortcut":
        named = (-1, section.integers("from")[0])
    else:
        return (index - 1,)
    found = tuple(index + n if n < 0 else n for n in named)
    if any(not 0 <= source < index for source in found):
        raise ModelError(f"cfg line {section.line}: layers {named} are not all before this one")
    return found


def _route(section: Section, read: list[torch.Tensor]) -> torch.Tensor:
    joined = torch.cat(read, 1) if len(read) > 1 else read[0]
    groups = section.integer("groups", 1, least=1)
    if groups == 1:
        return joined
    channels = joined.shape[1] // groups
    start = section.integer("group_id", 0) * channels
    return joined[:, start : start + channels]


def _same(channels: list[int], section: Section) -> int:
    if len(set(channels)) != 1:
        raise ModelError(f"cfg line {section.line}: a shortcut adds {channels} channels")
    return channels[0]


def _head(section: Section, stride: int, channels: int) -> YoloHead:
    numbers = section.integers("anchors")
    anchors = [(float(w), float(h)) for w, h in zip(numbers[::2], numbers[1::2], strict=False)]
    mask = section.integers("mask")
    classes = section.integer("classes", least=1)
    if len(numbers) % 2 or any(not 0 <= m < len(anchors) for m in mask):
        raise ModelError(f"cfg line {section.line}: mask {mask} does not fit the anchors")
    if channels != len(mask) * (5 + classes):
        raise ModelError(
            f"cfg line {section.line}: [yolo] needs {len(mask) * (5 + classes)} channels, "
            f"the layer before it has {channels}"
        )
    return YoloHead(stride, tuple(anchors[m] for m in mask), classes)
