"""The edge's detector: runs one image through a plan of the bundle and returns its result.

    image -> fitted image -> [PlanController: which plan] -> Runner -> TaskResult
                                   ^                            |
                                   +------ observed times ------+----> the cloud

The plan of a frame is the caller's choice or that of the `PlanController`. With a controller, a
cloud that does not answer delays a frame but does not lose its result, if the bundle has an
edge-only plan.

Stages are those of the search's latency model, so that a frame's observed times can be compared
with its plan's prediction.
"""

import math
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.bundle.bundle import Bundle
from common.bundle.manifest import Plan
from common.errors import CloudUnavailableError, SettingsError, UnknownPlanError
from common.latency import PlanCost
from common.latency import costs as plan_costs
from common.link.link import Link
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds
from common.runtime.registry import DEFAULT_RUNTIME
from common.tasks.base import MAX_REPORTED_BYTES, ResultSettings, TaskResult
from common.tasks.detections import Detections, as_detections
from edge.head import EdgePlan, open_reproduced
from edge.link.estimate import Estimate
from edge.planning.controller import PlanController
from edge.planning.predictor import Expected
from edge.profile import PICTURE, answer, frame_of
from edge.reporter import EdgeOnlyReporter, Reported
from edge.runner import FrameInput, FrameResult, Runner
from edge.stream.client import CloudClient

MIN_DIGEST_PREFIX: Final = 4


@dataclass(frozen=True)
class Outcome:
    """Outcome of one frame: its result, the plan that served it and its stage times.

    Attributes:
        result: Of the bundle's task; boxes are in pixels of the image.
        plan: The plan that served it.
        digest: The plan's digest.
        uplink_bytes: Size of the Frame message; 0 when edge-only.
        times_ms: By stage, in the order of the path: preprocess, head, encode, uplink, queue,
            decode, tail, postprocess, downlink, and `other` for hand-overs between threads and, if
            the cloud did not answer, for the time until another plan took over. Stages that the
            plan does not have are left out.
        latency_ms: From the image to its result, as measured; the sum of `times_ms`.
        expected: The prediction for the plan; None without a controller, or if another plan took
            over.
        reason: Why this plan was chosen.
    """

    result: TaskResult
    plan: Plan
    digest: bytes
    uplink_bytes: int
    times_ms: dict[str, float]
    latency_ms: float
    expected: Expected | None = None
    reason: str = "asked for"

    @property
    def detections(self) -> Detections:
        """The result of a detector.

        Raises:
            WrongTaskError: If the bundle's task is another one.
        """
        return as_detections(self.result)


@dataclass(frozen=True)
class _Chosen:
    """The plan chosen for a frame, its prediction and the reason for the choice."""

    opened: EdgePlan
    expected: Expected | None = None
    reason: str = "asked for"


