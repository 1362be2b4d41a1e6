"""A bundle small enough to build in a test: a real int8 head, a real tail, one YOLO map of two
classes.

    image (3, 32, 32) -> conv 3x3/2, ReLU -> cut (8, 16, 16) -> conv 4x4/4 -> map (14, 4, 4)

The weights are random but fixed, and strong enough for every image of noise to give detections.
"""

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from common.bundle.bundle import Bundle, BundleWriter
from common.bundle.manifest import Head, HeadOutput, Plan, Prediction, Tail, network_digest
from common.codec.spec import CodecSpec, WireTensor
from common.runtime.registry import open_model
from common.tables.rows import segments
from common.tasks.base import ImageInput
from common.tasks.classification import ClassificationTask
from common.tasks.decoders.yolov3 import AnchorMap
from common.tasks.registry import AnyTask
from common.tasks.tensors import TensorsTask
from tests.bundles import SEARCH
from tests.contexts import random_model
from tests.tasks import yolo_task

SIZE = 32
CLOUD_ONLY, SPLIT, SPLIT_8, EDGE_ONLY = "cloud-only-png", "split-4", "split-8", "edge-only"
SPLIT_CONTEXT, SPLIT_VIDEO = "split-4-context", "split-4-video"
ALL_PLANS = (SPLIT, CLOUD_ONLY, EDGE_ONLY)

DETECTOR = yolo_task(
    SIZE,
    SIZE,
    heads=(AnchorMap(stride=8, anchors=((8.0, 8.0), (16.0, 16.0))),),
    class_names=("cat", "dog"),
)
CLASSES = ClassificationTask(
    image=ImageInput(height=SIZE, width=SIZE, fit="centre-crop"),
    class_names=tuple(f"kind {index}" for index in range(14)),
    top=3,
)
TENSORS = TensorsTask(image=ImageInput(height=SIZE, width=SIZE, fit="stretch"))
PREDICTION = Prediction(
    latency_ms=9,
    preprocess_ms=1,
    head_ms=1,
    encode_ms=1,
    uplink_ms=1,
    rtt_ms=1,
    decode_ms=1,
    tail_ms=2,
    postprocess_ms=1,
    uplink_bytes=1000,
    edge_memory_bytes=4096,
    accuracy=90,
    accuracy_drop=1,
)
NETWORK = network_digest(hashlib.sha256(b"tiny 0").hexdigest(), DETECTOR)
"""Of a bundle of seed 0."""

_CUT, _CHANNELS = (8, 16, 16), 14
_PIXEL_SCALE = 1 / 255

Array = NDArray[Any]


def build(
    folder: Path,
    plans: Sequence[str] = ALL_PLANS,
    *,
    seed: int = 0,
    wrong_vector: bool = False,
    weights_sha256: str | None = None,
    task: AnyTask = DETECTOR,
    searched: Mapping[str, object] = MappingProxyType({}),
) -> Bundle:
    """Write a tiny bundle and open it.

    Args:
        folder: An empty or absent folder.
        plans: Names of the plans to put in, the best first.
        seed: Of the weights; another seed gives another network, and other plans.
        wrong_vector: Whether the heads' reference outputs are not what the heads compute.
        weights_sha256: Of the network's file, if not that of the seed: other plans of one network.
        task: What the network is for; a classifier's map has one cell.
        searched: Settings of the search.
    """
    weights_sha256 = weights_sha256 or weights_of(seed)
    models = _Network(seed, wrong_vector=wrong_vector, cells=1 if task.kind == CLASSES.kind else 4)
    network = network_digest(weights_sha256, task)
    writer = BundleWriter(folder)
    made = [models.plan(name, writer) for name in plans]
    writer.finish(
        task=task,
        search=SEARCH.model_copy(update={"weights_sha256": weights_sha256, **searched}),
        plans=tuple(plan.model_copy(update={"network": network}) for plan in made),
    )
    return Bundle.open(folder)


def weights_of(seed: int) -> str:
    """What stands for the digest of the network's file of weights."""
    return hashlib.sha256(f"tiny {seed}".encode()).hexdigest()


def segment(bundle: Bundle, plan: str, stage: str) -> str:
    """What latency tables call a stage of a plan of a bundle."""
    (named,) = [each for each in bundle.plans.values() if each.name == plan]
    return next(each.name for each in segments(named) if each.stage == stage)


