"""Screening: a rate-distortion estimate of which cuts are worth a search of wire formats.

    plain formats that are good -> the loss that an adapted tail may begin with
    coarse quantizers of each cut -> bytes at that loss -> cuts, the fastest first

Formats of plain widths say little of what a cut can do: two bits are too many for one tensor and
too few for another. Bytes are the order-0 entropy of each channel's symbols: more than a context
model takes, by about the same factor at every cut.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from common.codec.spec import WireTensor
from common.imaging.images import unit_range
from search.cache import Cache
from search.network.cuts import Cut
from search.network.execute import run
from search.network.graph import IMAGE
from search.network.losses import Loss
from search.network.operators.registry import last_computable
from search.prediction.candidates import Candidate, CostModel, rank_candidates
from search.prediction.cut_times import CutTimes
from search.quantization.heads import Heads
from search.wire.rate_curve import STEPS, Quantizers, symbols_of
from search.wire.tail_adaptation import ADAPTATION_GAIN, Wire, wire_error
from search.wire.training_data import Examples

# Beyond these, even half the bytes hardly ever make up for a slower head.
_CONTENDERS = 3
_IMAGES = 4
_DEAD_ZONE = 0.65
_USUAL_SHARE = 0.5

Affordable = Callable[[Candidate], bool]
"""Whether a candidate keeps the limits that need no accuracy."""


def _always(_candidate: Candidate) -> bool:
    return True


def promising(
    candidates: Sequence[Candidate],
    times: dict[str, CutTimes],
    cost_model: CostModel,
    is_affordable: Affordable = _always,
) -> list[Cut]:
    """Cuts by the latency of their good plain formats at half the bytes, the fastest first.

    Those that half the bytes would make affordable come before the others.
    """
    splits = [
        replace(c, payload_bytes=_USUAL_SHARE * c.payload_bytes)
        for c in candidates
        if c.cut.kind == "split"
    ]
    cuts = _by_latency(splits, times, cost_model, is_affordable)
    return list({cut.label: cut for cut in cuts}.values())


def screened(
    candidates: Sequence[Candidate],
    times: dict[str, CutTimes],
    cost_model: CostModel,
    screening: "Screening",
    is_affordable: Affordable = _always,
) -> list[Cut]:
    """Reorder the first cuts of `promising` by their latency at equal loss.

    Args:
        candidates: Good ones, some of each cut.
        times: Latency table of the cuts.
        cost_model: Devices and link.
        screening: Estimates bytes.
        is_affordable: Whether a candidate keeps the limits that need no accuracy.
    """
    cuts = promising(candidates, times, cost_model, is_affordable)
    contenders = cuts[:_CONTENDERS]
    smallest = [
        min((c for c in candidates if c.cut.label == cut.label), key=lambda c: c.payload_bytes)
        for cut in contenders
    ]
    # Codes are of 8-bit heads: of a low-bit one, only the plain formats are known.
    losses = [screening.error(c.cut, c.wire) for c in smallest if not c.cut.widths]
    if len(losses) < 2:
        return cuts
    allowed = ADAPTATION_GAIN * max(losses)
    refined = [
        replace(
            c,
            payload_bytes=_USUAL_SHARE * c.payload_bytes
            if c.cut.widths
            else screening.bytes_at(c.cut, allowed),
        )
        for c in smallest
    ]
    return _by_latency(refined, times, cost_model, is_affordable) + cuts[_CONTENDERS:]


def _by_latency(
    candidates: Sequence[Candidate],
    times: dict[str, CutTimes],
    cost_model: CostModel,
    is_affordable: Affordable,
) -> list[Cut]:
    """Cuts of candidates, the affordable ones first, then by latency."""
    fastest = [j.candidate for j in rank_candidates(candidates, times, cost_model)]
    return [each.cut for each in sorted(fastest, key=lambda each: not is_affordable(each))]


class Screening:
    """Loss and bytes of coarse formats on a few calibration images.

    Args:
        heads: The integer networks.
        codes: By tensor, the image among them, (C, H, W) of each image.
        loss: Loss of a tail's maps against those of the floating-point network.
        cache: For losses and bytes.
        origin: Digest of the network and the calibration images.
    """

    def __init__(
        self,
        heads: Heads,
        codes: Mapping[str, Sequence[NDArray[np.uint8]]],
        loss: Loss,
        cache: Cache,
        origin: str,
    ) -> None:
        self._heads = heads
        self._network = heads.network
        self._codes = {name: np.stack(each[:_IMAGES]) for name, each in codes.items() if each}
        self._loss = loss
        self._cache = cache
        self._origin = origin

    def codes(self, name: str) -> NDArray[np.uint8]:
        """(N, C, H, W) codes of a tensor."""
        return self._codes[name]

    def error(self, cut: Cut, wire: Wire) -> float:
        """Loss of the unadapted tail behind a wire format."""
        inputs = [self._origin, self._heads.digest(cut), wire]
        return float(self._cache.json("screened-loss", inputs, lambda: self._error(cut, wire)))

    def bytes_at(self, cut: Cut, allowed: float) -> float:
        """Bytes of the coarsest format whose loss is at most `allowed`, interpolated between steps.

        If even the finest step loses more, its bytes.
        """
        inputs = [self._origin, self._heads.digest(cut), allowed]
        made = self._cache.json("screened-bytes", inputs, lambda: self._bytes_at(cut, allowed))
        return float(made)

    @cached_property
    def _examples(self) -> Examples:
        outputs = last_computable(self._network.graph)
        pixels = torch.from_numpy(unit_range(self._codes[IMAGE]))
        maps = run(self._network.graph, {IMAGE: pixels}, outputs)
        teacher = tuple(maps[name].numpy().astype(np.float16) for name in outputs)
        return Examples(self._codes, teacher, len(pixels))

    def _error(self, cut: Cut, wire: Wire) -> float:
        return wire_error(
            last_computable(self._network.graph), cut, wire, self._examples, self._loss
        )

    def _bytes_at(self, cut: Cut, allowed: float) -> float:
        quantizers = {
            name: Quantizers(self._network, name, self.codes(name)) for name in cut.tensors
        }
        coarser: tuple[float, float] | None = None
        sent: float = 0.0
        for step in reversed(STEPS):
            wire = tuple(quantizers[name].at(step, _DEAD_ZONE, np.inf) for name in cut.tensors)
            error, sent = self._error(cut, wire), sum(map(self._entropy_bytes, wire))
            if error <= allowed:
                return _between((error, sent), coarser or (error, sent), allowed)
            coarser = error, sent
        return sent

    def _entropy_bytes(self, tensor: WireTensor) -> float:
        symbols = symbols_of(tensor, self.codes(tensor.name))
        images, channels = symbols.shape[:2]
        levels = 1 << tensor.bits
        cells = symbols.astype(np.int64) + levels * np.arange(channels)[:, None, None]
        counts = np.bincount(cells.ravel(), minlength=channels * levels).reshape(channels, levels)
        shares = counts / counts.sum(1, keepdims=True)
        bits = -(counts * np.log2(np.where(counts, shares, 1))).sum()
        return float(bits / (8 * images))


def _between(finer: tuple[float, float], coarser: tuple[float, float], allowed: float) -> float:
    """Interpolate bytes at a loss between two points (loss, bytes), linear in the log of loss."""
    if coarser[0] <= finer[0]:
        return finer[1]
    share = math.log(allowed / finer[0]) / math.log(coarser[0] / finer[0])
    return finer[1] + share * (coarser[1] - finer[1])
