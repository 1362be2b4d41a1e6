"""The edge's half of a plan: from the fitted frame to payloads, or to a result.

    split       frame -> head -> table look-up -> codec -> payloads
    cloud-only  frame ---------> table look-up -> codec -> payload
    edge-only   frame -> head -> (q - zero point) x scale -> rest -> Task.decode -> TaskResult

A head is opened only if this machine's runtime reproduces the reference in the bundle: a CPU whose
8-bit products saturate must be found before it serves, not by its results.
"""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle, open_codecs, read_vector
from common.bundle.manifest import Head, Plan, Tail
from common.bundle.packed_weights import unpack_weights
from common.codec import Codec, ContextCoded, seal
from common.codec.quantizer import WireTable
from common.errors import ParityError, SettingsError
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.runtime.base import Session
from common.runtime.parity import check_parity
from common.runtime.registry import DEFAULT_RUNTIME, open_model
from common.tasks.base import ImageInput, ResultSettings, Task, TaskResult

_LOG = logging.getLogger("splitpoint.edge")

INPUT = "image"


@dataclass(frozen=True)
class EncodedFrame:
    """A frame after the head: the encoded wire tensors of the cut.

    Attributes:
        payloads: One per wire tensor, in the plan's order.
        symbols: The symbols that the payloads code, (C, H, W) each.
        looks_back: Whether a payload may need the earlier frame to be decoded.
        head_ms: Time of the head; 0 without one.
        encode_ms: Time of look-ups, codec and checksums.
    """

    payloads: list[pb.Payload]
    symbols: list[NDArray[np.uint8]]
    looks_back: bool
    head_ms: float
    encode_ms: float


@dataclass(frozen=True)
class Local:
    """Outcome of an edge-only plan for one frame: the task's result and stage times."""

    result: TaskResult
    head_ms: float
    postprocess_ms: float