def image(seed: int = 1, width: int = 48, height: int = 40) -> NDArray[np.uint8]:
    """(H, W, 3) noise in blocks, the same for the same seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(picture)


def png(pixels: NDArray[np.uint8] | None = None) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image() if pixels is None else pixels).save(file, "PNG")
    return file.getvalue()


def pictures(folder: Path, seeds: Iterable[int]) -> Path:
    """Write the image of each seed, such as 1.png, into a new folder."""
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"{seed}.png").write_bytes(png(image(seed)))
    return folder


class _Network:
    """The weights, and every model that is made of them."""

    def __init__(self, seed: int, *, wrong_vector: bool, cells: int) -> None:
        self._wrong_vector = wrong_vector
        self._map = _CHANNELS, cells, cells
        side = _CUT[1] // cells
        rng = np.random.default_rng(seed)
        first = rng.normal(0, 1, (_CUT[0], 3, 3, 3))
        second = rng.normal(0, 1.5, (_CHANNELS, _CUT[0], side, side))
        self._first = _Conv("first", first, stride=2, pads=[0, 0, 1, 1])
        self._second = _Conv("second", second, stride=side, pads=[0, 0, 0, 0])
        self._frame = rng.integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)
        pixels = (self._frame * np.float32(_PIXEL_SCALE)).astype(np.float32)
        (cut,) = open_model(self._float("image", (3, SIZE, SIZE), "cut", _CUT)).run(
            {"image": pixels}
        )
        (out,) = open_model(self._float("cut", _CUT, "map", self._map)).run({"cut": cut})
        self._cut_scale = float(np.float32(cut.max() / 255))
        self._map_scale = float(np.float32(2 * np.abs(out).max() / 255))

    def plan(self, name: str, writer: BundleWriter) -> Plan:
        """A plan and its files."""
        if name == CLOUD_ONLY:
            writer.add("full.onnx", self._float("image", (3, SIZE, SIZE), "map", self._map))
            return _plan(name, None, [_pixels()], CodecSpec(name="png"), Tail(file="full.onnx"))
        if name == EDGE_ONLY:
            return _plan(name, self._head(writer, "whole", "map"), [], None, None)
        head = self._head(writer, "head", "cut")
        writer.add("tail.onnx", self._float("cut", _CUT, "map", self._map))
        wire = _levels(self._cut_scale, bits=8 if name == SPLIT_8 else 4)
        codec = CodecSpec(name="raw" if name == SPLIT_8 else "packed+zstd")
        if name in {SPLIT_CONTEXT, SPLIT_VIDEO}:
            codec = CodecSpec(name="context")
            wire = wire.model_copy(update={"context": "context.bin"})
            writer.add("context.bin", random_model(_CUT[0], 16).to_bytes())
        if name == SPLIT_VIDEO:
            wire = wire.model_copy(update={"context_after": "after.bin"})
            writer.add("after.bin", random_model(_CUT[0], 16, looks_back=True).to_bytes())
        return _plan(name, head, [wire], codec, Tail(file="tail.onnx"))

    def _head(self, writer: BundleWriter, stem: str, output: str) -> Head:
        data = self._int8(output)
        (expected,) = open_model(data).run({"image": self._frame})
        if self._wrong_vector:
            expected = expected ^ 0x55
        writer.add(f"{stem}.onnx", data)
        writer.add(f"{stem}-vector/input.npy", _npy(self._frame))
        writer.add(f"{stem}-vector/output-0.npy", _npy(expected))
        shape, scale, zero = (
            (_CUT, self._cut_scale, 0) if output == "cut" else (self._map, self._map_scale, 128)
        )
        return Head(
            file=f"{stem}.onnx",
            outputs=(HeadOutput(name=output, shape=shape, scale=scale, zero_point=zero),),
            weight_bytes=2048,
            peak_activation_bytes=4096,
            bits={"first": 8},
            vector=f"{stem}-vector",
        )

    def _float(
        self, source: str, shape: tuple[int, ...], output: str, out_shape: tuple[int, ...]
    ) -> bytes:
        """A float32 model from the image or the cut to the cut or the map, any batch."""
        nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        if source == "image":
            target = "cut" if output == "cut" else "hidden"
            self._first.append(nodes, constants, "image", "sums")
            nodes.append(helper.make_node("Relu", ["sums"], [target]))
        if output == "map":
            self._second.append(nodes, constants, "hidden" if source == "image" else "cut", "map")
        inputs = [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["N", *shape])]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", *out_shape])]
        return _model(nodes, inputs, outputs, constants)

    def _int8(self, output: str) -> bytes:
        """A QDQ model from pixels to the quantized cut or map, batch 1."""
        nodes: list[onnx.NodeProto] = []
        constants = [
            *_grid("pixel", _PIXEL_SCALE, 0),
            *_grid("cut", self._cut_scale, 0),
            *_grid("map", self._map_scale, 128),
        ]
        used = ["pixel", "cut"] if output == "cut" else ["pixel", "cut", "map"]
        constants = [c for c in constants if c.name.partition(".")[0] in used]
        _requantize(nodes, "DequantizeLinear", "image", "pixel", "pixels")
        self._first.append(nodes, constants, "pixels", "sums")
        nodes.append(helper.make_node("Relu", ["sums"], ["hidden"]))
        _requantize(nodes, "QuantizeLinear", "hidden", "cut", "cut")
        if output == "map":
            _requantize(nodes, "DequantizeLinear", "cut", "cut", "features")
            self._second.append(nodes, constants, "features", "float_map")
            _requantize(nodes, "QuantizeLinear", "float_map", "map", "map")
        shape = _CUT if output == "cut" else self._map
        inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, 3, SIZE, SIZE])]
        outputs = [helper.make_tensor_value_info(output, TensorProto.UINT8, [1, *shape])]
        return _model(nodes, inputs, outputs, constants)


class _Conv:
    """A convolution with int8 weights, dequantized inside the model."""

    def __init__(self, name: str, weights: Array, *, stride: int, pads: list[int]) -> None:
        self._name = name
        self._scale = float(np.float32(np.abs(weights).max() / 63))  # 7 bits: exact on any CPU
        self._codes = np.rint(weights / self._scale).astype(np.int8)
        self._attributes: dict[str, Any] = {"strides": [stride, stride], "pads": pads}

    def append(
        self,
        nodes: list[onnx.NodeProto],
        constants: list[onnx.TensorProto],
        source: str,
        target: str,
    ) -> None:
        name = self._name
        constants += [
            numpy_helper.from_array(self._codes, f"{name}.codes"),
            numpy_helper.from_array(np.array(self._scale, np.float32), f"{name}.scale"),
            numpy_helper.from_array(np.array(0, np.int8), f"{name}.zero"),
        ]
        quantized = [f"{name}.codes", f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("DequantizeLinear", quantized, [f"{name}.weights"]))
        conv = helper.make_node("Conv", [source, f"{name}.weights"], [target], **self._attributes)
        nodes.append(conv)


def _plan(
    name: str,
    head: Head | None,
    wire: list[WireTensor],
    codec: CodecSpec | None,
    tail: Tail | None,
) -> Plan:
    cut = tuple(tensor.name for tensor in wire) or ("map",)
    return Plan(
        name=name,
        network=NETWORK,
        cut=cut,
        head=head,
        wire=tuple(wire),
        codec=codec,
        tail=tail,
        predicted=PREDICTION,
    )


def _pixels() -> WireTensor:
    values = tuple(float(np.float32(code * _PIXEL_SCALE)) for code in range(256))
    return WireTensor(
        name="image", shape=(3, SIZE, SIZE), bits=8, to_symbol=tuple(range(256)), to_value=values
    )


def _levels(scale: float, bits: int) -> WireTensor:
    width = 256 >> bits
    values = tuple((width * level + (width - 1) / 2) * scale for level in range(1 << bits))
    symbols = tuple(code // width for code in range(256))
    return WireTensor(name="cut", shape=_CUT, bits=bits, to_symbol=symbols, to_value=values)


def _grid(name: str, scale: float, zero_point: int) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.array(scale, np.float32), f"{name}.scale"),
        numpy_helper.from_array(np.array(zero_point, np.uint8), f"{name}.zero"),
    ]


def _requantize(
    nodes: list[onnx.NodeProto], operator: str, source: str, grid: str, target: str
) -> None:
    inputs = [source, f"{grid}.scale", f"{grid}.zero"]
    nodes.append(helper.make_node(operator, inputs, [target]))


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: list[onnx.TensorProto],
) -> bytes:
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _npy(array: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
