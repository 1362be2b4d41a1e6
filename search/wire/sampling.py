"""Samples: the network's own codes on calibration images, and their size on the wire.

One run of the whole 8-bit network per image yields the codes of every tensor, because the grids do
not depend on the cut. Sizes and coding times are measured per tensor, with the codecs that will be
deployed; a cut of several tensors costs their sum.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from common.codec import Codec
from common.codec.quantizer import WireTable
from common.codec.spec import WireTensor
from common.imaging.images import unit_range
from common.runtime.registry import open_model
from search.network import execute
from search.network.graph import IMAGE, Graph
from search.quantization.export import head_model
from search.quantization.network import QuantizedGraph

# Coded to measure sizes and times; histograms are of all calibration images.
CODED_FRAMES = 8
_SAMPLED_FRAMES = 4


@dataclass(frozen=True)
class Samples:
    """Samples by tensor: `counts` (256,) over all images, `codes` (C, H, W) of a few images."""

    counts: dict[str, NDArray[np.int64]]
    codes: dict[str, list[NDArray[np.uint8]]]


@dataclass(frozen=True)
class Coded:
    """One tensor with one wire format: mean bytes, median coding times of one thread."""

    payload_bytes: float
    encode_ms: float
    decode_ms: float


def sample(
    network: QuantizedGraph,
    tensors: Sequence[str],
    frames: NDArray[np.uint8],
    progress: Callable[[int, int], None],
) -> Samples:
    """Run the 8-bit network on all frames and keep histograms, and the codes of some frames.

    Args:
        network: The quantized network.
        tensors: Names of tensors, not the image.
        frames: (N, 3, H, W) letterboxed images.
        progress: Called with frames done and in total.
    """
    counts = {name: np.zeros(256, np.int64) for name in tensors}
    codes: dict[str, list[NDArray[np.uint8]]] = {name: [] for name in (IMAGE, *tensors)}
    coded = set(np.linspace(0, len(frames) - 1, CODED_FRAMES).astype(int).tolist())
    model = open_model(head_model(network, tensors), threads=2) if tensors else None
    for index, frame in enumerate(frames):
        outputs = [] if model is None else model.run({IMAGE: frame[None]})
        for name, output in zip(tensors, outputs, strict=True):
            counts[name] += np.bincount(output.ravel(), minlength=256)
            if index in coded:
                codes[name].append(output[0])
        if index in coded:
            codes[IMAGE].append(frame)
        progress(index + 1, len(frames))
    return Samples(counts, codes)


def code(frames: Iterable[NDArray[np.uint8]], wire: WireTensor, codec: Codec) -> Coded:
    """Measure one wire format of one tensor on its codes (C, H, W) of some images."""
    table = WireTable(wire)
    sizes: list[int] = []
    encode: list[float] = []
    decode: list[float] = []
    for codes in frames:
        start = time.perf_counter()
        data = codec.encode(table.symbols(codes), wire.bits)
        encode.append(time.perf_counter() - start)
        start = time.perf_counter()
        table.values(codec.decode(data, wire.shape, wire.bits))
        decode.append(time.perf_counter() - start)
        sizes.append(len(data))
    return Coded(
        float(np.mean(sizes)), 1e3 * float(np.median(encode)), 1e3 * float(np.median(decode))
    )


def sample_values(
    graph: Graph, frames: NDArray[np.uint8], values: int = 100_000
) -> dict[str, NDArray[np.float32]]:
    """Some values of every tensor of the floating-point network on the first four images.

    Args:
        graph: The network.
        frames: (N, 3, H, W) letterboxed images.
        values: Drawn from each tensor at the most, seeded.
    """
    names = [node.name for node in graph.nodes[1:]]
    pixels = torch.from_numpy(unit_range(frames[:_SAMPLED_FRAMES]))
    tensors = execute.run(graph, {IMAGE: pixels}, names)
    rng = np.random.default_rng(0)
    sampled = {}
    for name, tensor in tensors.items():
        flat = tensor.numpy().ravel()
        sampled[name] = flat[rng.integers(0, flat.size, min(flat.size, values))]
    return sampled
