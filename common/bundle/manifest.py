"""The bundle's manifest: what the search decided, as both ends read it.

A manifest lists plans. A plan says which head the edge runs, how the cut tensors travel and which
tail the cloud runs:

    image (3, H, W) uint8 -> head -> uint8 tensors -> WireTensor.to_symbol -> codec -> bytes
    bytes -> codec -> WireTensor.to_value -> float32 tensors -> tail -> outputs -> result

Every tensor leaves the head as uint8 on its calibrated activation grid, so a wire quantizer is a
table of 256 symbols, and its reconstruction a table of 2^bits values: any step, clip range, dead
zone and reconstruction point can be written that way, and both ends do integer look-ups only.

Cloud-only is the plan without a head (the wire carries the image), edge-only the plan without a
tail (the wire carries nothing, the edge reports its results); what of the network has no integers
is then the plan's rest, which the edge runs behind its head.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from common.codec.spec import CodecSpec, WireTensor
from common.records import Record
from common.tasks.base import DEFAULTS, MOST_SETTING, ResultSettings, Task
from common.tasks.registry import AnyTask

SCHEMA_VERSION = 6
UNSEALED = "0" * 64
"""Placeholder for a manifest's own digest while that is computed."""

_HEX = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, Field(pattern=_HEX)]
OutputShape = Annotated[tuple[Annotated[int, Field(ge=1, le=1 << 24)], ...], Field(max_length=8)]
"""Shape of a head's output without the batch; (C, H, W) where it travels."""
PlanKind = Literal["cloud-only", "split", "edge-only"]
Limit = bool | Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)]
"""Limit of a search, by the name of its constraint; see `search.constraints`."""
EDGE_MEMORY = "edge_memory"
"""Name of the limit on edge memory, in bytes: the one that an edge keeps, too."""
JudgedBy = Literal["held-out", "evaluation"]
"""Pictures that accuracy was judged on: held-out calibration pictures, or an evaluation folder."""


def _check_relative(name: str) -> str:
    path = PurePosixPath(name)
    parts_fine = all(part not in {"..", "."} for part in path.parts)
    if not name or path.is_absolute() or not parts_fine or "\\" in name or ":" in name:
        raise ValueError(f"{name!r} is not a plain relative path inside the bundle")
    if str(path) != name:
        raise ValueError(f"{name!r} is not in its normal form {str(path)!r}")
    return name


class FileEntry(Record):
    """One file of the bundle."""

    size_bytes: int = Field(ge=0, le=8 << 30)
    sha256: Sha256


class HeadOutput(Record):
    """One uint8 output of a head: value = (q - zero_point) * scale."""

    name: str
    shape: OutputShape
    scale: float = Field(gt=0)
    zero_point: int = Field(ge=0, le=255)


class Head(Record):
    """An int8 head: input "image" (1, 3, H, W) uint8, outputs uint8.

    Attributes:
        file: The ONNX file.
        weights: Its weights, packed, where some have fewer than 8 bits; else they are in `file`.
        outputs: In the order of the plan's wire tensors; of edge-only, of the network's outputs or
            of what the rest reads.
        weight_bytes: Weights as stored on the edge.
        peak_activation_bytes: Largest sum of live activations over the execution order.
        bits: Weight width of each layer, by name.
        vector: Folder with `input.npy` and one `output-K.npy` per output: the reference that an
            edge must reproduce before it serves.
    """

    file: str
    weights: str | None = None
    outputs: tuple[HeadOutput, ...] = Field(min_length=1)
    weight_bytes: int = Field(ge=0)
    peak_activation_bytes: int = Field(ge=0)
    bits: dict[str, Annotated[int, Field(ge=1, le=8)]]
    vector: str


class Tail(Record):
    """A tail: float32 inputs (N, C, H, W) named as the wire tensors; outputs those of the network.

    The rest of an edge-only plan is one, too: its inputs are named as the outputs of the head.
    `files` are files that the ONNX file refers to (shared weights).
    """

    file: str
    files: tuple[str, ...] = ()


class Prediction(Record):
    """Predictions of the search for a plan on its device and link; times are medians.

    Attributes:
        accuracy: In percent of the search's metric, on the pictures that judge; None if the search
            measured no accuracy.
        accuracy_drop: Against the network in floating point, in points; None likewise.
        accuracy_drop_upper: Upper end of the one-sided 90 % interval of that drop; None if it was
            not judged on all pictures.
        judged_images: How many pictures judged.
        judged_by: Where they came from; None if it was not said.
    """

    latency_ms: float = Field(ge=0)
    preprocess_ms: float = Field(ge=0)
    head_ms: float = Field(ge=0)
    encode_ms: float = Field(ge=0)
    uplink_ms: float = Field(ge=0)
    rtt_ms: float = Field(ge=0)
    decode_ms: float = Field(ge=0)
    tail_ms: float = Field(ge=0)
    postprocess_ms: float = Field(ge=0)
    uplink_bytes: float = Field(ge=0)
    edge_memory_bytes: int = Field(ge=0)
    accuracy: float | None = Field(default=None, ge=0, le=100)
    accuracy_drop: float | None = Field(default=None, ge=-100, le=100)
    accuracy_drop_upper: float | None = Field(default=None, ge=-100, le=100)
    judged_images: int = Field(default=0, ge=0)
    judged_by: JudgedBy | None = None

    @property
    def known_accuracy(self) -> float:
        """The accuracy to rank plans by: 0 for all plans of a bundle that knows none."""
        return self.accuracy or 0.0


