"""Evaluation of a bundle as a record: scores of the network and of each plan, bytes, times."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bench.machine import machine
from common.bundle.manifest import PlanKind
from common.tasks.base import ResultSettings
from common.version import __version__


@dataclass(frozen=True)
class PlanScore:
    """Accuracy by one metric, under one preset of settings.

    Attributes:
        preset: Name of the settings; see `Evaluation.presets`.
        metric: What accuracy is measured in.
        accuracy: In percent.
        lost: Points less than the network in floating point; None if the bundle does not have it.
        lost_at_most: Upper end of the one-sided 90 % interval of `lost`, by a bootstrap over the
            pictures.
    """

    preset: str
    metric: str
    accuracy: float
    lost: float | None
    lost_at_most: float | None


@dataclass(frozen=True)
class EvaluatedPlan:
    """One plan as deployed.

    Attributes:
        name: For people.
        kind: "cloud-only", "split" or "edge-only".
        digest: The plan's digest, in hex.
        scores: By preset, then by metric.
        uplink_bytes: Mean size of a frame's message.
        uplink_bytes_p95: Its 95th percentile.
        stages_ms: Median times of the plan's stages, in the order of the path.
    """

    name: str
    kind: PlanKind
    digest: str
    scores: tuple[PlanScore, ...]
    uplink_bytes: float
    uplink_bytes_p95: float
    stages_ms: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of the plans of a bundle, as edge and cloud run them.

    Attributes:
        bundle: SHA-256 of the bundle's manifest.
        model: The network.
        weights_sha256: Digest of its weights file.
        task: Kind of the task.
        images: Number of pictures.
        images_sha256: Digest of their names and contents.
        truth: Option that gave the truth, "annotations" or "labels"; None if the network in
            floating point stood in.
        truth_sha256: Digest of that file; None for a folder, or without.
        presets: Settings of results by name: "serving" as edge and cloud report them, and for
            detectors "evaluation", the protocol of COCO: a low score threshold, 100 detections.
        reference: Scores of the network in floating point; empty if the bundle does not have it.
        plans: The plans, in the bundle's order.
        left_out: Names of plans whose heads this machine does not reproduce.
        warnings: Lines on what of the truth and the network does not match.
        runtime: Runtime of heads and tails, with its version and threads.
    """

    bundle: str
    model: str
    weights_sha256: str
    task: str
    images: int
    images_sha256: str
    truth: str | None
    truth_sha256: str | None
    presets: Mapping[str, ResultSettings]
    reference: tuple[PlanScore, ...]
    plans: tuple[EvaluatedPlan, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    runtime: str

    def to_json(self) -> dict[str, Any]:
        """The evaluation as a JSON document, with the machine and the versions that made it."""
        return {"splitpoint": __version__, **asdict(self), "machine": machine()}
