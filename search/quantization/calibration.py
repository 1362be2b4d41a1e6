"""Calibration: how every tensor of the network is distributed on real images.

Two passes of the floating-point network: the first finds each tensor's range, the second its
histogram over that range. A convolution with a fused activation is observed twice, before and
after.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from common.errors import CalibrationError
from common.imaging.images import unit_range
from search.network import execute
from search.network.graph import Graph, Node
from search.network.operators.registry import computable_nodes

BINS = 2048


@dataclass(frozen=True, eq=False)
class Distribution:
    """Histogram of one tensor: `counts` over equal bins of [low, high]."""

    low: float
    high: float
    counts: NDArray[np.float64]

    @property
    def centres(self) -> NDArray[np.float64]:
        """Middle of each bin."""
        width = (self.high - self.low) / len(self.counts)
        return np.asarray(self.low + width * (np.arange(len(self.counts)) + 0.5), np.float64)

    @property
    def mean(self) -> float:
        """Mean of all values, to the width of a bin."""
        return float(np.dot(self.counts, self.centres) / self.counts.sum())

    @property
    def std(self) -> float:
        """Standard deviation, to the width of a bin."""
        squared = np.dot(self.counts, (self.centres - self.mean) ** 2) / self.counts.sum()
        return float(np.sqrt(squared))


@dataclass(frozen=True)
class Statistics:
    """Distributions by tensor, `before` the fused activation (if there is one) and `after` it."""

    before: dict[str, Distribution]
    after: dict[str, Distribution]

    def to_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Convert to arrays for the cache: low, high and counts of each distribution."""
        return {
            f"{side}:{name}": np.concatenate([[each.low, each.high], each.counts])
            for side, table in (("before", self.before), ("after", self.after))
            for name, each in table.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> "Statistics":
        """Restore the statistics from the arrays of `to_arrays`."""
        sides: dict[str, dict[str, Distribution]] = {"before": {}, "after": {}}
        for key, values in arrays.items():
            side, _, name = key.partition(":")
            sides[side][name] = Distribution(float(values[0]), float(values[1]), values[2:])
        return cls(sides["before"], sides["after"])


def observe(
    graph: Graph,
    frames: NDArray[np.uint8],
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Statistics:
    """Observe all tensors of a network.

    Args:
        graph: The network.
        frames: (N, 3, H, W) letterboxed images.
        progress: Called with frames done and frames in all, two passes counted.

    Raises:
        CalibrationError: If there are no frames, or a tensor is not finite or constant.
    """
    if len(frames) == 0:
        raise CalibrationError("no calibration images: give a folder with at least 8")
    total = 2 * len(frames)
    ranges: dict[tuple[str, bool], tuple[float, float]] = {}
    for done, batch in enumerate(_batches(frames), 1):
        for key, tensor in _tensors(graph, batch):
            low, high = (float(v) for v in torch.aminmax(tensor))
            if not np.isfinite([low, high]).all():
                raise CalibrationError(f"{key[0]} is not finite on a calibration image")
            known = ranges.get(key, (low, high))
            ranges[key] = (min(low, known[0]), max(high, known[1]))
        progress(done, total)
    for (name, _), (low, high) in ranges.items():
        if low == high:
            raise CalibrationError(f"{name} is constant ({low:g}) on all calibration images")

    counts = {key: np.zeros(BINS) for key in ranges}
    for done, batch in enumerate(_batches(frames), 1):
        for key, tensor in _tensors(graph, batch):
            low, high = ranges[key]
            counts[key] += torch.histc(tensor, BINS, low, high).double().numpy()
        progress(len(frames) + done, total)
    found = {key: Distribution(*ranges[key], counts[key]) for key in ranges}
    return Statistics(
        before={name: value for (name, fused), value in found.items() if not fused},
        after={name: value for (name, fused), value in found.items() if fused},
    )


def _batches(frames: NDArray[np.uint8]) -> Iterator[torch.Tensor]:
    for frame in frames:
        yield torch.from_numpy(unit_range(frame[None]))


def _tensors(graph: Graph, image: torch.Tensor) -> Iterator[tuple[tuple[str, bool], torch.Tensor]]:
    """Every tensor as ((name, after activation), value), freed as soon as its readers are done."""
    values = {graph.nodes[0].name: image}
    waiting = {name: set(readers) for name, readers in graph.consumers.items()}
    with torch.inference_mode():
        for node in computable_nodes(graph)[1:]:
            inputs = [values[name] for name in node.inputs]
            if node.activation is not None:
                linear = execute.apply(_linear(node), inputs)
                yield (node.name, False), linear
                values[node.name] = node.activate(linear)
            else:
                values[node.name] = execute.apply(node, inputs)
            yield (node.name, True), values[node.name]
            _release(node.inputs, node.name, values, waiting)


def _linear(node: Node) -> Node:
    return replace(node, activation=None)


def _release(
    inputs: Sequence[str],
    reader: str,
    values: dict[str, torch.Tensor],
    waiting: dict[str, set[str]],
) -> None:
    for name in set(inputs):
        waiting[name].discard(reader)
        if not waiting[name]:
            values.pop(name, None)