class Plan(Record):
    """Cut + widths + wire format + the two models, with predictions.

    Attributes:
        name: For people; no two plans of a bundle need to differ by it alone.
        network: Digest of the network that it divides; see `network_digest`.
        cut: The tensors that travel; of edge-only, the network's outputs.
        head: What the edge runs; None for cloud-only.
        wire: How the cut's tensors travel; empty for edge-only.
        codec: What codes them.
        tail: What the cloud runs; None for edge-only.
        rest: What the edge runs in floating point behind its head, of edge-only; None if nothing.
        predicted: What the search expects.
    """

    name: str
    network: Sha256
    cut: tuple[str, ...] = Field(min_length=1)
    head: Head | None
    wire: tuple[WireTensor, ...]
    codec: CodecSpec | None
    tail: Tail | None
    rest: Tail | None = None
    predicted: Prediction

    @model_validator(mode="after")
    def _parts_belong_together(self) -> Self:
        if self.head is None and self.tail is None:
            raise ValueError(f"{self.name}: a plan needs a head, a tail or both")
        if self.rest is not None and self.tail is not None:
            raise ValueError(f"{self.name}: what a tail runs leaves no rest for the edge")
        if (self.tail is None) != (not self.wire) or (self.tail is None) != (self.codec is None):
            raise ValueError(f"{self.name}: wire and codec belong to a tail")
        contexts = self.codec is not None and self.codec.kind.has_model
        if any((tensor.context is not None) != contexts for tensor in self.wire):
            raise ValueError(f"{self.name}: the context coder needs a model for every tensor")
        if self.head is not None and self.tail is not None:
            sent = [(tensor.name, tensor.shape) for tensor in self.wire]
            made = [(output.name, output.shape) for output in self.head.outputs]
            if sent != made:
                raise ValueError(f"{self.name}: the head makes {made}, the wire carries {sent}")
        return self

    @property
    def looks_back(self) -> bool:
        """Whether a frame may be coded after an earlier one."""
        return any(tensor.context_after is not None for tensor in self.wire)

    @property
    def kind(self) -> PlanKind:
        """Cloud-only without a head, edge-only without a tail, else split."""
        if self.head is None:
            return "cloud-only"
        return "edge-only" if self.tail is None else "split"


class Search(Record):
    """Settings of the search: enough to run it again.

    Fields with a default were not written by earlier versions.

    Attributes:
        model: Name in the zoo.
        weights_sha256: Of the network's weights file.
        device: The edge's profile, or its name in latency tables.
        uplink_bps: Of the link.
        rtt_ms: Of the link.
        limits: Limits of the search, by the name of the constraint.
        calibration_images: How many everything was fitted to.
        accuracy_metric: What accuracies are measured in; None if none was measured.
        software_version: That ran the search.
        edge_slowdown: Time on the device over time where the search ran, as predictions have it.
        cloud_slowdown: The same of the cloud.
        reduced_range: Whether weights keep to 7 bits.
        video: Whether frames come in sequence.
        cloud_threads: Threads of the cloud's runtime.
        iou_threshold: Overlap at which detections are duplicates: that of accuracies, and the
            default of edge and cloud.
        max_detections: The most detections of an image that counted.
        classes: Names of the only classes that counted; all, if empty.
        top: How many of a classifier's best classes counted.
    """

    model: str
    weights_sha256: Sha256
    device: str
    uplink_bps: float = Field(gt=0)
    rtt_ms: float = Field(ge=0)
    limits: dict[Annotated[str, Field(max_length=64)], Limit] = Field(max_length=64)
    calibration_images: int = Field(ge=1)
    accuracy_metric: str | None
    software_version: str
    edge_slowdown: float | None = Field(default=None, gt=0)
    cloud_slowdown: float = Field(default=1.0, gt=0)
    reduced_range: bool = False
    video: bool = False
    cloud_threads: int = Field(default=1, ge=1)
    iou_threshold: float = Field(default=DEFAULTS.iou_threshold, gt=0, le=1)
    max_detections: int = Field(default=DEFAULTS.max_detections, ge=1, le=MOST_SETTING)
    classes: tuple[str, ...] = Field(default=(), max_length=MOST_SETTING)
    top: int = Field(default=1, ge=1)

    @property
    def edge_memory_bytes(self) -> int | None:
        """Limit on weights and peak activations of a head; None for no limit."""
        limit = self.limits.get(EDGE_MEMORY)
        return None if limit is None else int(limit)


