"""A cache in front of a refiner: the refiner computes only what the cache does not hold.

Collecting examples, fitting contexts and adapting tails take most of a search's time; nothing of
them depends on more than a cut's head, the calibration images and a few settings.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from common.codec import ContextModel
from common.codec.spec import CodecSpec, WireTensor
from search.cache import Arrays, Cache
from search.measure.latency import timing_place
from search.network.cuts import Cut
from search.prediction.candidates import Candidate
from search.quantization.heads import Heads
from search.refine.refine import Refiner
from search.wire.rate_curve import RateCurve, RatePoint
from search.wire.tail_adaptation import Wire


class CachedRefiner:
    """Caches a refiner's curves, options and adapted tails.

    Args:
        make: Makes the refiner when it is needed.
        heads: The integer networks.
        cache: Where results are kept.
        inputs: Everything that results depend on beside the cut; neither link nor device.
    """

    def __init__(
        self,
        make: Callable[[], Refiner],
        heads: Heads,
        cache: Cache,
        inputs: Sequence[Any],
    ) -> None:
        self._make = make
        self._heads = heads
        self._cache = cache
        self._inputs = inputs

    @cached_property
    def _refiner(self) -> Refiner:
        return self._make()

    def curve(self, cut: Cut) -> RateCurve:
        """Cached `Refiner.curve`."""
        inputs = [self._inputs, self._heads.digest(cut)]
        arrays = self._cache.arrays(
            "curve", inputs, lambda: _curve_to_arrays(self._refiner.curve(cut))
        )
        return _curve_from_arrays(arrays)

    def options(self, cut: Cut, curve: RateCurve, wire: Wire) -> tuple[Candidate, ...]:
        """Cached `Refiner.options`; coding times are cached for each machine."""
        inputs = [self._inputs, self._heads.digest(cut), wire, timing_place()]
        arrays = self._cache.arrays(
            "options",
            inputs,
            lambda: _options_to_arrays(self._refiner.options(cut, curve, wire)),
        )
        return _options_from_arrays(arrays, cut, wire)

    def adapted(self, cut: Cut, wire: Wire, label: str) -> Cut:
        """Cached `Refiner.adapted`."""
        inputs = [self._inputs, self._heads.digest(cut), wire]
        weights = self._cache.arrays(
            "tail", inputs, lambda: _tail_to_arrays(self._refiner.adapted(cut, wire, label))
        )
        return _tail_from_arrays(weights, cut, label) if weights else cut


class _CachedRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class _PointRecord(_CachedRecord):
    step: float
    dead_zone: float
    clip: float
    wire: tuple[WireTensor, ...]
    payload_bytes: float
    error: float


class _CurveRecord(_CachedRecord):
    points: tuple[_PointRecord, ...]
    contexts: int


class _OptionRecord(_CachedRecord):
    codec: CodecSpec
    payload_bytes: float
    encode_ms: float
    decode_ms: float
    weight_bytes: int
    activation_bytes: int
    label: str
    contexts: int
    contexts_after: int


class _OptionsRecord(_CachedRecord):
    options: tuple[_OptionRecord, ...]


_POINT_FIELDS = tuple(_PointRecord.model_fields)
_OPTION_FIELDS = (
    "codec",
    "payload_bytes",
    "encode_ms",
    "decode_ms",
    "weight_bytes",
    "activation_bytes",
    "label",
)


def _curve_to_arrays(curve: RateCurve) -> Arrays:
    points = tuple(
        _PointRecord(**{name: getattr(point, name) for name in _POINT_FIELDS})
        for point in curve.points
    )
    record = _CurveRecord(points=points, contexts=len(curve.contexts))
    return {"record": _text(record), **_models("context", curve.contexts)}


def _curve_from_arrays(arrays: Arrays) -> RateCurve:
    record = _CurveRecord.model_validate_json(arrays["record"].tobytes())
    points = tuple(
        RatePoint(**{name: getattr(point, name) for name in _POINT_FIELDS})
        for point in record.points
    )
    return RateCurve(points, _contexts(arrays, "context", record.contexts))


def _options_to_arrays(options: Sequence[Candidate]) -> Arrays:
    record = _OptionsRecord(
        options=tuple(
            _OptionRecord(
                **{name: getattr(option, name) for name in _OPTION_FIELDS},
                contexts=len(option.contexts),
                contexts_after=len(option.contexts_after),
            )
            for option in options
        ),
    )
    models: dict[str, NDArray[np.uint8]] = {}
    for option in options:
        models |= _models("context", option.contexts) | _models("after", option.contexts_after)
    return {"record": _text(record), **models}


def _options_from_arrays(
    arrays: Arrays, cut: Cut, wire: tuple[WireTensor, ...]
) -> tuple[Candidate, ...]:
    record = _OptionsRecord.model_validate_json(arrays["record"].tobytes())
    return tuple(
        Candidate(
            cut=cut,
            wire=wire,
            contexts=_contexts(arrays, "context", option.contexts),
            contexts_after=_contexts(arrays, "after", option.contexts_after),
            **{name: getattr(option, name) for name in _OPTION_FIELDS},
        )
        for option in record.options
    )


def _tail_to_arrays(cut: Cut) -> Arrays:
    """Weights of an adapted tail; empty for an unadapted one."""
    return {
        f"{part}:{node.name}": array
        for node in (cut.tail if cut.adapted_to else ())
        for part, array in (("weight", node.weight), ("bias", node.bias))
        if array is not None
    }


def _tail_from_arrays(weights: Arrays, cut: Cut, label: str) -> Cut:
    tail = tuple(
        replace(
            node,
            weight=weights.get(f"weight:{node.name}", node.weight),
            bias=weights.get(f"bias:{node.name}", node.bias),
        )
        for node in cut.tail
    )
    return replace(cut, tail=tail, adapted_to=label)


def _text(record: BaseModel) -> NDArray[np.uint8]:
    return np.frombuffer(record.model_dump_json().encode(), np.uint8)


def _models(kind: str, models: Sequence[ContextModel]) -> dict[str, NDArray[np.uint8]]:
    return {
        f"{kind}:{index}": np.frombuffer(model.to_bytes(), np.uint8)
        for index, model in enumerate(models)
    }


def _contexts(arrays: Arrays, kind: str, count: int) -> tuple[ContextModel, ...]:
    return tuple(
        ContextModel.from_bytes(arrays[f"{kind}:{index}"].tobytes(), "the cache")
        for index in range(count)
    )
