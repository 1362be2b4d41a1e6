"""Plans of a bundle, run as edge and cloud run them, in one process.

    fitted picture -> EdgePlan.cut -> Frame -> bytes -> TailRunner.finish -> Result -> bytes -+
                   -> EdgePlan.infer, where the plan is edge-only ----------------------------+
                                                                        Task.read -> TaskResult

The bundle's own models run in the runtime that serves; payloads and messages are made, serialised
and read by the code of edge and cloud. Only the stream between them is left out.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.tails import Symbols, Tails
from common.bundle.bundle import Bundle
from common.errors import UnknownPlanError
from common.imaging.placement import Placement
from common.rpc import splitpoint_pb2 as pb
from common.rpc.messages import reference_to
from common.runtime.registry import DEFAULT_RUNTIME
from common.tasks.base import ResultSettings, TaskResult
from edge.head import EdgePlan, open_reproduced


@dataclass(frozen=True)
class DeployedResult:
    """Outcome of one picture by one plan.

    Attributes:
        result: Of the bundle's task, as the edge reads it.
        uplink_bytes: Size of the Frame message; 0 when edge-only.
        stages_ms: Times of the plan's stages, from the head on, in the order of the path.
    """

    result: TaskResult
    uplink_bytes: int
    stages_ms: dict[str, float]


@dataclass(frozen=True)
class _Earlier:
    """Last frame of a plan that looks back, as the edge sent it and as the cloud decoded it."""

    frame: pb.Frame
    sent: Sequence[Symbols]
    received: Sequence[Symbols]


class DeployedPlans:
    """Plans of a bundle, opened on both sides; not for several threads at once.

    Args:
        bundle: The opened bundle.
        plans: Digests of the plans to run; all whose heads this machine reproduces, if empty.
        threads: Threads within one run of a model.
        runtime: Name of the runtime of heads and tails.

    Attributes:
        digests: Digests of the plans that run, in the bundle's order or that of `plans`.

    Raises:
        SplitpointError: As `edge.head.open_reproduced` and `cloud.tails.Tails`.
    """

    def __init__(
        self,
        bundle: Bundle,
        plans: Collection[bytes] = (),
        *,
        threads: int = 1,
        runtime: str = DEFAULT_RUNTIME,
    ) -> None:
        self._task = bundle.manifest.task
        self._heads = open_reproduced(
            bundle, plans or None, threads=threads, runtime=runtime, required=plans
        )
        self._tails = Tails(bundle, threads=threads, runtime=runtime)
        self._tails.warm_up()
        self._earlier: dict[bytes, _Earlier] = {}
        self._frames = 0
        self.digests = tuple(self._heads)

    @property
    def has_reference(self) -> bool:
        """Whether the bundle has the whole network in floating point."""
        try:
            self._tails.image_runner()
        except UnknownPlanError:
            return False
        return True

    def reference(
        self, pixels: NDArray[np.uint8], where: Placement, settings: ResultSettings
    ) -> TaskResult:
        """Run the whole network in floating point, with no lossy codec before it.

        Raises:
            UnknownPlanError: If the bundle has no cloud-only plan.
        """
        runner = self._tails.image_runner()
        return runner.run(runner.symbols([pixels]), where, settings).result

    def run(
        self,
        digest: bytes,
        pixels: NDArray[np.uint8],
        where: Placement,
        settings: ResultSettings,
    ) -> DeployedResult:
        """Run one picture by one plan; a plan for sequences looks back at the picture before.

        Args:
            digest: One of `digests`.
            pixels: (3, H, W), fitted into the network's input.
            where: Where the picture lies in it.
            settings: What to report.
        """
        opened = self._heads[digest]
        if opened.plan.tail is not None:
            return self._through_the_tail(opened, pixels, where, settings)
        local = opened.infer(pixels, where, settings)
        stages = {"head": local.head_ms, "postprocess": local.postprocess_ms}
        return DeployedResult(local.result, 0, stages)

    def _through_the_tail(
        self,
        opened: EdgePlan,
        pixels: NDArray[np.uint8],
        where: Placement,
        settings: ResultSettings,
    ) -> DeployedResult:
        earlier = self._earlier.get(opened.digest)
        cut = opened.cut(pixels, None if earlier is None else earlier.sent)
        self._frames += 1
        frame = opened.message(cut.payloads, where, settings)
        frame.frame_id = self._frames
        previous = None
        if cut.looks_back and earlier is not None:
            frame.reference.CopyFrom(reference_to(earlier.frame))
            previous = earlier.received
        sent = frame.SerializeToString()
        finished = self._tails.runner(opened.digest).finish(pb.Frame.FromString(sent), previous)
        if opened.plan.looks_back:
            self._earlier[opened.digest] = _Earlier(frame, cut.symbols, finished.symbols)
        answer = pb.Result()
        finished.result.write(answer)
        stages = {} if opened.plan.head is None else {"head": cut.head_ms}
        stages |= {
            "encode": cut.encode_ms,
            "decode": finished.decode_ms,
            "tail": finished.tail_ms,
            "postprocess": finished.postprocess_ms,
        }
        read = self._task.read(pb.Result.FromString(answer.SerializeToString()))
        return DeployedResult(read, len(sent), stages)