class Manifest(Record):
    """The whole of `manifest.json`. The first plan is the best for the link searched for.

    Attributes:
        schema_version: Looked at before anything else.
        sha256: Of the file itself, with zeros for these 64 digits; see `seal_manifest`.
        task: What the network is for: its input, and how its outputs become a result.
        search: What was asked.
        plans: The best first.
        files: Every other file of the bundle.
    """

    schema_version: int
    sha256: Sha256 = UNSEALED
    task: AnyTask
    search: Search
    plans: tuple[Plan, ...] = Field(min_length=1)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _every_name_resolves(self) -> Self:
        for name in self.files:
            _check_relative(name)
        for plan in self.plans:
            for name in plan_files(plan):
                if name not in self.files:
                    raise ValueError(f"plan {plan.name!r} names {name!r}, which is not listed")
        network = network_digest(self.search.weights_sha256, self.task)
        for plan in self.plans:
            if plan.network != network:
                raise ValueError(f"plan {plan.name!r} is of another network than the bundle's")
        for plan in self.plans:
            if plan.head is not None and plan.tail is None and plan.rest is None:
                wrong = self.task.misfit([output.shape for output in plan.head.outputs])
                if wrong is not None:
                    raise ValueError(f"plan {plan.name!r}: {wrong}")
        if len(set(self.digests)) != len(self.plans):
            raise ValueError("two plans do the same thing")
        return self

    @property
    def settings(self) -> ResultSettings:
        """Settings of results for callers that give none: the search's duplicates, else usual."""
        return ResultSettings(iou_threshold=self.search.iou_threshold)

    @cached_property
    def digests(self) -> tuple[bytes, ...]:
        """The digest of each plan, in order."""
        return tuple(plan_digest(plan, self.files, self.task) for plan in self.plans)


def seal_manifest(data: bytes) -> bytes:
    """The bytes of a manifest with their own SHA-256 in place of the zeros of `sha256`.

    The digest is of the bytes and not of what they mean, so that no bit of them changes unseen.
    Nothing before `sha256` may hold 64 zeros, too.
    """
    return data.replace(UNSEALED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def is_sealed(data: bytes, sha256: object) -> bool:
    """Whether the bytes of a manifest that has `sha256` are those that were sealed."""
    if not isinstance(sha256, str) or not re.fullmatch(_HEX, sha256):
        return False
    unsealed = data.replace(sha256.encode(), UNSEALED.encode(), 1)
    return hashlib.sha256(unsealed).hexdigest() == sha256


def plan_files(plan: Plan) -> list[str]:
    """Names of all files that a plan needs, relative to the bundle."""
    names: list[str] = []
    if plan.head is not None:
        names.append(plan.head.file)
        names += [plan.head.weights] if plan.head.weights is not None else []
        names.append(f"{plan.head.vector}/input.npy")
        names += [f"{plan.head.vector}/output-{k}.npy" for k in range(len(plan.head.outputs))]
    for model in (plan.tail, plan.rest):
        names += [] if model is None else [model.file, *model.files]
    for tensor in plan.wire:
        names += [name for name in (tensor.context, tensor.context_after) if name is not None]
    return names


def plan_digest(plan: Plan, files: dict[str, FileEntry], task: Task) -> bytes:
    """SHA-256 of what a plan does: its models by content, its wire format, its task.

    Names and predictions do not enter, so a plan keeps its digest when it is only measured again.
    """
    identity = {
        "task": task.model_dump(mode="json"),
        "wire": [tensor.model_dump(mode="json") for tensor in plan.wire],
        "codec": plan.codec and plan.codec.model_dump(mode="json"),
        "outputs": plan.head and [o.model_dump(mode="json") for o in plan.head.outputs],
        "files": {name: files[name].sha256 for name in plan_files(plan)},
    }
    return bytes.fromhex(_sha256(identity))


def network_digest(weights_sha256: str, task: Task) -> str:
    """SHA-256 of what makes a network: its weights, its input and its task.

    Segments of plans with the same network digest may share a row of a latency table.

    Args:
        weights_sha256: Of the file of weights.
        task: Of the bundle.
    """
    return _sha256({"weights": weights_sha256, "task": task.model_dump(mode="json")})


def wire_digest(wire: Sequence[WireTensor], codec: CodecSpec | None) -> str:
    """SHA-256 of a wire format: shapes, widths, symbol tables and codec of a cut's tensors.

    Context models enter by their files' names, which `splitpoint search` takes from their content.
    """
    return _sha256(
        {
            "wire": [tensor.model_dump(mode="json") for tensor in wire],
            "codec": codec and codec.model_dump(mode="json"),
        }
    )


def _sha256(identity: object) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
