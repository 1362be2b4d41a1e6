"""A small network under the name of YOLOv3-tiny, so that whole commands take seconds.

It has the 80 classes of the published network at an input of 64 x 64 pixels, and sees what is
bright. `small_zoo` puts it into the zoo; its weights are fetched, checked and kept like others.
"""

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from search.zoo.darknet import Convolution, DarknetModule
from search.zoo.download import FileSource, WeightsEntry
from search.zoo.registry import DarknetModel

NAME = "yolov3-tiny"
HEADER = struct.pack("<iiiQ", 0, 2, 0, 0)
"""Of a weights file: version 0.2.0, no images seen."""
_PER_ANCHOR = 5 + 80


def conv(filters: int, size: int = 1, stride: int = 1, *, norm: bool = True) -> str:
    """A section of a cfg."""
    return (
        f"[convolutional]\nbatch_normalize={int(norm)}\nfilters={filters}\nsize={size}\n"
        f"stride={stride}\npad=1\nactivation={'leaky' if norm else 'linear'}\n"
    )


_POOL = "[maxpool]\nsize=2\nstride=2\n"
CFG = (
    "[net]\nwidth=64\nheight=64\nchannels=3\n"
    f"{conv(4, 3)}{_POOL}{conv(8, 3)}{_POOL}{conv(8, 3)}{conv(2 * _PER_ANCHOR, norm=False)}"
    "[yolo]\nmask=0,1\nanchors=12,16, 24,20\nclasses=80\nnum=2\n"
)


@dataclass(frozen=True)
class _Small(DarknetModel):
    @property
    def cfg(self) -> str:
        return CFG


def _weights() -> bytes:
    """Every layer averages, and the detectors see what is bright: clear boxes, few of them."""
    rng = np.random.default_rng(0)
    values = []
    for layer in DarknetModule(CFG).layers:
        if isinstance(layer, Convolution):
            kernel = rng.exponential(1, layer.conv.weight.shape)
            kernel /= kernel.sum((1, 2, 3), keepdims=True)
            zeros = np.zeros(len(kernel))
            if layer.norm is None:
                offset, gain = _detector()
                values += [offset, kernel * gain.reshape(-1, 1, 1, 1)]
            else:  # offset, scale, mean, variance and kernel
                values += [zeros, zeros + 1, zeros, zeros + 1, kernel]
    return HEADER + b"".join(each.astype("<f4").tobytes() for each in values)


def _detector() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Biases and gains of a detector's channels: boxes as their anchors, one class for each."""
    offset, gain = np.full((2, _PER_ANCHOR), -12.0), np.zeros((2, _PER_ANCHOR))
    offset[:, :4] = 0.0
    offset[:, 4], gain[:, 4] = -20.0, 40.0
    offset[0, 5] = offset[1, 6] = 4.0
    return offset.ravel(), gain.ravel()


def pictures(folder: Path, count: int) -> None:
    """Write dark pictures with a few bright things in each, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(_scene(number)).save(folder / f"{number:03}.jpg", quality=95)


def video(path: Path, count: int) -> None:
    """Write such pictures as a video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(_scene(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _scene(seed: int) -> NDArray[np.uint8]:
    """(72, 96, 3) pixels."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (9, 12, 3), dtype=np.uint8)
    for _ in range(2):
        row, column = rng.integers(0, 7), rng.integers(0, 10)
        pixels[row : row + 2, column : column + 2] = rng.integers(200, 256, 3, dtype=np.uint8)
    return np.asarray(Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC))


def published(file: Path, name: str = "") -> WeightsEntry:
    """A file as if it had been published: it is fetched from where it is, and checked."""
    data = file.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return WeightsEntry(name or file.name, len(data), digest, (FileSource(file),))


@contextmanager
def small_zoo(folder: Path) -> Iterator[Path]:
    """Have `yolov3-tiny` mean the small network inside the block; yields a file of its weights."""
    weights = folder / "published.weights"
    weights.write_bytes(_weights())
    model = _Small(name=NAME, weights=published(weights, f"{NAME}.weights"), image_size=(64, 64))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("search.zoo.registry.MODELS", {NAME: model})
        yield weights