class EdgePlan:
    """A plan opened on the edge; may be called from several threads at once.

    Args:
        plan: The plan.
        digest: Its digest.
        task: Of the bundle.
        codecs: One per wire tensor.
        model: Its opened head; None when the plan has none.
        rest: What runs behind the head, of edge-only; None when the plan has none.
    """

    def __init__(
        self,
        plan: Plan,
        digest: bytes,
        task: Task,
        codecs: Sequence[Codec],
        model: Session | None,
        rest: Session | None = None,
    ) -> None:
        self.plan = plan
        self.digest = digest
        self._task = task
        self._model = model
        self._rest = rest
        self._codecs = codecs
        self._tables = [WireTable(tensor) for tensor in plan.wire]

    @property
    def image(self) -> ImageInput:
        """Geometry of the network's input."""
        return self._task.image

    def cut(
        self, frame: NDArray[np.uint8], previous: Sequence[NDArray[np.uint8]] | None = None
    ) -> EncodedFrame:
        """Run the head and encode the wire tensors.

        Args:
            frame: (3, H, W), fitted into the input.
            previous: Symbols of an earlier frame, to look back at where the plan allows it.

        Raises:
            SettingsError: If the plan is edge-only, and so has nothing to send.
        """
        if self.plan.tail is None:
            raise SettingsError(f"plan {self.plan.name} is edge-only: nothing to send")
        started_s = time.perf_counter()
        tensors = self._run(frame)
        ran_s = time.perf_counter()
        symbols = [t.symbols(codes) for t, codes in zip(self._tables, tensors, strict=True)]
        payloads = self.encode(symbols, previous)
        encoded_s = time.perf_counter()
        looks_back = previous is not None and self.plan.looks_back
        head_ms, encode_ms = (ran_s - started_s) * 1000, (encoded_s - ran_s) * 1000
        return EncodedFrame(payloads, symbols, looks_back, head_ms, encode_ms)

    def encode(
        self,
        symbols: Sequence[NDArray[np.uint8]],
        previous: Sequence[NDArray[np.uint8]] | None = None,
    ) -> list[pb.Payload]:
        """Encode symbols (C, H, W) into payloads, one per wire tensor."""
        payloads = []
        for index, (wire, codec) in enumerate(zip(self.plan.wire, self._codecs, strict=True)):
            if previous is not None and isinstance(codec, ContextCoded):
                data = codec.encode_after(symbols[index], wire.bits, previous[index])
            else:
                data = codec.encode(symbols[index], wire.bits)
            payloads.append(pb.Payload(data=data, crc32=seal(data)))
        return payloads

    def message(
        self, payloads: Sequence[pb.Payload], where: Placement, settings: ResultSettings
    ) -> pb.Frame:
        """Build the Frame that carries payloads to the cloud.

        Args:
            payloads: One per wire tensor.
            where: Where the image lies in the frame.
            settings: What to report.
        """
        message = pb.Frame(
            plan_digest=self.digest,
            image_width=where.image_width,
            image_height=where.image_height,
            payloads=payloads,
        )
        settings.to_frame(message)
        return message

    def infer(self, frame: NDArray[np.uint8], where: Placement, settings: ResultSettings) -> Local:
        """Run the whole network here.

        Args:
            frame: (3, H, W), fitted into the input.
            where: Where the image lies in the frame.
            settings: What to report.

        Raises:
            SettingsError: If the plan has a tail.
        """
        if self.plan.head is None or self.plan.tail is not None:
            raise SettingsError(f"plan {self.plan.name} needs the cloud: it is not edge-only")
        started_s = time.perf_counter()
        outputs = [
            (tensor.astype(np.float32) - np.float32(out.zero_point)) * np.float32(out.scale)
            for tensor, out in zip(self._run(frame), self.plan.head.outputs, strict=True)
        ]
        if self._rest is not None:
            named = zip(self.plan.head.outputs, outputs, strict=True)
            outputs = [each[0] for each in self._rest.run({o.name: v[None] for o, v in named})]
        ran_s = time.perf_counter()
        result = self._task.decode(outputs, where, settings)
        done_s = time.perf_counter()
        return Local(result, (ran_s - started_s) * 1000, (done_s - ran_s) * 1000)

    def _run(self, frame: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """The head's outputs, (C, H, W) each; the frame itself without a head."""
        if self._model is None:
            return [frame]
        return [output[0] for output in self._model.run({INPUT: frame[None]})]


def open_plans(
    bundle: Bundle,
    digests: Iterable[bytes] | None = None,
    *,
    threads: int = 1,
    runtime: str = DEFAULT_RUNTIME,
) -> dict[bytes, EdgePlan]:
    """Open plans of a bundle; plans with the same head share one session.

    Args:
        bundle: The opened bundle.
        digests: Which of its plans; all, if None.
        threads: Threads within one run of a head.
        runtime: Name of the runtime of heads.

    Raises:
        SettingsError: If there is no such runtime here.
        UnknownPlanError: If the bundle has no such plan.
        BundleError: If a context model or packed weights cannot be used.
        ModelError: If a head cannot be opened.
        ParityError: If this machine's runtime does not reproduce a head.
    """
    opener = _Opener(bundle, threads, runtime)
    return {digest: opener.open(digest) for digest in _wanted(bundle, digests)}


def open_reproduced(
    bundle: Bundle,
    digests: Iterable[bytes] | None = None,
    *,
    threads: int = 1,
    runtime: str = DEFAULT_RUNTIME,
    required: Collection[bytes] = (),
) -> dict[bytes, EdgePlan]:
    """Open the plans whose heads this machine reproduces; the others are left out with a warning.

    Args:
        bundle: The opened bundle.
        digests: Which of its plans; all, if None.
        threads: Threads within one run of a head.
        runtime: Name of the runtime of heads.
        required: Those that may not be left out.

    Raises:
        ParityError: If the head of a required plan is not reproduced, or no plan is left.
        Other errors: See `open_plans`.
    """
    opener = _Opener(bundle, threads, runtime)
    opened: dict[bytes, EdgePlan] = {}
    left_out: list[str] = []
    failure: ParityError | None = None
    for digest in _wanted(bundle, digests):
        try:
            opened[digest] = opener.open(digest)
        except ParityError as error:
            if digest in required:
                raise
            failure = failure or error
            left_out.append(bundle.plan(digest).name)
    if failure is not None:
        if not opened:
            raise failure
        _LOG.warning("left out: plans %s: %s", ", ".join(left_out), failure)
    return opened


class _Opener:
    """Opens plans of one bundle; those with the same head share its session, or its failure."""

    def __init__(self, bundle: Bundle, threads: int, runtime: str) -> None:
        self._bundle = bundle
        self._threads = threads
        self._runtime = runtime
        self._heads: dict[tuple[str, ...], Session | ParityError] = {}
        self._rests: dict[Tail, Session] = {}

    def open(self, digest: bytes) -> EdgePlan:
        """Open one plan; see `open_plans`."""
        plan = self._bundle.plan(digest)
        model = None if plan.head is None else self._model(plan.head)
        codecs = open_codecs(self._bundle, plan)
        rest = None if plan.rest is None else self._open_rest(plan.rest)
        return EdgePlan(plan, digest, self._bundle.manifest.task, codecs, model, rest)

    def _open_rest(self, rest: Tail) -> Session:
        if rest not in self._rests:
            file = self._bundle.file(rest.file)
            self._rests[rest] = open_model(file, threads=self._threads, runtime=self._runtime)
        return self._rests[rest]

    def _model(self, head: Head) -> Session:
        key = _content(self._bundle, head)
        if key not in self._heads:
            try:
                self._heads[key] = _open_head(self._bundle, head, self._threads, self._runtime)
            except ParityError as error:
                self._heads[key] = error
        found = self._heads[key]
        if isinstance(found, ParityError):
            raise found
        return found


def _wanted(bundle: Bundle, digests: Iterable[bytes] | None) -> Iterable[bytes]:
    return bundle.plans if digests is None else digests


def fitting_together(bundle: Bundle, memory_bytes: int | None = None) -> list[bytes]:
    """Digests of the plans whose heads fit the edge at once, the best first.

    The search keeps its limit on memory for each plan alone. An edge that changes plans from frame
    to frame holds all of their heads; those that would exceed the limit are left out, the later in
    the bundle first. Plans with the same head share it.

    Args:
        bundle: The opened bundle.
        memory_bytes: Limit on weights and activations of heads; that of the search, if None.

    Raises:
        SettingsError: If no plan fits.
    """
    limit = bundle.manifest.search.edge_memory_bytes if memory_bytes is None else memory_bytes
    if limit is None:
        return list(bundle.plans)
    able = dict(bundle.plans)  # the search kept the limit for each of them
    if memory_bytes is not None:
        able = {d: p for d, p in able.items() if p.predicted.edge_memory_bytes <= limit}
    if not able:
        least = min(plan.predicted.edge_memory_bytes for plan in bundle.plans.values())
        raise SettingsError(
            f"--memory {limit}: no plan of the bundle fits; the smallest takes {least} bytes"
        )
    heads: set[tuple[str, ...]] = set()
    weights = others = 0
    kept: list[bytes] = []
    for digest, plan in able.items():
        key = () if plan.head is None else _content(bundle, plan.head)
        new = plan.head.weight_bytes if plan.head is not None and key not in heads else 0
        own = 0 if plan.head is None else plan.head.weight_bytes
        most = max(others, plan.predicted.edge_memory_bytes - own)
        if kept and weights + new + most > limit:
            continue
        kept.append(digest)
        heads.add(key)
        weights, others = weights + new, most
    return kept


def _content(bundle: Bundle, head: Head) -> tuple[str, ...]:
    names = (head.file,) if head.weights is None else (head.file, head.weights)
    return tuple(bundle.manifest.files[name].sha256 for name in names)


def _open_head(bundle: Bundle, head: Head, threads: int, runtime: str) -> Session:
    weights = {}
    if head.weights is not None:
        weights = unpack_weights(bundle.file(head.weights).read_bytes(), head.weights)
    file = bundle.file(head.file)
    model = open_model(file, threads=threads, weights=weights, runtime=runtime)
    image, expected = read_vector(bundle, head)
    check_parity(model.run({INPUT: image}), expected, what=head.file, runtime=runtime)
    return model
