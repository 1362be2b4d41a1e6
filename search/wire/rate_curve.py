"""Rate curves: the wire quantizers of a cut, searched on a continuous scale.

A point is a quantizer: a step and a clip point in units of each tensor's root mean square, and a
dead zone in steps. Its rate is the bytes of the context coder on held-out images, its error the
loss of the unadapted tail there. The curve is made of the points that minimise
rate + lambda x error for some lambda (rate-distortion).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.codec import ContextModel
from common.codec.context import ContextCoded
from common.codec.context_model import MAX_MAGNITUDE
from common.codec.quantizer import WireTable
from common.codec.spec import WireTensor
from search.network.cuts import Cut
from search.network.losses import Loss
from search.network.operators.registry import last_computable
from search.quantization.network import QuantizedGraph
from search.wire.context_fitting import counted, fit_context, magnitudes_of
from search.wire.quantizers import stepped_tensor
from search.wire.tail_adaptation import Wire, wire_error
from search.wire.training_data import Examples

Progress = Callable[[int, int], None]

# Steps in root mean squares of a tensor, from nearly lossless to nothing being detected any more.
STEPS = tuple(np.geomspace(0.25, 6.0, 11).tolist())
DEAD_ZONES = (0.5, 0.35, 0.65, 0.8)
CLIPS = (float("inf"), 4.0)
_BASE_STEP = 2.5
_COUNTED_FRAMES = 16


@dataclass(frozen=True, eq=False)
class RatePoint:
    """One wire format of a cut.

    Attributes:
        step: In root mean squares of the tensor.
        dead_zone: In steps.
        clip: In root mean squares of the tensor.
        wire: The quantizers.
        payload_bytes: Mean over held-out images, by a context coder shared by all points.
        error: Loss of the unadapted tail on held-out images.
    """

    step: float
    dead_zone: float
    clip: float
    wire: Wire
    payload_bytes: float
    error: float


@dataclass(frozen=True, eq=False)
class RateCurve:
    """The best wire formats of a cut.

    Attributes:
        points: Fewest bytes first.
        contexts: A model of each tensor behind a middling quantizer, to begin others with.
    """

    points: tuple[RatePoint, ...]
    contexts: tuple[ContextModel, ...]


def rate_curve(
    network: QuantizedGraph,
    cut: Cut,
    examples: Examples,
    loss: Loss,
    *,
    context_steps: int,
    progress: Progress,
) -> RateCurve:
    """Search the wire formats of a cut.

    Args:
        network: The quantized network.
        cut: A split.
        examples: With codes of the cut's tensors.
        loss: Of the tail's maps.
        context_steps: Of fitting the context models that all points are measured with.
        progress: Called with points done and in total.
    """
    coders = {name: _TensorCoder(network, name, examples, context_steps) for name in cut.tensors}
    total = len(STEPS) * (1 + len(DEAD_ZONES[1:]) + len(CLIPS[1:]))
    points: list[RatePoint] = []

    def measure(step: float, dead_zone: float, clip: float) -> None:
        wire = tuple(coders[name].quantizers.at(step, dead_zone, clip) for name in cut.tensors)
        sent = sum(coders[tensor.name].payload_bytes(tensor) for tensor in wire)
        error = wire_error(last_computable(network.graph), cut, wire, examples, loss)
        points.append(RatePoint(step, dead_zone, clip, wire, sent, error))
        progress(len(points), total)

    for step in STEPS:
        measure(step, DEAD_ZONES[0], CLIPS[0])
    for point in lower_hull(points):
        for dead_zone in DEAD_ZONES[1:]:
            measure(point.step, dead_zone, CLIPS[0])
        for clip in CLIPS[1:]:
            measure(point.step, DEAD_ZONES[0], clip)
    progress(total, total)
    contexts = tuple(coder.model for coder in coders.values())
    return RateCurve(tuple(lower_hull(points)), contexts)


def lower_hull(points: Sequence[RatePoint]) -> list[RatePoint]:
    """Points that minimise bytes + lambda x error for some lambda >= 0, fewest bytes first."""
    hull: list[RatePoint] = []
    for point in sorted(points, key=lambda p: (p.payload_bytes, p.error)):
        while len(hull) >= 2 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return [p for k, p in enumerate(hull) if k == 0 or p.error < hull[k - 1].error]


def _turn(a: RatePoint, b: RatePoint, c: RatePoint) -> float:
    """Cross product of two edges: above zero if b lies below the line from a to c."""
    return (b.payload_bytes - a.payload_bytes) * (c.error - a.error) - (b.error - a.error) * (
        c.payload_bytes - a.payload_bytes
    )


def symbols_of(tensor: WireTensor, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, C, H, W) symbols of codes."""
    return np.array(tensor.to_symbol, np.uint8)[codes]


class Quantizers:
    """Wire quantizers of one tensor, in units of its root mean square.

    Args:
        network: The quantized network.
        name: Of the tensor.
        codes: (N, C, H, W) of N images.
    """

    def __init__(self, network: QuantizedGraph, name: str, codes: NDArray[np.uint8]) -> None:
        self._node = network.graph[name]
        self._grid = network.grids[name]
        self._counts = np.bincount(codes.ravel(), minlength=256)
        values = self._grid.dequantize(np.arange(256).astype(np.uint8)).astype(np.float64)
        self._unit = float(np.sqrt(np.average(values**2, weights=self._counts)))

    def at(self, step: float, dead_zone: float, clip: float) -> WireTensor:
        """The quantizer of a step and a clip point in root mean squares, a dead zone in steps."""
        return stepped_tensor(
            self._node,
            self._grid,
            self._counts,
            dead_zone=dead_zone * step * self._unit,
            step=step * self._unit,
            clip=clip * self._unit,
        )


class _TensorCoder:
    """Rates of many quantizers of one tensor, by one set of context weights and new tables each.

    Fitting weights takes a minute, counting tables a second; with the weights of a middling step
    the others take 3 to 7 % more bytes than with their own.
    """

    def __init__(
        self, network: QuantizedGraph, name: str, examples: Examples, context_steps: int
    ) -> None:
        codes = examples.codes[name]
        self._held_out, self._known = codes[: examples.held_out], codes[examples.held_out :]
        self.quantizers = Quantizers(network, name, self._known)
        base = self.quantizers.at(_BASE_STEP, DEAD_ZONES[0], CLIPS[0])
        self.model = fit_context(
            symbols_of(base, self._known), 1 << base.bits, most_steps=context_steps
        )

    def payload_bytes(self, tensor: WireTensor) -> float:
        known = symbols_of(tensor, self._known[:_COUNTED_FRAMES])
        counts = np.bincount(known.ravel(), minlength=1 << tensor.bits)
        magnitudes = np.minimum(magnitudes_of(counts), MAX_MAGNITUDE)
        model = counted(self.model.for_symbols(magnitudes), known)
        codec, table = ContextCoded(model), WireTable(tensor)
        sizes = [len(codec.encode(table.symbols(c), tensor.bits)) for c in self._held_out]
        return float(np.mean(sizes))
