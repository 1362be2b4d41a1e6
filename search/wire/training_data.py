"""Training examples for context models and tails: codes and maps of images.

There are no labels: the floating-point network is the teacher. Every example holds the 8-bit codes
of the cut tensors, which the tail will have to work from, and the maps that the whole network made
of the same pixels. Mirrored, zoomed and brightened copies of an image cost nothing but time, and
keep a tail from learning a few images by heart. One image in eight is held out, untouched.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from common.errors import CalibrationError
from common.imaging.images import unit_range
from common.runtime.registry import open_model
from search.network.cuts import Cut
from search.network.graph import IMAGE
from search.network.operators.registry import last_computable
from search.quantization.export import SharedWeights, head_model, tail_model, write_weights
from search.quantization.network import QuantizedGraph

Progress = Callable[[int, int], None]

MIN_FRAMES = 16
HELD_OUT = 8
"""One image in this many is held out."""

_MOST_COPIES = 4
_MOST_EXAMPLES = 1500  # 1 GB of them for a YOLOv3-tiny of 416 x 416
_SMALLEST_CROP = 0.5
_STRETCH = 0.2
_CONTRAST = 0.2
_BRIGHTNESS = 20.0
_NOISE = 1.5
_FLICKER = 1.5


@dataclass(frozen=True, eq=False)
class Examples:
    """M examples, the held-out ones first.

    Attributes:
        codes: By tensor, (M, C, H, W) uint8.
        maps: The teacher's, in the network's order, (M, C, H, W) float16 each.
        held_out: How many of them are held out.
    """

    codes: dict[str, NDArray[np.uint8]]
    maps: tuple[NDArray[np.float16], ...]
    held_out: int

    def __len__(self) -> int:
        return len(self.maps[0])


def collect(
    network: QuantizedGraph,
    whole: Cut,
    tensors: Sequence[str],
    frames: NDArray[np.uint8],
    folder: Path,
    *,
    copies: int,
    threads: int,
    progress: Progress,
) -> Examples:
    """Run the teacher and the 8-bit heads over frames and their altered copies.

    Args:
        network: The quantized network.
        whole: The cut at the input.
        tensors: Names of the tensors whose codes are kept.
        frames: (N, 3, H, W) letterboxed images.
        folder: For the teacher's model while it runs.
        copies: Altered copies of each image that is not held out.
        threads: Of each runtime.
        progress: Called with examples done and in total.

    Raises:
        CalibrationError: If there are too few images.
    """
    require_enough(len(frames))
    weights = SharedWeights.of(network.graph.nodes)
    write_weights(folder, weights)
    path = folder / "teacher.onnx"
    outputs = last_computable(network.graph)
    taught = replace(network.graph, outputs=outputs)
    needed = taught.ancestors(outputs)[1:]
    path.write_bytes(tail_model(taught, replace(whole, tail=needed), weights))
    teacher = open_model(path, threads=threads)
    head = open_model(head_model(network, tensors), threads=threads)
    held_out = frames[::HELD_OUT]
    total = len(held_out) + (len(frames) - len(held_out)) * (1 + copies)
    codes = [np.empty((total, *network.graph[name].shape), np.uint8) for name in tensors]
    maps = [np.empty((total, *network.graph[n].shape), np.float16) for n in outputs]
    for index, frame in enumerate(_altered(frames, copies)):
        pixels = frame[None]
        for kept, made in zip(codes, head.run({IMAGE: pixels}), strict=True):
            kept[index] = made[0]
        values = unit_range(pixels)
        for map_, made in zip(maps, teacher.run({IMAGE: values}), strict=True):
            map_[index] = np.clip(made[0], -60000, 60000)
        progress(index + 1, total)
    return Examples(dict(zip(tensors, codes, strict=True)), tuple(maps), len(held_out))


@dataclass(frozen=True, eq=False)
class Pairs:
    """Codes of M frames and of the frames before them, by tensor, (M, C, H, W) uint8 each."""

    codes: dict[str, NDArray[np.uint8]]
    before: dict[str, NDArray[np.uint8]]


def collect_pairs(
    network: QuantizedGraph,
    tensors: Sequence[str],
    frames: NDArray[np.uint8],
    *,
    threads: int,
    progress: Progress,
) -> Pairs:
    """Run the 8-bit heads over sequences of two frames, made of still images by a little motion.

    Half of them move by some pixels, as things or a carried camera do; half almost stand still.

    Args:
        network: The quantized network.
        tensors: Names of the tensors whose codes are kept.
        frames: (N, 3, H, W) letterboxed images; the held-out ones are left out.
        threads: Of the runtime.
        progress: Called with frames done and in total.
    """
    rng = np.random.default_rng(0)
    head = open_model(head_model(network, tensors), threads=threads)
    known = [frame for index, frame in enumerate(frames) if index % HELD_OUT]
    shots = [(now, move(now, rng)) for now in known]
    shots += [(move(now, rng), move(now, rng)) for now in known]
    codes, before = (
        {name: np.empty((len(shots), *network.graph[name].shape), np.uint8) for name in tensors}
        for _ in range(2)
    )
    for index, shot in enumerate(shots):
        for kept, pixels in zip((codes, before), shot, strict=True):
            for name, made in zip(tensors, head.run({IMAGE: pixels[None]}), strict=True):
                kept[name][index] = made[0]
        progress(index + 1, len(shots))
    return Pairs(codes, before)


def move(frame: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Simulate the frame (3, H, W) that a camera sees a moment earlier or later."""
    height, width = frame.shape[1:]
    shift, zoom = (4.0, 0.015) if rng.random() < 0.5 else (0.5, 0.002)
    right, down = rng.normal(0, shift, 2)
    scale = 1 + rng.normal(0, zoom)
    left, top = (1 - scale) * width / 2 + right, (1 - scale) * height / 2 + down
    picture = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))
    moved = picture.transform(
        picture.size,
        Image.Transform.AFFINE,
        (scale, 0, left, 0, scale, top),
        resample=Image.Resampling.BILINEAR,
    )
    lit = np.asarray(moved, np.float32) + rng.normal(0, _NOISE, (height, width, 3))
    lit = np.clip(lit + rng.normal(0, _FLICKER), 0, 255)
    return np.ascontiguousarray(np.rint(lit).astype(np.uint8).transpose(2, 0, 1))


