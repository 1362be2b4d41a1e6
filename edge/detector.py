"""One image in, detections out, by any plan: where the edge's parts meet.

    image -> letterbox -> EdgePlan.cut -> CloudClient -> detections          (split, cloud-only)
    image -> letterbox -> EdgePlan.infer -> detections, report to the cloud  (edge-only)

Which plan serves a frame is the caller's choice, or that of the `Pilot`: then a cloud that does not
answer costs a frame some time and not its detections, if a plan of the bundle does without it.

Times are those of the latency model of the search, so what a frame took can be laid beside what its
plan predicted. No clocks are compared between machines: the link's share is the round trip, by the
edge's clock, less the cloud's total, by the cloud's; how it falls into a way up and a way down is
told by `edge.link_estimate`.
"""

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.bundle import Bundle
from common.costs import PlanCost
from common.costs import costs as plan_costs
from common.detections import Detections
from common.errors import (
    CloudUnavailableError,
    SettingsError,
    StaleReferenceError,
    UnknownPlanError,
)
from common.images import Letterbox, letterbox
from common.link import Link
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
from edge.pilot import Pilot
from edge.planner import Expected, Served
from edge.profile import answer, frame_of

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
        times_ms: By stage, in the order of the path: preprocess, head, encode, uplink, queue,
            decode, tail, postprocess, downlink, and `other` for hand-overs between threads and, if
            the cloud did not answer, for the time until another plan took over. Stages that the
            plan does not have are left out.
        latency_ms: From the image to its detections, as measured; the sum of `times_ms`.
        expected: What was expected of the plan; None without a pilot.
        reason: Why this plan.
    """

    detections: Detections
    plan: Plan
    digest: bytes
    uplink_bytes: int
    times_ms: dict[str, float]
    latency_ms: float
    expected: Expected | None = None
    reason: str = "asked for"


@dataclass(frozen=True)
class _Taken:
    """A frame on its way: the letterboxed image and what was asked of it."""

    pixels: NDArray[np.uint8]
    where: Letterbox
    threshold: float


@dataclass(frozen=True)
class _Done:
    """What a plan made of a frame."""

    detections: Detections
    stages_ms: dict[str, float]
    uplink_bytes: int = 0
    answer: Answer | None = None


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
        costs: What plans are expected to cost; as the search predicted, if None.
        adaptive: Whether a pilot chooses the plan of frames that name none. Needs a client.

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
        costs: Sequence[PlanCost] | None = None,
        adaptive: bool = False,
    ) -> None:
        self.bundle = bundle
        self._spec = bundle.manifest.detector
        self._size = self._spec.input_height, self._spec.input_width
        self._client = client
        self._plans = open_plans(bundle, plans, threads=threads)
        self.reporter = None if client is None else Reporter(client)
        self._answered: dict[bytes, _Answered] = {}
        self.pilot: Pilot | None = None
        if client is not None:
            if adaptive:
                known = plan_costs(bundle.plans) if costs is None else costs
                opened = [cost for cost in known if cost.digest in self._plans]
                asked = bundle.manifest.search
                link = Link(asked.uplink_bps, asked.uplink_bps, asked.rtt_ms)
                self.pilot = Pilot(client, opened, link)
            client.listen(self)

    @property
    def default(self) -> bytes:
        """Digest of the plan that serves when none is named."""
        return next(iter(self._plans)) if self.pilot is None else self.pilot.current

    def detect(
        self,
        image: NDArray[np.uint8],
        plan: bytes | None = None,
        score_threshold: float = DEFAULT_SCORE_THRESHOLD,
        *,
        capture_ms: float = 0.0,
        deadline_ms: float | None = None,
    ) -> Outcome:
        """Detect objects in one image.

        Args:
            image: (H, W, 3) RGB.
            plan: Digest of an opened plan; the pilot's choice, or the default, if None.
            score_threshold: Lowest score to return, in (0, 1].
            capture_ms: What getting the image took, for the record.
            deadline_ms: The most accurate plan that is expected to keep it is chosen.

        Raises:
            SettingsError: If the threshold or deadline makes no sense, or nobody is there to choose
                a plan by the deadline.
            UnknownPlanError: If the plan was not opened here, or the cloud does not hold it.
            CloudUnavailableError: If the plan needs the cloud, and it is or goes away.
        """
        if not 0 < score_threshold <= 1:
            raise SettingsError(f"score threshold {score_threshold}: expected a number in (0, 1]")
        pilot = self.pilot
        if deadline_ms is not None:
            if not 0 < deadline_ms < math.inf:
                raise SettingsError(f"deadline {deadline_ms} ms: expected a positive number")
            if pilot is None or plan is not None:
                raise SettingsError("a deadline chooses the plan: name none, and let it adapt")
        started_s = time.perf_counter()
        if pilot is None or plan is not None:
            opened = self._opened(plan)
            expected = None if pilot is None else pilot.expected(opened.digest)
            reason = "asked for"
        else:
            choice = pilot.choose(deadline_ms)
            opened, expected, reason = self._opened(choice.digest), choice.expected, choice.reason
        chosen_s = time.perf_counter()
        pixels = letterbox(image, self._size)
        preprocess_ms = (time.perf_counter() - chosen_s) * 1000
        where = Letterbox.fit(image.shape[1], image.shape[0], self._size)
        taken = _Taken(pixels, where, score_threshold)
        patience_s = None
        if pilot is not None and plan is None and expected is not None:
            patience_s = pilot.patience_s(expected)
        try:
            done = self._run(opened, taken, patience_s)
        except CloudUnavailableError as error:
            waited_ms = (time.perf_counter() - chosen_s) * 1000
            if pilot is None or plan is not None or expected is None:
                raise
            if not pilot.lost(round(expected.uplink_bytes), waited_ms):
                raise
            choice = pilot.choose()
            opened, expected, reason = self._opened(choice.digest), None, str(error)
            done = self._run(opened, taken, patience_s)
        latency_ms = (time.perf_counter() - started_s) * 1000
        times_ms = {"preprocess": preprocess_ms, **done.stages_ms}
        times_ms["other"] = latency_ms - sum(times_ms.values())
        times = self._edge_times(times_ms, latency_ms, capture_ms, done.answer)
        if done.answer is None:
            self._report(opened, done.detections, times)
        else:
            done.answer.measured(times)
        if pilot is not None and expected is not None:
            pilot.served(expected, _served(times_ms, latency_ms, done))
        return Outcome(
            detections=done.detections,
            plan=opened.plan,
            digest=opened.digest,
            uplink_bytes=done.uplink_bytes,
            times_ms=times_ms,
            latency_ms=latency_ms,
            expected=expected,
            reason=reason,
        )

    def check_ready(self) -> None:
        """Require that the default plan can be served.

        Raises:
            CloudUnavailableError: If it needs the cloud, which does not greet.
            UnknownPlanError: If it needs the cloud, which does not hold it.
        """
        if self.pilot is not None:
            self.pilot.ready()
            return
        opened = self._opened(None)
        if opened.plan.tail is None:
            return
        if opened.digest not in self._cloud(opened.plan).connect():
            raise UnknownPlanError(f"the cloud does not hold plan {opened.plan.name}")

    def close(self) -> None:
        """Give reports a last chance, then hang up."""
        if self.pilot is not None:
            self.pilot.close()
        if self.reporter is not None:
            self.reporter.close()
        if self._client is not None:
            self._client.close()

    def welcomed(self, welcome: pb.Welcome) -> None:
        """See `edge.client.Listener`."""
        if self.pilot is not None:
            self.pilot.welcomed(welcome)

    def ordered(self, order: pb.ProfileOrder) -> pb.ProfileReport:
        """See `edge.client.Listener`."""
        return answer(order, self._plans, frame_of(self.bundle))

    def _run(self, opened: EdgePlan, taken: _Taken, patience_s: float | None) -> _Done:
        if opened.plan.tail is not None:
            return self._through_the_cloud(opened, taken, patience_s)
        local = opened.infer(taken.pixels, taken.where, taken.threshold)
        stages = {"head": local.head_ms, "postprocess": local.postprocess_ms}
        return _Done(local.detections, stages)

    def _through_the_cloud(
        self, opened: EdgePlan, taken: _Taken, patience_s: float | None
    ) -> _Done:
        client = self._cloud(opened.plan)
        earlier = self._answered.get(opened.digest)
        cut = opened.cut(taken.pixels, None if earlier is None else earlier.symbols)
        message = pb.Frame(
            plan_digest=opened.digest,
            image_width=taken.where.image_width,
            image_height=taken.where.image_height,
            payloads=cut.payloads,
            score_threshold=taken.threshold,
        )
        if cut.looks_back and earlier is not None:
            message.reference.CopyFrom(earlier.reference)
        try:
            answered = client.request(message, patience_s)
        except StaleReferenceError:  # a new stream, or a restarted cloud: stand alone this once
            message.ClearField("reference")
            del message.payloads[:]
            message.payloads.extend(opened.encode(cut.symbols))
            answered = client.request(message, patience_s)
        if opened.plan.looks_back:
            self._answered[opened.digest] = _Answered(reference_to(message), cut.symbols)
        result, passage = answered.result, answered.passage
        detections = detections_from_message(result.detections, len(self._spec.class_names))
        times = result.times
        stages = {
            "head": cut.head_ms,
            "encode": cut.encode_ms,
            "uplink": passage.uplink_ms,
            "queue": times.queue_us / 1000,
            "decode": times.decode_us / 1000,
            "tail": times.tail_us / 1000,
            "postprocess": times.postprocess_us / 1000,
            "downlink": passage.downlink_ms,
        }
        return _Done(detections, stages, message.ByteSize(), answered)

    def _edge_times(
        self,
        times_ms: dict[str, float],
        latency_ms: float,
        capture_ms: float,
        answer: Answer | None,
    ) -> pb.EdgeTimes:
        """The edge's own part of a frame's times."""
        times = pb.EdgeTimes(
            capture_us=microseconds(capture_ms),
            preprocess_us=microseconds(times_ms["preprocess"]),
            head_us=microseconds(times_ms["head"]),
            encode_us=microseconds(times_ms.get("encode", 0.0)),
            total_us=microseconds(latency_ms),
        )
        if answer is None:
            times.postprocess_us = microseconds(times_ms["postprocess"])
        else:
            times.round_trip_us = microseconds(answer.round_trip_ms)
            times.uplink_us = microseconds(answer.passage.uplink_ms)
        if self._client is not None:
            link = self._client.link.estimate(time.perf_counter())
            times.uplink_bps = link.uplink_bps or 0.0
            times.rtt_us = microseconds(link.rtt_ms or 0.0)
        return times

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


def _served(times_ms: dict[str, float], latency_ms: float, done: _Done) -> Served:
    """What a frame took, as the planner learns it."""
    if done.answer is None:
        return Served(latency_ms, 0.0, 0.0, 0.0, latency_ms)
    total_ms = done.answer.result.times.total_us / 1000
    queue_ms = times_ms["queue"]
    link_ms = times_ms["uplink"] + times_ms["downlink"]
    return Served(
        edge_ms=latency_ms - link_ms - total_ms,
        cloud_ms=total_ms - queue_ms,
        queue_ms=queue_ms,
        uplink_bytes=done.uplink_bytes,
        latency_ms=latency_ms,
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
