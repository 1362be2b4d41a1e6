"""The cloud's half of a plan: from a frame's payloads to the result of the bundle's task.

    payloads -> count, CRC-32 -> codec -> table look-up -> tail -> Task.decode -> TaskResult

What arrives is checked against the plan, never against what it says of itself. Tails with the same
file are opened once: plans that differ only in bit widths or wire format share one session.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle, open_codecs
from common.bundle.manifest import Plan, Tail
from common.codec import Codec, ContextCoded, check
from common.codec.quantizer import WireTable
from common.codec.spec import LOSSLESS_UPLOADS
from common.errors import PayloadError, UnknownPlanError
from common.imaging.images import MAX_SIDE_PIXELS
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.runtime.base import Session
from common.runtime.registry import DEFAULT_RUNTIME, open_model
from common.tasks.base import DEFAULTS, ResultSettings, Task, TaskResult

Symbols = NDArray[np.uint8]


@dataclass(frozen=True)
class Finished:
    """Outcome of one frame: the task's result, symbols, and latency of each stage.

    `symbols` are what the payloads held, (C, H, W) each.
    """

    result: TaskResult
    symbols: Sequence[Symbols]
    decode_ms: float
    tail_ms: float
    postprocess_ms: float


class TailRunner:
    """Finishes the frames of one plan; may be called from several threads at once.

    Args:
        plan: A plan with a tail.
        digest: The plan's digest.
        task: Of the bundle.
        codecs: One per wire tensor.
        model: The opened tail.
    """

    def __init__(
        self,
        plan: Plan,
        digest: bytes,
        task: Task,
        codecs: Sequence[Codec],
        model: Session,
    ) -> None:
        self.plan = plan
        self.digest = digest
        self._task = task
        self._model = model
        self._codecs = codecs
        self._tables = [WireTable(tensor) for tensor in plan.wire]

    def finish(self, frame: pb.Frame, previous: Sequence[Symbols] | None = None) -> Finished:
        """Finish a frame as it came over the wire.

        Args:
            frame: Names this plan.
            previous: Symbols of the frame that it looks back at, if it does.

        Raises:
            PayloadError: If its payloads, image size or settings cannot be.
        """
        started_s = time.perf_counter()
        settings = ResultSettings.from_frame(frame)
        where = self._place(frame.image_width, frame.image_height)
        symbols = self._decode(frame.payloads, previous)
        return self.run(symbols, where, settings, started_s=started_s)

    def run(
        self,
        symbols: Sequence[Symbols],
        where: Placement,
        settings: ResultSettings = DEFAULTS,
        *,
        started_s: float | None = None,
    ) -> Finished:
        """Dequantize, run the tail and decode its outputs.

        Args:
            symbols: One (C, H, W) tensor of symbols per wire tensor.
            where: Where the image lies in the network's input.
            settings: What to report.
            started_s: When decoding began, in seconds of `time.perf_counter`; now, if None.
        """
        started_s = time.perf_counter() if started_s is None else started_s
        names = [tensor.name for tensor in self.plan.wire]
        values = self.values(symbols)
        inputs = {name: value[None] for name, value in zip(names, values, strict=True)}
        decoded_s = time.perf_counter()
        outputs = [batch[0] for batch in self._model.run(inputs)]
        ran_s = time.perf_counter()
        result = self._task.decode(outputs, where, settings)
        done_s = time.perf_counter()
        return Finished(
            result=result,
            symbols=symbols,
            decode_ms=(decoded_s - started_s) * 1000,
            tail_ms=(ran_s - decoded_s) * 1000,
            postprocess_ms=(done_s - ran_s) * 1000,
        )

    def values(self, symbols: Sequence[Symbols]) -> list[NDArray[np.float32]]:
        """Dequantize symbols: one (C, H, W) tensor per wire tensor, as the tail takes them."""
        return [table.values(s) for table, s in zip(self._tables, symbols, strict=True)]

    def symbols(self, codes: Sequence[NDArray[np.uint8]]) -> list[Symbols]:
        """Quantize, as an edge would: of a cloud-only plan, the pixels."""
        return [table.symbols(c) for table, c in zip(self._tables, codes, strict=True)]

    def warm_up(self) -> None:
        """Run once, so that no frame pays for the first inference."""
        symbols = [np.zeros(tensor.shape, np.uint8) for tensor in self.plan.wire]
        self.run(symbols, self._place(self._task.image.width, self._task.image.height))

    def _decode(
        self, payloads: Sequence[pb.Payload], previous: Sequence[Symbols] | None
    ) -> list[Symbols]:
        if len(payloads) != len(self.plan.wire):
            raise PayloadError(
                f"plan {self.plan.name}: expected {len(self.plan.wire)} payloads, "
                f"got {len(payloads)}"
            )
        symbols = []
        for index, (tensor, codec) in enumerate(zip(self.plan.wire, self._codecs, strict=True)):
            data = payloads[index].data
            check(data, payloads[index].crc32)
            if previous is not None and isinstance(codec, ContextCoded):
                known = previous[index]
                symbols.append(codec.decode_after(data, tensor.shape, tensor.bits, known))
            else:
                symbols.append(codec.decode(data, tensor.shape, tensor.bits))
        return symbols

    def _place(self, width: int, height: int) -> Placement:
        if not (1 <= width <= MAX_SIDE_PIXELS and 1 <= height <= MAX_SIDE_PIXELS):
            raise PayloadError(
                f"image size {width}x{height}: expected 1 to {MAX_SIDE_PIXELS} pixels a side"
            )
        return self._task.image.place(width, height)


class Tails:
    """The tails of a bundle, by plan digest.

    Args:
        bundle: The opened bundle.
        threads: Threads within one inference.
        runtime: Name of the runtime of tails.
        workers: Inferences that are wanted at once.

    Raises:
        SettingsError: If there is no such runtime here.
        BundleError: If a context model cannot be used.
        ModelError: If a tail cannot be opened.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
        workers: int = 1,
    ) -> None:
        self.bundle = bundle
        self._open = partial(open_model, threads=threads, parallel_runs=workers, runtime=runtime)
        self._models: dict[tuple[str, ...], Session] = {}
        self._runners = {
            digest: TailRunner(
                plan,
                digest,
                bundle.manifest.task,
                open_codecs(bundle, plan),
                self._model(plan.tail),
            )
            for digest, plan in bundle.plans.items()
            if plan.tail is not None
        }
        self._ready = False

    @property
    def bundle_digest(self) -> bytes:
        """SHA-256 of the bundle's manifest."""
        return self.bundle.digest

    @property
    def digests(self) -> tuple[bytes, ...]:
        """Digests of the plans that have a tail, in the bundle's order."""
        return tuple(self._runners)

    @property
    def ready(self) -> bool:
        """Whether every tail has run once."""
        return self._ready

    @property
    def opened(self) -> int:
        """Number of models that were opened; plans with the same tail share one."""
        return len(self._models)

    def warm_up(self) -> None:
        """Run every tail once."""
        for runner in self._runners.values():
            runner.warm_up()
        self._ready = True

    def runner(self, digest: bytes) -> TailRunner:
        """The runner of a plan.

        Raises:
            UnknownPlanError: If no plan with a tail has this digest.
        """
        runner = self._runners.get(digest)
        if runner is None:
            raise UnknownPlanError(f"no tail for plan {digest.hex()[:12]} in this cloud's bundle")
        return runner

    def image_runner(self) -> TailRunner:
        """The runner whose tail is the whole network, of a lossless plan if there is one.

        Raises:
            UnknownPlanError: If the bundle has no cloud-only plan.
        """
        whole = [r for r in self._runners.values() if r.plan.kind == "cloud-only"]
        if whole:
            return next((r for r in whole if r.plan.codec in LOSSLESS_UPLOADS), whole[0])
        raise UnknownPlanError(
            "this bundle has no cloud-only plan, so the cloud cannot take whole images: "
            "send them to an edge, or add such a plan"
        )

    @property
    def task(self) -> Task:
        """The bundle's task."""
        return self.bundle.manifest.task

    def check_report(self, digest: bytes) -> None:
        """Require an edge-only plan of the bundle.

        Raises:
            UnknownPlanError: If no edge-only plan has this digest.
        """
        plan = self.bundle.plans.get(digest)
        if plan is None or plan.kind != "edge-only":
            raise UnknownPlanError(f"no edge-only plan {digest.hex()[:12]} in this cloud's bundle")

    def _model(self, tail: Tail) -> Session:
        files = self.bundle.manifest.files
        key = tuple(files[name].sha256 for name in (tail.file, *tail.files))
        if key not in self._models:
            self._models[key] = self._open(self.bundle.file(tail.file))
        return self._models[key]