def require_enough(images: int) -> None:
    """Require enough images to fit context models and tails.

    Raises:
        CalibrationError: If there are too few calibration images.
    """
    if images < MIN_FRAMES:
        raise CalibrationError(
            f"{images} calibration images: at least {MIN_FRAMES} are needed to fit context models "
            f"and adapt a tail, one in {HELD_OUT} of them to see whether that helps on images it "
            "did not learn from; 64 or more are better, and --refined-cuts 0 goes without"
        )


def copies_of(images: int) -> int:
    """Number of altered copies of each image, limited by time and memory."""
    return min(_MOST_COPIES, max(1, _MOST_EXAMPLES // images - 1))


def _altered(frames: NDArray[np.uint8], copies: int) -> Iterator[NDArray[np.uint8]]:
    """The held-out frames, the others, and the altered copies of the others."""
    rng = np.random.default_rng(0)
    yield from frames[::HELD_OUT]
    others = [frame for index, frame in enumerate(frames) if index % HELD_OUT]
    yield from others
    for copy in range(copies):
        for frame in others:
            # The first copy is the mirror image and nothing else.
            yield np.ascontiguousarray(frame[:, :, ::-1]) if copy == 0 else alter(frame, rng)


def alter(frame: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Augment a frame (3, H, W): random crop at full size, mirroring, contrast and brightness."""
    height, width = frame.shape[1:]
    scale, stretch = rng.uniform(_SMALLEST_CROP, 1.0), np.exp(rng.uniform(-_STRETCH, _STRETCH))
    tall = min(height, max(1, round(height * scale * stretch)))
    wide = min(width, max(1, round(width * scale / stretch)))
    top, left = rng.integers(0, height - tall + 1), rng.integers(0, width - wide + 1)
    part = frame[:, top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        part = part[:, :, ::-1]
    picture = Image.fromarray(np.ascontiguousarray(part.transpose(1, 2, 0)))
    scaled = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    gain, offset = rng.uniform(1 - _CONTRAST, 1 + _CONTRAST), rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    lit = np.clip((scaled - 128) * gain + 128 + offset, 0, 255)
    return np.ascontiguousarray(np.rint(lit).astype(np.uint8).transpose(2, 0, 1))
