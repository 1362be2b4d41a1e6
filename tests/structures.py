"""Networks of this year's shapes, small and seeded, as files that an exporter would write.

A YOLOv8 (C2f, SPPF, DFL) with and without its decoder in the graph, one with an attention block as
of YOLO11, and a detector of two stages whose second one is RoiAlign and NonMaxSuppression.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIZE = 128
"""Height and width of the image, in pixels."""
CLASSES = 3
BINS = 16
STRIDES = (8, 16, 32)


class Conv(nn.Sequential):
    """Convolution, batch normalisation, SiLU."""

    def __init__(self, read: int, made: int, size: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(read, made, size, stride, size // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(made), nn.SiLU())


class Bottleneck(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(Conv(channels, channels, 3), Conv(channels, channels, 3))
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(x)
        return x + made if self.shortcut else made


class C2f(nn.Module):
    """A join of both halves and of what each bottleneck makes of the last one."""

    def __init__(self, read: int, made: int, depth: int = 1, *, shortcut: bool = True) -> None:
        super().__init__()
        half = made // 2
        self.first, self.last = Conv(read, made), Conv((2 + depth) * half, made)
        self.inner = nn.ModuleList(Bottleneck(half, shortcut=shortcut) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.first(x).chunk(2, 1))
        for each in self.inner:
            parts.append(each(parts[-1]))
        joined: torch.Tensor = self.last(torch.cat(parts, 1))
        return joined


class Sppf(nn.Module):
    """Poolings of poolings, joined."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.last = Conv(channels, channels // 2), Conv(2 * channels, channels)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        joined: torch.Tensor = self.last(torch.cat(parts, 1))
        return joined