class Detector:
    """Runs frames through the plans of a bundle; may be called from several threads at once.

    Args:
        bundle: The opened bundle.
        client: Client of the cloud; None if there is none, which leaves the edge-only plans.
        plans: Digests of the plans to open; all, if None. The first is the default.
        threads: Threads within one run of a head.
        runtime: Name of the runtime of heads.
        costs: Predicted costs of the plans; those of the search, if None.
        adaptive: Whether a controller chooses the plan of frames that name none. Needs a client.
        report: What is reported to the cloud about edge-only frames.
        required: Digests of plans that must open. Others whose heads this machine does not
            reproduce are left out, with a warning, as long as one is left.

    Raises:
        ModelError: If a head cannot be opened.
        ParityError: If this machine's runtime does not reproduce the head of a required plan, or of
            any.
    """

    def __init__(
        self,
        bundle: Bundle,
        client: CloudClient | None,
        *,
        plans: Iterable[bytes] | None = None,
        threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
        costs: Sequence[PlanCost] | None = None,
        adaptive: bool = False,
        report: Reported = "times",
        required: Collection[bytes] = (),
    ) -> None:
        self.bundle = bundle
        self.task = bundle.manifest.task
        self._picture = PICTURE
        self._client = client
        self._plans = open_reproduced(
            bundle, plans, threads=threads, runtime=runtime, required=required
        )
        self._runner = Runner(client, self.task)
        self._reported = report
        self.reporter = None if client is None or report == "none" else EdgeOnlyReporter(client)
        self.controller: PlanController | None = None
        if client is not None:
            client.listen(self)
        if client is not None and adaptive:
            known = plan_costs(bundle.plans) if costs is None else costs
            opened = [cost for cost in known if cost.digest in self._plans]
            asked = bundle.manifest.search
            link = Link(asked.uplink_bps, asked.uplink_bps, asked.rtt_ms)
            self.controller = PlanController(client, opened, link)

    @property
    def default(self) -> bytes:
        """Digest of the plan that serves when none is named."""
        return next(iter(self._plans)) if self.controller is None else self.controller.current

    @property
    def link(self) -> Estimate | None:
        """Estimate of the link to the cloud as it is now; None without a cloud."""
        return None if self._client is None else self._client.link.estimate(time.perf_counter())

    def detect(
        self,
        image: NDArray[np.uint8],
        plan: bytes | None = None,
        settings: ResultSettings | None = None,
        *,
        capture_ms: float = 0.0,
        deadline_ms: float | None = None,
    ) -> Outcome:
        """Run one image by a plan.

        Args:
            image: (H, W, 3) RGB.
            plan: Digest of an opened plan; the controller's choice, or the default, if None.
            settings: What to report; by the bundle's defaults, if None.
            capture_ms: Time to get the image, reported with the frame's times.
            deadline_ms: From this call on. The most accurate plan that is expected to keep it is
                chosen; where the cloud turns out too slow for it, a plan without the cloud serves
                in the time that is left.

        Raises:
            SettingsError: If a threshold is 0 or the deadline is out of range, or there is no
                controller to choose a plan by it.
            UnknownPlanError: If the plan was not opened here.
            CloudUnavailableError: If the plan needs the cloud, which is unreachable, overloaded or
                answers too late.
            CloudFailedError: If it does not hold the plan, refuses the frame or sends an invalid
                answer.
        """
        settings = self.bundle.manifest.settings if settings is None else settings
        settings.check_on_the_wire()
        started_s = time.perf_counter()
        chosen = self._choose(plan, deadline_ms)
        chosen_s = time.perf_counter()
        self._picture = image.shape[1], image.shape[0]
        pixels = self.task.image.pixels(image)
        preprocess_ms = (time.perf_counter() - chosen_s) * 1000
        where = self.task.image.place(image.shape[1], image.shape[0])
        taken = FrameInput(pixels, where, settings)
        if self.controller is None or plan is not None:
            done = self._runner.run(chosen.opened, taken)
        else:
            chosen, done = self._run_or_rest(self.controller, chosen, taken, started_s, deadline_ms)
        latency_ms = (time.perf_counter() - started_s) * 1000
        self._record(chosen, done, preprocess_ms, latency_ms, capture_ms)
        times_ms = {"preprocess": preprocess_ms, **done.stages_ms}
        times_ms["other"] = latency_ms - sum(times_ms.values())
        return Outcome(
            result=done.result,
            plan=chosen.opened.plan,
            digest=chosen.opened.digest,
            uplink_bytes=done.uplink_bytes,
            times_ms=times_ms,
            latency_ms=latency_ms,
            expected=chosen.expected,
            reason=chosen.reason,
        )

    def check_ready(self) -> None:
        """Require that the default plan can be served.

        Raises:
            CloudUnavailableError: If it needs the cloud, which does not complete the handshake.
            PlanNotHeldError: If it needs the cloud, which does not hold it.
        """
        if self.controller is not None:
            self.controller.ready()
            return
        opened = self._opened(None)
        if opened.plan.tail is None:
            return
        self._runner.client_for(opened).require(opened.digest)

    def close(self) -> None:
        """Flush pending reports within a short time-out, then close the client."""
        if self.controller is not None:
            self.controller.close()
        if self.reporter is not None:
            self.reporter.close()
        if self._client is not None:
            self._client.close()

    def welcomed(self, welcome: pb.Welcome) -> None:
        """See `edge.stream.connection.Listener`."""
        if self.controller is not None:
            self.controller.welcomed(welcome)

    def ordered(self, order: pb.ProfileOrder) -> pb.ProfileReport:
        """See `edge.stream.connection.Listener`."""
        return answer(order, self._plans, frame_of(self.bundle), self._picture)

    def _choose(self, plan: bytes | None, deadline_ms: float | None) -> _Chosen:
        """The plan that the caller names, or else the controller's choice or the default."""
        controller = self.controller
        if deadline_ms is not None:
            if not 0 < deadline_ms < math.inf:
                raise SettingsError(f"deadline {deadline_ms} ms: expected a positive number")
            if controller is None or plan is not None:
                raise SettingsError("a deadline chooses the plan: name none, and let it adapt")
        if controller is None:
            return _Chosen(self._opened(plan))
        if plan is not None:
            return _Chosen(self._opened(plan), controller.expected(plan))
        choice = controller.choose(deadline_ms)
        return _Chosen(self._opened(choice.digest), choice.expected, choice.reason)

    def _run_or_rest(
        self,
        controller: PlanController,
        chosen: _Chosen,
        taken: FrameInput,
        started_s: float,
        deadline_ms: float | None,
    ) -> tuple[_Chosen, FrameResult]:
        """Run a frame by the chosen plan; if the cloud fails, by the controller's fallback plan."""
        if chosen.expected is None:
            return chosen, self._runner.run(chosen.opened, taken)
        sent_s = time.perf_counter()
        timeouts = controller.timeouts(chosen.expected, started_s, deadline_ms)
        try:
            return chosen, self._runner.run(chosen.opened, taken, timeouts)
        except CloudUnavailableError as error:
            waited_ms = (time.perf_counter() - sent_s) * 1000
            instead = controller.failed(chosen.expected, error, waited_ms)
            if instead is None:
                raise
            # The latency of this frame is no observation of the fallback plan.
            opened = self._opened(instead)
            return _Chosen(opened, None, str(error)), self._runner.run(opened, taken, timeouts)

    def _record(
        self,
        chosen: _Chosen,
        done: FrameResult,
        preprocess_ms: float,
        latency_ms: float,
        capture_ms: float,
    ) -> None:
        """Report a frame's times to the controller and the cloud."""
        if self.controller is not None and chosen.expected is not None:
            self.controller.served(chosen.expected, done.served(latency_ms))
        if (link := self.link) is None:
            return
        times = done.edge_times(preprocess_ms, latency_ms)
        times.capture_us = microseconds(capture_ms)
        times.uplink_bps = link.uplink_bps or 0.0
        times.rtt_us = microseconds(link.rtt_ms or 0.0)
        if done.answer is None:
            self._report(chosen.opened, done.result, times)
        else:
            done.answer.measured(times)

    def _report(self, opened: EdgePlan, result: TaskResult, times: pb.EdgeTimes) -> None:
        if self.reporter is not None:
            report = pb.Report(plan_digest=opened.digest, times=times)
            if self._reported == "results" and result.size_bytes <= MAX_REPORTED_BYTES:
                result.write(report)
            self.reporter.report(report)

    def _opened(self, digest: bytes | None) -> EdgePlan:
        opened = self._plans.get(self.default if digest is None else digest)
        if opened is None:
            raise UnknownPlanError(f"plan {(digest or b'').hex()[:12]} was not opened on this edge")
        return opened


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
