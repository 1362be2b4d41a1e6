"""Bytes saved on videos by coding after an earlier frame, also when frames are lost.

    python -m bench.rate.video_rate --calibration DIR --videos FILE... --json OUT

Context models of one wire format of YOLOv3-tiny are fitted on the still calibration images, those
that look back on sequences made of them by a little motion; no model is fitted to a video. Then
every frame of each video is coded alone, after the frame before, after the frame three back (as
with answers still under way), and with one frame in ten lost at random. Every payload is decoded
again with the frame that the cloud would have. Baselines are JPEG, and H.264 by x264 without delay,
of the same letterboxed frames.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from bench.machine import machine
from common.codec import ContextCoded, make_codec
from common.codec.base import Symbols
from common.codec.quantizer import WireTable
from common.codec.spec import USUAL_UPLOAD
from common.imaging.placement import fit_image
from common.progress import Stages
from common.runtime.registry import open_model
from common.version import __version__
from search.measure.frames import load_frames
from search.network.cuts import enumerate_cuts
from search.network.graph import IMAGE
from search.network.importer import import_module
from search.network.losses import distillation_loss
from search.network.passes import optimise
from search.prepare import task_of
from search.quantization.calibration import observe
from search.quantization.export import head_model
from search.quantization.heads import Heads
from search.quantization.recipe import rounded
from search.refine.refine import Refiner
from search.wire.training_data import collect, collect_pairs, copies_of
from search.zoo.registry import load_model

MOST_FRAMES = 250
LOST = 0.1
_H264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}


def main() -> None:
    """Fit, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--cut", default="conv_8", help="name of a cut of one tensor")
    parser.add_argument("--bytes", type=float, default=5500, help="largest size of the wire format")
    parser.add_argument(
        "--max-images", type=int, default=1000, help="most images used for calibration"
    )
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Stages() as stages:
        result = _run(arguments, Path(folder), stages)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["videos"], indent=1))  # noqa: T201 - a command's output


def _run(arguments: argparse.Namespace, folder: Path, stages: Stages) -> dict[str, Any]:
    module = load_model("yolov3-tiny")
    graph = optimise(import_module(module, module.input_size))
    frames = load_frames(
        arguments.calibration,
        task_of(module).image,
        arguments.max_images,
        stages.stage("reading calibration images"),
    )
    observed = observe(graph, frames.pixels, stages.stage("observing activations"))
    network = rounded(graph, observed)
    cuts = enumerate_cuts(graph)
    cut = next(each for each in cuts if each.name == arguments.cut)
    examples = collect(
        network,
        cuts[0],
        cut.tensors,
        frames.pixels,
        folder,
        copies=copies_of(len(frames.names)),
        threads=2,
        progress=stages.stage("collecting examples"),
    )
    pairs = collect_pairs(
        network,
        cut.tensors,
        frames.pixels,
        threads=2,
        progress=stages.stage("collecting sequences"),
    )
    refiner = Refiner(
        Heads(network),
        examples,
        distillation_loss(task_of(module)),
        0,
        stages,
        pairs=pairs,
    )
    curve = refiner.curve(cut)
    point = [p for p in curve.points if p.payload_bytes <= arguments.bytes][-1]
    candidate = refiner.options(cut, curve, point.wire)[0]
    (codec,), (wire,) = candidate.codecs, candidate.wire
    if not isinstance(codec, ContextCoded):
        raise TypeError("expected the context coder first")
    head, table = open_model(head_model(network, cut.tensors), threads=2), WireTable(wire)
    videos = {}
    for path in arguments.videos:
        progress = stages.stage(f"coding {path.name}")
        pixels = []
        for image in _read(path):
            pixels.append(fit_image(image, module.input_size))
            progress(len(pixels), MOST_FRAMES)
        symbols = [table.symbols(head.run({IMAGE: frame[None]})[0][0]) for frame in pixels]
        videos[path.name] = _measure(codec, symbols, wire.bits) | _rivals(pixels)
    return {
        "machine": machine(),
        "software_version": __version__,
        "calibration_images": list(frames.names),
        "cut": cut.name,
        "wire_format": candidate.label,
        "videos": videos,
    }


def _measure(codec: ContextCoded, symbols: Sequence[Symbols], bits: int) -> dict[str, Any]:
    """Mean bytes and coding times on one core, by the earlier frame that is looked back at."""
    lost = np.random.default_rng(0).random(len(symbols)) < LOST
    delivered = [int(k) for k in np.flatnonzero(~lost)]
    ways: dict[str, Callable[[int], int | None]] = {
        "alone": lambda _: None,
        "after the frame before": lambda k: k - 1,
        "after the frame three back": lambda k: k - 3,
        "one frame in ten lost": lambda k: max((d for d in delivered if d < k), default=None),
    }
    result: dict[str, Any] = {"frames": len(symbols)}
    for name, earlier in ways.items():
        sizes, encode, decode, looked_back = [], [], [], 0
        for index, now in enumerate(symbols):
            place = earlier(index)
            before = None if place is None or place < 0 else symbols[place]
            start = time.perf_counter()
            data = codec.encode_after(now, bits, before)
            middle = time.perf_counter()
            decoded = codec.decode_after(data, now.shape, bits, before)
            decode.append(1e3 * (time.perf_counter() - middle))
            encode.append(1e3 * (middle - start))
            if not np.array_equal(decoded, now):
                raise AssertionError(f"frame {index} did not come back")
            sizes.append(len(data))
            looked_back += data[:1] == b"\2"
        result[name] = {
            "bytes": float(np.mean(sizes)),
            "looked_back_percent": 100 * looked_back / len(symbols),
            "encode_ms": float(np.median(encode)),
            "decode_ms": float(np.median(decode)),
        }
    return result


def _rivals(pixels: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Mean bytes of the baselines: the frames as JPEG and as H.264."""
    jpeg = make_codec(USUAL_UPLOAD)
    sizes = [len(jpeg.encode(frame, 8)) for frame in pixels]
    encoder = av.CodecContext.create("libx264", "w")
    _, encoder.height, encoder.width = pixels[0].shape
    encoder.pix_fmt, encoder.framerate, encoder.options = "yuv420p", Fraction(25), _H264
    packets = [
        packet
        for frame in pixels
        for packet in encoder.encode(
            av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
        )
    ]
    packets += encoder.encode(None)
    return {
        f"{USUAL_UPLOAD} bytes": float(np.mean(sizes)),
        "H.264 crf 23 bytes": sum(packet.size for packet in packets) / len(pixels),
    }


def _read(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == MOST_FRAMES:
                return
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


if __name__ == "__main__":
    main()
