"""A small bundle, written by hand: its models are no models."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import BundleWriter
from common.bundle.manifest import (
    Head,
    HeadOutput,
    Manifest,
    Plan,
    Prediction,
    Search,
    Tail,
    network_digest,
)
from common.codec.spec import CodecSpec, WireTensor
from common.tasks.decoders.yolov3 import AnchorMap
from tests.tasks import yolo_task

SIZE = 32
CUT = (2, 4, 4)
INPUT = np.random.default_rng(0).integers(0, 256, (1, 3, SIZE, SIZE), dtype=np.uint8)
OUTPUT = np.random.default_rng(1).integers(0, 256, (1, *CUT), dtype=np.uint8)

DETECTOR = yolo_task(
    SIZE,
    SIZE,
    heads=(AnchorMap(stride=8, anchors=((8.0, 8.0),)),),
    class_names=("cat",),
)
SEARCH = Search(
    model="tiny",
    weights_sha256="0" * 64,
    device="test",
    uplink_bps=3e6,
    rtt_ms=20,
    limits={"max_drop": 1.0},
    calibration_images=1,
    accuracy_metric="none",
    software_version="0",
)
PLAN = Plan(
    name="split",
    network=network_digest(SEARCH.weights_sha256, DETECTOR),
    cut=("cut",),
    head=Head(
        file="models/head.onnx",
        outputs=(HeadOutput(name="cut", shape=CUT, scale=0.1, zero_point=0),),
        weight_bytes=1,
        peak_activation_bytes=1,
        bits={"conv": 8},
        vector="vectors/cut",
    ),
    wire=(
        WireTensor(
            name="cut",
            shape=CUT,
            bits=1,
            to_symbol=tuple(code >> 7 for code in range(256)),
            to_value=(0.0, 1.0),
        ),
    ),
    codec=CodecSpec(name="packed"),
    tail=Tail(file="models/tail.onnx"),
    predicted=Prediction.model_validate(
        dict.fromkeys(Prediction.model_fields, 1) | {"judged_by": "held-out"}
    ),
)


def npy(array: NDArray[Any], *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def files() -> dict[str, bytes]:
    return {
        "models/head.onnx": b"a head",
        "models/tail.onnx": b"a tail " * 1000,
        "vectors/cut/input.npy": npy(INPUT),
        "vectors/cut/output-0.npy": npy(OUTPUT),
        "report.md": b"why",
    }


def write(folder: Path, contents: dict[str, bytes] | None = None, plan: Plan = PLAN) -> Manifest:
    writer = BundleWriter(folder)
    for name, data in (contents or files()).items():
        writer.add(name, data)
    return writer.finish(task=DETECTOR, search=SEARCH, plans=(plan,))
