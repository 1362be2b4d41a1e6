"""Runs one frame by one plan: on the edge alone, or split between edge and cloud.

    FrameInput -> EdgePlan.infer                               -> FrameResult   (edge-only)
    FrameInput -> EdgePlan.cut -> Frame -> CloudClient -> Answer -> FrameResult   (other plans)

No clocks are compared between machines: the link's share is the round trip, by the edge's clock,
less the cloud's total, by the cloud's; `edge.link.estimate` divides it into uplink and downlink.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import (
    CloudFailedError,
    CloudUnavailableError,
    PayloadError,
    StaleReferenceError,
)
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import microseconds, reference_to
from common.tasks.base import ResultSettings, Task, TaskResult
from edge.head import EdgePlan
from edge.planning.predictor import Served
from edge.planning.timeouts import CLIENT_DEFAULTS, FrameTimeouts
from edge.stream.client import CloudClient
from edge.stream.connection import Answer


@dataclass(frozen=True)
class FrameInput:
    """Input of a plan: a fitted frame and what to report of it.

    Attributes:
        pixels: (3, H, W), fitted into the network's input.
        where: Position of the image in the frame.
        settings: What to report.
    """

    pixels: NDArray[np.uint8]
    where: Placement
    settings: ResultSettings


@dataclass(frozen=True)
class FrameResult:
    """Outcome of a plan for one frame: the task's result, stage times and the cloud's answer.

    Attributes:
        result: Of the bundle's task; boxes are in pixels of the image.
        stages_ms: Times of the plan's stages, from the head on, in the order of the path.
        uplink_bytes: Size of the Frame message; 0 when edge-only.
        answer: The cloud's; None when edge-only.
    """

    result: TaskResult
    stages_ms: dict[str, float]
    uplink_bytes: int = 0
    answer: Answer | None = None

    def served(self, latency_ms: float) -> Served:
        """Return the frame's observation for the planner."""
        if self.answer is None:
            return Served(latency_ms, 0.0, 0.0, 0.0, latency_ms)
        total_ms = self.answer.result.times.total_us / 1000
        queue_ms = self.stages_ms["queue"]
        link_ms = self.stages_ms["uplink"] + self.stages_ms["downlink"]
        return Served(
            edge_ms=latency_ms - link_ms - total_ms,
            cloud_ms=total_ms - queue_ms,
            queue_ms=queue_ms,
            uplink_bytes=self.uplink_bytes,
            latency_ms=latency_ms,
        )

    def edge_times(self, preprocess_ms: float, latency_ms: float) -> pb.EdgeTimes:
        """Build the EdgeTimes message: the edge's part of the frame's times."""
        times = pb.EdgeTimes(
            preprocess_us=microseconds(preprocess_ms),
            head_us=microseconds(self.stages_ms["head"]),
            encode_us=microseconds(self.stages_ms.get("encode", 0.0)),
            total_us=microseconds(latency_ms),
        )
        if self.answer is None:
            times.postprocess_us = microseconds(self.stages_ms["postprocess"])
        else:
            times.round_trip_us = microseconds(self.answer.round_trip_ms)
            times.uplink_us = microseconds(self.answer.passage.uplink_ms)
        return times


@dataclass(frozen=True)
class _Answered:
    """Last frame of a plan that the cloud has answered: the next one's reference."""

    reference: pb.Reference
    symbols: list[NDArray[np.uint8]]


class Runner:
    """Runs frames by plans; may be called from several threads at once.

    Args:
        client: Client of the cloud; None if there is none.
        task: Of the bundle.
    """

    def __init__(self, client: CloudClient | None, task: Task) -> None:
        self._client = client
        self._task = task
        self._answered: dict[bytes, _Answered] = {}

    def run(
        self, opened: EdgePlan, taken: FrameInput, timeouts: FrameTimeouts = CLIENT_DEFAULTS
    ) -> FrameResult:
        """Run a frame.

        Args:
            opened: The plan.
            taken: The frame.
            timeouts: Time-outs for the cloud.

        Raises:
            CloudUnavailableError: If the plan needs the cloud, which is unreachable, overloaded or
                answers too late.
            CloudFailedError: If it does not hold the plan, refuses the frame, or answers with
                an invalid result.
        """
        if opened.plan.tail is not None:
            return self._through_the_cloud(opened, taken, timeouts)
        local = opened.infer(taken.pixels, taken.where, taken.settings)
        stages = {"head": local.head_ms, "postprocess": local.postprocess_ms}
        return FrameResult(local.result, stages)

    def client_for(self, opened: EdgePlan) -> CloudClient:
        """Return the client of the cloud for a plan that needs it.

        Raises:
            CloudUnavailableError: If there is none.
        """
        if self._client is None:
            raise CloudUnavailableError(
                f"plan {opened.plan.name} needs the cloud, and no address was given: "
                "give --cloud HOST:PORT"
            )
        return self._client

    def _through_the_cloud(
        self, opened: EdgePlan, taken: FrameInput, timeouts: FrameTimeouts
    ) -> FrameResult:
        client = self.client_for(opened)
        # First: without a stream, running the head would be wasted.
        client.require(opened.digest, timeouts.stream_timeout_s())
        earlier = self._answered.get(opened.digest)
        cut = opened.cut(taken.pixels, None if earlier is None else earlier.symbols)
        message = opened.message(cut.payloads, taken.where, taken.settings)
        if cut.looks_back and earlier is not None:
            message.reference.CopyFrom(earlier.reference)
        try:
            answer = _asked(client, message, timeouts)
        except StaleReferenceError:  # a new stream, or a restarted cloud: send without a reference
            message.ClearField("reference")
            del message.payloads[:]
            message.payloads.extend(opened.encode(cut.symbols))
            answer = _alone(client, message, timeouts)
        result = self._result(answer)
        if opened.plan.looks_back:
            self._answered[opened.digest] = _Answered(reference_to(message), cut.symbols)
        times = answer.result.times
        stages = {
            "head": cut.head_ms,
            "encode": cut.encode_ms,
            "uplink": answer.passage.uplink_ms,
            "queue": times.queue_us / 1000,
            "decode": times.decode_us / 1000,
            "tail": times.tail_us / 1000,
            "postprocess": times.postprocess_us / 1000,
            "downlink": answer.passage.downlink_ms,
        }
        return FrameResult(result, stages, message.ByteSize(), answer)

    def _result(self, answer: Answer) -> TaskResult:
        try:
            return self._task.read(answer.result)
        except PayloadError as error:
            raise CloudFailedError(f"the cloud's answer cannot be used: {error}") from error


def _asked(client: CloudClient, message: pb.Frame, timeouts: FrameTimeouts) -> Answer:
    client.connect(
        timeouts.stream_timeout_s()
    )  # first: connecting shortens the wait for the answer
    return client.request(message, timeouts.answer_timeout_s(), timeouts.stream_timeout_s())


def _alone(client: CloudClient, message: pb.Frame, timeouts: FrameTimeouts) -> Answer:
    """Request the answer to a frame without a reference; a stale reference is then an error."""
    try:
        return _asked(client, message, timeouts)
    except StaleReferenceError as error:
        raise CloudFailedError(str(error)) from error