class Attention(nn.Module):
    """Attention of every place to every other, as of a C2PSA, with two heads."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads, self.wide = 2, channels // 2
        self.qkv, self.project = (
            nn.Conv2d(channels, 2 * channels, 1),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(x).view(batch, self.heads, 2 * self.wide, height * width)
        query, key, value = torch.split(qkv, [self.wide // 2, self.wide // 2, self.wide], 2)
        weights = (query.transpose(-2, -1) @ key * (self.wide // 2) ** -0.5).softmax(-1)
        seen = (value @ weights.transpose(-2, -1)).view(batch, channels, height, width)
        attended: torch.Tensor = x + self.project(seen)
        return attended


class YoloV8(nn.Module):
    """A detector without anchors: backbone, pyramid up and down, distributions of box sides.

    Args:
        decoded: Whether boxes in pixels and scores come out, (1, 4 + C, N); else maps by stride.
        attention: Whether an attention block follows the backbone.
    """

    def __init__(self, *, decoded: bool, attention: bool = False) -> None:
        super().__init__()
        self.decoded = decoded
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), C2f(16, 16))
        self.p3 = nn.Sequential(Conv(16, 24, 3, 2), C2f(24, 24))
        self.p4 = nn.Sequential(Conv(24, 32, 3, 2), C2f(32, 32))
        deepest = [
            Conv(32, 48, 3, 2),
            C2f(48, 48),
            Sppf(48),
            *([Attention(48)] if attention else []),
        ]
        self.p5 = nn.Sequential(*deepest)
        self.up4, self.up3 = C2f(80, 32, shortcut=False), C2f(56, 24, shortcut=False)
        self.to4, self.to5 = Conv(24, 24, 3, 2), Conv(32, 32, 3, 2)
        self.down4, self.down5 = C2f(56, 32, shortcut=False), C2f(80, 48, shortcut=False)
        widths = (24, 32, 48)
        self.sides = nn.ModuleList(
            nn.Sequential(Conv(w, 32, 3), nn.Conv2d(32, 4 * BINS, 1)) for w in widths
        )
        self.classes = nn.ModuleList(
            nn.Sequential(Conv(w, 24, 3), nn.Conv2d(24, CLASSES, 1)) for w in widths
        )
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        three = self.p3(self.stem(image))
        four = self.p4(three)
        five = self.p5(four)
        up4 = self.up4(torch.cat([self.upsample(five), four], 1))
        up3 = self.up3(torch.cat([self.upsample(up4), three], 1))
        down4 = self.down4(torch.cat([self.to4(up3), up4], 1))
        down5 = self.down5(torch.cat([self.to5(down4), five], 1))
        maps = [
            torch.cat([sides(x), classes(x)], 1)
            for sides, classes, x in zip(self.sides, self.classes, (up3, down4, down5), strict=True)
        ]
        return self._boxes(maps) if self.decoded else tuple(maps)

    def _boxes(self, maps: list[torch.Tensor]) -> torch.Tensor:
        centres, strides = _cells()
        flat = torch.cat([each.flatten(2) for each in maps], 2)
        sides, scores = torch.split(flat, [4 * BINS, CLASSES], 1)
        weights = sides.view(1, 4, BINS, -1).transpose(2, 1).softmax(1)
        ltrb = nn.functional.conv2d(weights, torch.arange(BINS).float().view(1, BINS, 1, 1))[:, 0]
        before, after = ltrb.chunk(2, 1)
        low, high = centres - before, centres + after
        boxes = torch.cat([(low + high) / 2, high - low], 1) * strides
        return torch.cat([boxes, scores.sigmoid()], 1)


def _cells() -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (1, 2, N) of all cells in units of their strides, and the strides (1, N)."""
    centres, strides = [], []
    for stride in STRIDES:
        side = torch.arange(SIZE // stride) + 0.5
        y, x = torch.meshgrid(side, side, indexing="ij")
        centres.append(torch.stack([x.flatten(), y.flatten()]))
        strides.append(torch.full((1, x.numel()), float(stride)))
    return torch.cat(centres, 1)[None], torch.cat(strides, 1)


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give a module seeded weights, and batch normalisations statistics other than 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in module.modules():
            if isinstance(each, nn.BatchNorm2d):
                each.running_mean = torch.randn(each.num_features, generator=generator) * 0.1
                each.running_var = torch.rand(each.num_features, generator=generator) + 0.5
            elif isinstance(each, nn.Conv2d):
                fan_in = each.weight[0].numel()
                each.weight.copy_(torch.randn(each.weight.shape, generator=generator))
                each.weight.mul_((2 / fan_in) ** 0.5)
    return module.eval()


def exported(module: nn.Module, path: Path) -> Path:
    """Write a module as an ONNX file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter by tracing is said to be old
        torch.onnx.export(
            module,
            (torch.zeros(1, 3, SIZE, SIZE),),
            str(path),
            opset_version=17,
            input_names=["images"],
            dynamo=False,
        )
    return path


def two_stages(path: Path, proposals: int = 16) -> Path:
    """Write a detector of two stages: the best places of a map are looked at once more.

    Its outputs are boxes (n, 4) in pixels, scores (n,) and classes (n,), as many as the image has.
    """
    rng = np.random.default_rng(0)
    side = SIZE // 8
    y, x = np.mgrid[:side, :side].astype(np.float32) * 8 + 4
    around = np.stack([x - 12, y - 12, x + 12, y + 12], -1).reshape(-1, 4)

    def weights(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * (2 / np.prod(shape[1:])) ** 0.5).astype(np.float32)

    constants = {
        "w1": weights(8, 3, 3, 3),
        "w2": weights(16, 8, 3, 3),
        "w3": weights(16, 16, 3, 3),
        "rpn": weights(1, 16, 1, 1),
        "anchors": around,
        "count": np.array([proposals], np.int64),
        "places": np.array([-1], np.int64),
        "row": np.zeros(proposals, np.int64),
        "fc": weights(16 * 4, CLASSES),
        "three": np.array([1, proposals, 4], np.int64),
        "scored": np.array([1, CLASSES, proposals], np.int64),
        "most": np.array(8, np.int64),
        "overlap": np.array(0.5, np.float32),
        "column": np.array(2, np.int64),
        "class": np.array(1, np.int64),
        "flat": np.array([-1], np.int64),
        "four": np.array([-1, 4], np.int64),
        "pair": np.array([1, 2], np.int64),
    }
    node = helper.make_node
    nodes = [
        node("Conv", ["image", "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["c3"], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", ["c3"], ["map"]),
        node("Conv", ["map", "rpn"], ["objectness"]),
        node("Reshape", ["objectness", "places"], ["flat_objectness"]),
        node("TopK", ["flat_objectness", "count"], ["best", "where"]),
        node("Gather", ["anchors", "where"], ["boxes_of_proposals"]),
        node(
            "RoiAlign",
            ["map", "boxes_of_proposals", "row"],
            ["pooled"],
            output_height=2,
            output_width=2,
            spatial_scale=1 / 8,
            sampling_ratio=2,
        ),
        node("Flatten", ["pooled"], ["vectors"]),
        node("MatMul", ["vectors", "fc"], ["logits"]),
        node("Softmax", ["logits"], ["probabilities"], axis=1),
        node("Transpose", ["probabilities"], ["by_class"], perm=[1, 0]),
        node("Reshape", ["by_class", "scored"], ["scores_of_classes"]),
        node("Reshape", ["boxes_of_proposals", "three"], ["boxes_of_batch"]),
        node(
            "NonMaxSuppression",
            ["boxes_of_batch", "scores_of_classes", "most", "overlap"],
            ["kept"],
        ),
        node("Gather", ["kept", "column"], ["kept_boxes"], axis=1),
        node("Gather", ["kept", "class"], ["kept_classes"], axis=1),
        node("Gather", ["boxes_of_proposals", "kept_boxes"], ["boxes"]),
        node("Gather", ["kept", "pair"], ["class_and_box"], axis=1),
        node("Squeeze", ["scores_of_classes", "first"], ["table"]),
        node("GatherND", ["table", "class_and_box"], ["scores"]),
        node("Cast", ["kept_classes"], ["classes"], to=TensorProto.FLOAT),
    ]
    constants["first"] = np.array([0], np.int64)
    del constants["flat"], constants["four"]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        for name in ("boxes", "scores", "classes")
    ]
    graph = helper.make_graph(
        nodes,
        "two stages",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, SIZE, SIZE))],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
