"""A plan opened on both sides, and the bare runtime, for `bench.micro.parts` to time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle, open_codecs
from common.bundle.manifest import Plan, Tail
from common.bundle.packed_weights import unpack_weights
from common.codec import check
from common.codec.quantizer import WireTable
from common.errors import SplitpointError
from common.rpc import splitpoint_pb2 as pb
from common.runtime.base import NO_WEIGHTS, Array
from common.runtime.onnx_runtime import OnnxRuntime
from edge.head import INPUT, EdgePlan, open_plans


class Opened:
    """One plan with a tail, opened on both sides, and one picture on its way through it.

    Args:
        bundle: The bundle.
        digest: Digest of the plan.
        picture: (H, W, 3) RGB.

    Attributes:
        codes: Output codes of the head, (C, H, W) uint8 each; the pixels without a head.
    """

    def __init__(self, bundle: Bundle, digest: bytes, picture: NDArray[np.uint8]) -> None:
        self.plan = plan = bundle.plan(digest)
        self.tail_file = bundle.file(_tail(plan).file)
        self.task = task = bundle.manifest.task
        self.edge: EdgePlan = open_plans(bundle, [digest])[digest]
        self.codecs = open_codecs(bundle, plan)
        self.tables = [WireTable(tensor) for tensor in plan.wire]
        self.size = task.image.size
        self.where = task.image.place(picture.shape[1], picture.shape[0])
        self.frame = task.image.pixels(picture)
        self.bare_head = _bare_head(bundle, plan)
        self.codes: list[NDArray[np.uint8]] = [self.frame]
        if self.bare_head is not None:
            outputs = self.bare_head.session.run(None, {INPUT: self.frame[None]})
            self.codes = [output[0] for output in outputs]

    def symbols(self) -> list[NDArray[np.uint8]]:
        """Symbols of the codes, as they travel."""
        return [table.symbols(code) for table, code in zip(self.tables, self.codes, strict=True)]

    def encode(self) -> list[pb.Payload]:
        """Encode the codes like `EdgePlan.cut` does behind the head."""
        return self.edge.encode(self.symbols())

    def decode(self, payloads: Sequence[pb.Payload]) -> list[NDArray[np.float32]]:
        """Decode payloads like `TailRunner.finish` does before the tail."""
        values = []
        parts = zip(payloads, self.plan.wire, self.codecs, self.tables, strict=True)
        for payload, wire, codec, table in parts:
            check(payload.data, payload.crc32)
            values.append(table.values(codec.decode(payload.data, wire.shape, wire.bits)))
        return values

    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """Inputs of the tail, (1, C, H, W) each."""
        values = [table.values(s) for table, s in zip(self.tables, self.symbols(), strict=True)]
        return {wire.name: v[None] for wire, v in zip(self.plan.wire, values, strict=True)}


class Bare:
    """ONNX Runtime's own session, without our wrapper: one thread, the same options.

    Args:
        source: The model.
        weights: External initialisers by name.
    """

    def __init__(self, source: Path, weights: Mapping[str, Array] = NO_WEIGHTS) -> None:
        self._opened = OnnxRuntime().open(source, weights=weights)  # holds the weights
        self.session = self._opened.bare

    def run_ms(self, inputs: Mapping[str, Array]) -> float:
        """Time of one run."""
        started_s = perf_counter()
        self.session.run(None, inputs)
        return (perf_counter() - started_s) * 1e3


def _bare_head(bundle: Bundle, plan: Plan) -> Bare | None:
    head = plan.head
    if head is None:
        return None
    weights: Mapping[str, Array] = {}
    if head.weights is not None:
        weights = unpack_weights(bundle.file(head.weights).read_bytes(), head.weights)
    return Bare(bundle.file(head.file), weights)


def _tail(plan: Plan) -> Tail:
    if plan.tail is None:
        raise SplitpointError(f"plan {plan.name} has no tail")
    return plan.tail
