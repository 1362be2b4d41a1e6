"""Bytes saved on videos by coding after an earlier frame, also when frames are lost.

    python -m bench.rate.video_rate --calibration DIR --videos FILE...

Context models of one wire format of YOLOv3-tiny are fitted on the still calibration images, those
that look back on sequences made of them by a little motion; no model is fitted to a video. Then
every frame of each video is coded alone, after the frame before, and with one frame in ten lost at
random. Every payload is decoded again with the frame that the cloud would have. Baselines are JPEG,
and H.264 by x264 without delay, of the same letterboxed frames.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from bench.harness import Bench, Columns, Lines, Result, add_calibration_options, record, table
from bench.rate.setup import CutSetup, add_cut_option
from common.codec import ContextCoded, make_codec
from common.codec.base import Symbols
from common.codec.quantizer import WireTable
from common.codec.spec import USUAL_UPLOAD
from common.progress import Stages
from common.runtime.registry import open_model
from search.network.graph import IMAGE
from search.quantization.export import head_model

MOST_FRAMES = 250
LOST = 0.1
JPEG, H264 = f"{USUAL_UPLOAD} bytes", "H.264 crf 23 bytes"
"""Keys of the baselines' bytes."""
_H264 = {"preset": "veryfast", "tune": "zerolatency", "crf": "23"}


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Fit context models and code every frame of every video."""
    with tempfile.TemporaryDirectory() as folder:
        setup = CutSetup(arguments, Path(folder), stages)
        cut, refiner = setup.cut, setup.refiner(0, sequences=True)
        curve = refiner.curve(cut)
        point = [p for p in curve.points if p.payload_bytes <= arguments.bytes][-1]
        candidate = refiner.options(cut, curve, point.wire)[0]
        (codec,), (wire,) = candidate.codecs, candidate.wire
        if not isinstance(codec, ContextCoded):
            raise TypeError("expected the context coder first")
        head, table_ = (
            open_model(head_model(setup.network, cut.tensors), threads=2),
            WireTable(wire),
        )
        videos = {}
        for path in arguments.videos:
            progress = stages.stage(f"coding {path.name}")
            pixels = []
            for image in _read(path):
                pixels.append(setup.prepared.task.image.pixels(image))
                progress(len(pixels), MOST_FRAMES)
            symbols = [table_.symbols(head.run({IMAGE: frame[None]})[0][0]) for frame in pixels]
            videos[path.name] = _coded(codec, symbols, wire.bits) | _baselines(pixels)
        return record(
            calibration_images=list(setup.prepared.calibration.names),
            cut=cut.name,
            wire_format=candidate.label,
            videos=videos,
        )


def _coded(codec: ContextCoded, symbols: Sequence[Symbols], bits: int) -> dict[str, Any]:
    """Mean bytes by the earlier frame that is looked back at."""
    lost = np.random.default_rng(0).random(len(symbols)) < LOST
    delivered = [int(k) for k in np.flatnonzero(~lost)]
    earlier_frames: dict[str, Callable[[int], int | None]] = {
        "alone": lambda _: None,
        "after the frame before": lambda k: k - 1,
        "one frame in ten lost": lambda k: max((d for d in delivered if d < k), default=None),
    }
    result: dict[str, Any] = {"frames": len(symbols)}
    for name, earlier in earlier_frames.items():
        sizes = []
        for index, now in enumerate(symbols):
            place = earlier(index)
            before = None if place is None or place < 0 else symbols[place]
            data = codec.encode_after(now, bits, before)
            if not np.array_equal(codec.decode_after(data, now.shape, bits, before), now):
                raise AssertionError(f"frame {index} did not come back")
            sizes.append(len(data))
        result[name] = {"bytes": float(np.mean(sizes))}
    return result


def _baselines(pixels: Sequence[NDArray[np.uint8]]) -> dict[str, float]:
    """Mean bytes of the frames as JPEG and as H.264."""
    jpeg = make_codec(USUAL_UPLOAD)
    encoder = av.CodecContext.create("libx264", "w")
    _, encoder.height, encoder.width = pixels[0].shape
    encoder.pix_fmt, encoder.framerate, encoder.options = "yuv420p", Fraction(25), _H264
    pictures = (np.ascontiguousarray(frame.transpose(1, 2, 0)) for frame in pixels)
    frames = [*(av.VideoFrame.from_ndarray(picture) for picture in pictures), None]
    packets = [packet for frame in frames for packet in encoder.encode(frame)]
    return {
        JPEG: float(np.mean([len(jpeg.encode(frame, 8)) for frame in pixels])),
        H264: sum(packet.size for packet in packets) / len(pixels),
    }


def _read(path: Path) -> Iterator[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index == MOST_FRAMES:
                return
            yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def section(result: Result) -> Lines:
    """Table of bytes by video."""
    columns: Columns = {
        "video": "{video}",
        "alone": "{alone[bytes]:,.0f}",
        "after the frame before": "{after the frame before[bytes]:,.0f}",
        "one in ten lost": "{one frame in ten lost[bytes]:,.0f}",
        "JPEG q75": lambda row: f"{row[JPEG]:,.0f}",
        "H.264": lambda row: f"{row[H264]:,.0f}",
    }
    return table(({"video": name, **row} for name, row in result["videos"].items()), columns)


def _options(parser: argparse.ArgumentParser) -> None:
    add_calibration_options(parser)
    add_cut_option(parser)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--bytes", type=float, default=5500, help="largest size of the wire format")


BENCH = Bench(__doc__, "video_rate", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
