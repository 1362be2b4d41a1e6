"""One image in, detections out, by any plan: where the edge's parts meet.

    image -> letterbox -> EdgePlan.cut -> CloudClient -> detections          (split, cloud-only)
    image -> letterbox -> EdgePlan.infer -> detections, report to the cloud  (edge-only)

Times are those of the latency model of the search, so what a frame took can be laid beside what its
plan predicted. No clocks are compared between machines: the link's share is the round trip, by the
edge's clock, less the cloud's total, by the cloud's.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.bundle import Bundle
from common.detections import Detections
from common.errors import (
    CloudUnavailableError,
    SettingsError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.images import Letterbox, letterbox
from common.manifest import Plan
from common.messages import (
    detections_from_message,
    detections_to_message,
    microseconds,
    reference_to,
)
from common.rpc import splitpoint_pb2 as pb
from edge.client import Answer, CloudClient, Reporter
from edge.head import EdgePlan, open_plans

DEFAULT_SCORE_THRESHOLD: Final = 0.25
MIN_DIGEST_PREFIX: Final = 4


@dataclass(frozen=True)
class Outcome:
    """What became of one frame.

    Attributes:
        detections: In pixels of the image.
        plan: The plan that served it.
        digest: The plan's digest.
        uplink_bytes: Size of the Frame message; 0 when edge-only.
        times_ms: By stage, in the order of the path: preprocess, head, encode, link, decode, queue,
            tail, postprocess, and `other` for hand-overs between threads. Stages that the plan does
            not have are left out.
        latency_ms: From the image to its detections, as measured; the sum of `times_ms`.
    """

    detections: Detections
    plan: Plan
    digest: bytes
    uplink_bytes: int
    times_ms: dict[str, float]
    latency_ms: float


@dataclass(frozen=True)
class _Answered:
    """A frame that the cloud has answered, for the next one to look back at."""

    reference: pb.Reference
    symbols: list[NDArray[np.uint8]]


class Detector:
    """Runs frames through the plans of a bundle; may be called from several threads at once.

    Args:
        bundle: The opened bundle.
        client: The way to the cloud; None if there is none, which leaves the edge-only plans.
        plans: Digests of the plans to open; all, if None. The first is the default.
        threads: Threads within one run of a head.

    Raises:
        ModelError: If a head cannot be opened.
        ParityError: If this machine's runtime does not reproduce a head.
    """

    def __init__(
        self,
        bundle: Bundle,
        client: CloudClient | None,
        *,
        plans: Iterable[bytes] | None = None,
        threads: int = 1,
    ) -> None:
        self.bundle = bundle
        self._spec = bundle.manifest.detector
        self._size = self._spec.input_height, self._spec.input_width
        self._client = client
        self._plans = open_plans(bundle, plans, threads=threads)
        self.reporter = None if client is None else Reporter(client)
        self._answered: dict[bytes, _Answered] = {}

    @property
    def default(self) -> bytes:
        """Digest of the plan that serves when none is named."""
        return next(iter(self._plans))

    def detect(
        self,
        image: NDArray[np.uint8],
        plan: bytes | None = None,
        score_threshold: float = DEFAULT_SCORE_THRESHOLD,
        *,
        capture_ms: float = 0.0,
    ) -> Outcome:
        """Detect objects in one image.

        Args:
            image: (H, W, 3) RGB.
            plan: Digest of an opened plan; the default one, if None.
            score_threshold: Lowest score to return, in (0, 1].
            capture_ms: What getting the image took, for the record.

        Raises:
            UnknownPlanError: If the plan was not opened here, or the cloud does not hold it.
            CloudUnavailableError: If the plan needs the cloud, and it is or goes away.
        """
        if not 0 < score_threshold <= 1:
            raise SettingsError(f"score threshold {score_threshold}: expected a number in (0, 1]")
        opened = self._opened(plan)
        started_s = time.perf_counter()
        frame = letterbox(image, self._size)
        preprocess_ms = (time.perf_counter() - started_s) * 1000
        where = Letterbox.fit(image.shape[1], image.shape[0], self._size)
        run = self._locally if opened.plan.kind == "edge-only" else self._through_the_cloud
        detections, uplink_bytes, stages, answer = run(opened, frame, where, score_threshold)
        latency_ms = (time.perf_counter() - started_s) * 1000
        times_ms = {"preprocess": preprocess_ms, **stages}
        times_ms["other"] = latency_ms - sum(times_ms.values())
        times = _edge_times(times_ms, latency_ms, capture_ms, answer)
        if answer is None:
            self._report(opened, detections, times)
        else:
            answer.measured(times)
        return Outcome(detections, opened.plan, opened.digest, uplink_bytes, times_ms, latency_ms)

    def check_ready(self) -> None:
        """Require that the default plan can be served.

        Raises:
            CloudUnavailableError: If it needs the cloud, which does not greet.
            UnknownPlanError: If it needs the cloud, which does not hold it.
        """
        opened = self._opened(None)
        if opened.plan.tail is None:
            return
        if opened.digest not in self._cloud(opened.plan).connect():
            raise UnknownPlanError(f"the cloud does not hold plan {opened.plan.name}")

    def close(self) -> None:
        """Give reports a last chance, then hang up."""
        if self.reporter is not None:
            self.reporter.close()
        if self._client is not None:
            self._client.close()

    def _through_the_cloud(
        self, opened: EdgePlan, frame: NDArray[np.uint8], where: Letterbox, threshold: float
    ) -> tuple[Detections, int, dict[str, float], Answer | None]:
        client = self._cloud(opened.plan)
        earlier = self._answered.get(opened.digest)
        cut = opened.cut(frame, None if earlier is None else earlier.symbols)
        message = pb.Frame(
            plan_digest=opened.digest,
            image_width=where.image_width,
            image_height=where.image_height,
            payloads=cut.payloads,
            score_threshold=threshold,
        )
        if cut.looks_back and earlier is not None:
            message.reference.CopyFrom(earlier.reference)
        try:
            answer = client.request(message)
        except StaleReferenceError:  # a new stream, or a restarted cloud: stand alone this once
            message.ClearField("reference")
            del message.payloads[:]
            message.payloads.extend(opened.encode(cut.symbols))
            answer = client.request(message)
        if opened.plan.looks_back:
            self._answered[opened.digest] = _Answered(reference_to(message), cut.symbols)
        detections = detections_from_message(answer.result.detections, len(self._spec.class_names))
        times = answer.result.times
        stages = {
            "head": cut.head_ms,
            "encode": cut.encode_ms,
            "link": max(answer.round_trip_ms - times.total_us / 1000, 0.0),
            "decode": times.decode_us / 1000,
            "queue": times.queue_us / 1000,
            "tail": times.tail_us / 1000,
            "postprocess": times.postprocess_us / 1000,
        }
        return detections, message.ByteSize(), stages, answer

    def _locally(
        self, opened: EdgePlan, frame: NDArray[np.uint8], where: Letterbox, threshold: float
    ) -> tuple[Detections, int, dict[str, float], Answer | None]:
        local = opened.infer(frame, where, threshold)
        stages = {"head": local.head_ms, "postprocess": local.postprocess_ms}
        return local.detections, 0, stages, None

    def _report(self, opened: EdgePlan, detections: Detections, times: pb.EdgeTimes) -> None:
        if self.reporter is not None:
            columns = detections_to_message(detections)
            report = pb.Report(plan_digest=opened.digest, detections=columns, times=times)
            self.reporter.report(report)

    def _opened(self, digest: bytes | None) -> EdgePlan:
        opened = self._plans.get(self.default if digest is None else digest)
        if opened is None:
            raise UnknownPlanError(f"plan {(digest or b'').hex()[:12]} was not opened on this edge")
        return opened

    def _cloud(self, plan: Plan) -> CloudClient:
        if self._client is None:
            raise CloudUnavailableError(
                f"plan {plan.name} needs the cloud, and no address was given"
            )
        return self._client


def _edge_times(
    times_ms: dict[str, float], latency_ms: float, capture_ms: float, answer: Answer | None
) -> pb.EdgeTimes:
    """The edge's own part of a frame's times."""
    local = answer is None
    return pb.EdgeTimes(
        capture_us=microseconds(capture_ms),
        preprocess_us=microseconds(times_ms["preprocess"]),
        head_us=microseconds(times_ms.get("head", 0.0)),
        encode_us=microseconds(times_ms.get("encode", 0.0)),
        round_trip_us=0 if answer is None else microseconds(answer.round_trip_ms),
        postprocess_us=microseconds(times_ms["postprocess"]) if local else 0,
        total_us=microseconds(latency_ms),
    )


def find_plan(bundle: Bundle, wanted: str) -> bytes:
    """Digest of the plan with this name, or whose digest begins with these hex digits.

    Raises:
        UnknownPlanError: If there is none, or several.
    """
    named = [digest for digest, plan in bundle.plans.items() if plan.name == wanted]
    if not named and len(wanted) >= MIN_DIGEST_PREFIX:
        named = [digest for digest in bundle.plans if digest.hex().startswith(wanted.lower())]
    if len(named) != 1:
        names = ", ".join(plan.name for plan in bundle.plans.values())
        what = "is the name of several plans" if named else "is none of this bundle's plans"
        raise UnknownPlanError(
            f"plan {wanted!r} {what}; it has {names} (a digest's start also does)"
        )
    return named[0]
