"""Request and result of a search: the two ends of the pipeline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.bundle.manifest import JudgedBy
from common.link.link import Link
from common.runtime.registry import DEFAULT_RUNTIME
from common.tasks.base import DEFAULTS, ResultSettings, Task
from search.constraints import constraints, find
from search.constraints.base import Constraint
from search.constraints.edge_memory import EdgeMemory
from search.constraints.max_drop import MaxDrop
from search.prediction.candidates import CostModel, RankedCandidate
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile
from search.source import NetworkSource
from search.wire.rate_curve import RatePoint


@dataclass(frozen=True)
class Request:
    """Settings of a search.

    Attributes:
        source: Place that the network comes from.
        link: Between edge and cloud.
        device: The edge.
        calibration: Folder of images for ranges, sizes, contexts and tails. Without `evaluation` a
            part of them is set aside to measure accuracy on (held_out.py).
        evaluation: Folder of images to measure accuracy on.
        annotations: The truth about the evaluation images, as of `search.measure.sources`; without,
            accuracy is agreement with the floating-point network.
        constraints: Limits that plans keep; see `search.constraints`.
        strategy: "splitpoint", or a baseline; see `search.strategies`.
        quantizer: Name of the recipe by which layers of few bits are quantized; None for the usual
            one of the strategy.
        cloud_threads: Threads of the cloud's runtime.
        runtime: Name of the runtime of heads and tails, which they are timed in.
        accuracy: Whether accuracy is measured. Without, tensors travel as heads compute them,
            uploads have the usual quality, nothing is refined, and no plan says what it loses.
        max_images: Images used at the most, of each folder.
        narrow_cuts: How many cuts that do not fit at 8 bits get weights of fewer.
        refined_cuts: How many cuts get searched quantizers, context models and adapted tails.
        format_trials: To how many wire formats of each of them a tail is adapted, at the most.
        video: Whether frames will come in sequence: context models then also look back.
        adapt_steps: Steps of tail adaptation for each; 0 leaves the tails as they are.
        context_steps: Steps of fitting context models to a cut; half as many to each format.
        tables: Latency tables of devices and of the cloud; without, all times are this machine's,
            multiplied by the device's slowdown.
        cache: Folder for the results of stages, which later searches reuse.
        iou_threshold: Overlap at which detections are duplicates, while accuracy is measured; the
            bundle's default.
        max_detections: The most detections of an image that count.
        classes: Names of the only classes that count; all, if empty.
        top: How many of a classifier's best classes count.
    """

    source: NetworkSource
    link: Link
    device: DeviceProfile
    calibration: Path
    evaluation: Path | None = None
    annotations: Path | None = None
    constraints: tuple[Constraint, ...] = constraints()
    strategy: str = "splitpoint"
    quantizer: str | None = None
    cloud_threads: int = 1
    runtime: str = DEFAULT_RUNTIME
    accuracy: bool = True
    max_images: int = 128
    narrow_cuts: int = 2
    refined_cuts: int = 1
    format_trials: int = 3
    adapt_steps: int = 200
    context_steps: int = 500
    video: bool = False
    tables: Path | None = None
    cache: Path | None = None
    iou_threshold: float = DEFAULTS.iou_threshold
    max_detections: int = DEFAULTS.max_detections
    classes: tuple[str, ...] = ()
    top: int = 1

    def settings(self, task: Task) -> ResultSettings:
        """Settings of the results that accuracy is measured on, but for the score threshold.

        Raises:
            SettingsError: If one is out of range, or a class is not the task's.
        """
        wanted = task.class_indices(self.classes)
        settings = ResultSettings(
            DEFAULTS.score_threshold, self.iou_threshold, self.max_detections, wanted
        )
        settings.check_on_the_wire()
        return settings

    @property
    def refines(self) -> bool:
        """Whether wire formats of some cuts are searched and tails fine-tuned to them."""
        return self.accuracy and bool(self.refined_cuts) and self.strategy == "splitpoint"

    @property
    def model(self) -> str:
        """Name of the network, as it was given."""
        return self.source.model

    @property
    def max_drop(self) -> float:
        """Largest loss of accuracy in points; infinite without a limit."""
        limit = find(MaxDrop, self.constraints)
        return math.inf if limit is None else limit.limit

    @property
    def edge_memory_bytes(self) -> int | None:
        """Memory that bits are allocated within; None without a limit."""
        limit = find(EdgeMemory, self.constraints)
        return None if limit is None else limit.limit


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search.

    Attributes:
        request: The request.
        metric: What accuracies are measured in; None if none was measured.
        reference_accuracy: Of the floating-point network; None likewise.
        cuts: How many the network has.
        every_cut: Whether these are all; else heads that send much were left out.
        tuned_to: The last tensors that torch can compute, which tails are fine-tuned up to; empty
            if these are the network's outputs.
        sees_nothing: Whether the floating-point network detects nothing on the pictures that judge.
        calibration_images: How many everything was fitted to.
        evaluation_images: Names of those that accuracy was measured on.
        judged_by: Where these come from; None if no accuracy was measured.
        also_fitted: Names of those that everything was fitted to as well.
        cost_model: Times that all plans share, device and link.
        ranked: All candidates, fastest first.
        measured: Those whose accuracy was measured, fastest first.
        kept: The plans of the bundle, fastest first.
        curves: By name of a refined cut, its wire formats from the fewest bytes to the least error.
        times: Of every cut that was timed on this machine, by name.
    """

    request: Request
    metric: str | None
    reference_accuracy: float | None
    cuts: int
    calibration_images: int
    evaluation_images: tuple[str, ...]
    cost_model: CostModel
    ranked: tuple[RankedCandidate, ...]
    measured: tuple[RankedCandidate, ...]
    kept: tuple[RankedCandidate, ...]
    curves: dict[str, tuple[RatePoint, ...]]
    times: Mapping[str, CutTimes] = field(default_factory=dict)
    judged_by: JudgedBy | None = "held-out"
    also_fitted: tuple[str, ...] = ()
    every_cut: bool = True
    tuned_to: tuple[str, ...] = ()
    sees_nothing: bool = False

    def drop(self, ranked: RankedCandidate) -> float | None:
        """Points of accuracy that a candidate loses; None if its accuracy was not measured."""
        if self.reference_accuracy is None or ranked.accuracy is None:
            return None
        return self.reference_accuracy - ranked.accuracy
