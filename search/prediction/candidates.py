"""Candidates: every cut with every wire format, what each would cost, and which are worth keeping.

    latency = preprocess + head + encode + bytes / uplink + rtt + decode + tail + postprocess

Head and tail times come from a latency source, bytes and coding times from coding calibration
images. Segments with a row in a latency table take its median; other times are multiplied by the
slowdown of their side (devices.py). Edge-only sends nothing before it answers.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from common.bundle.manifest import Prediction, wire_digest
from common.codec import Codec, ContextModel, make_codec
from common.codec.spec import USUAL_UPLOAD, CodecSpec, WireTensor
from common.link.link import Link, transfer_ms
from common.tables.rows import (
    BOXES,
    LETTERBOX,
    decode_of,
    encode_of,
    head_to,
    tail_from,
    wire_of,
)
from search.network.cuts import Cut
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DeviceProfile, SpeedModel
from search.prediction.table_calibration import Coding, TableCalibration

# Bytes of a frame on the wire beside its payloads: message fields, gRPC and HTTP/2 framing.
FRAME_OVERHEAD_BYTES = 100
_DIGITS = 8
_FASTER = 32.0
"""Factor over the link asked for up to which the bundle holds the best plans."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A cut with its wire format, and what was measured of it on this machine.

    Attributes:
        cut: Where the network is divided.
        wire: How the cut's tensors travel; empty for edge-only.
        codec: What codes them; None for edge-only.
        payload_bytes: Mean over calibration images.
        encode_ms: Symbols and coding, one thread of this machine.
        decode_ms: Decoding and dequantizing, one thread of this machine.
        weight_bytes: Edge memory for weights.
        activation_bytes: Edge memory for activations, at their peak.
        contexts: One model per wire tensor if the codec is the context coder.
        contexts_after: One model per wire tensor for frames of a sequence.
        label: Of the wire format, where its width alone is ambiguous.
    """

    cut: Cut
    wire: tuple[WireTensor, ...]
    codec: CodecSpec | None
    payload_bytes: float
    encode_ms: float
    decode_ms: float
    weight_bytes: int
    activation_bytes: int
    contexts: tuple[ContextModel, ...] = ()
    contexts_after: tuple[ContextModel, ...] = ()
    label: str = ""

    @property
    def name(self) -> str:
        """Display name; two candidates may share one until `named_apart` makes them unique."""
        if self.codec is None:
            return " ".join(filter(None, ("edge-only", self.cut.widths, self.label)))
        if not self.cut.head:
            return " ".join(filter(None, ("cloud-only", str(self.codec), self.label)))
        words = self.cut.label, self.label or f"{self.wire[0].bits}-bit", str(self.codec)
        return " ".join((*words, "adapted") if self.cut.adapted_to else words)

    @property
    def edge_memory_bytes(self) -> int:
        """Weights and peak activations on the edge."""
        return self.weight_bytes + self.activation_bytes

    @property
    def uplink_bytes(self) -> float:
        """Size of a frame on the wire, framing included; 0 for edge-only."""
        return 0.0 if self.codec is None else self.payload_bytes + FRAME_OVERHEAD_BYTES

    @cached_property
    def codecs(self) -> list[Codec]:
        """Codecs, one per wire tensor."""
        if self.codec is None:
            return []
        none = (None,) * len(self.wire)
        models = zip(self.contexts or none, self.contexts_after or none, strict=True)
        return [make_codec(self.codec, model, after) for model, after in models]

    @cached_property
    def named_wire(self) -> tuple[WireTensor, ...]:
        """Wire tensors as a plan has them: with the files of their context models."""
        named = list(self.wire)
        for field, models in (("context", self.contexts), ("context_after", self.contexts_after)):
            for index, model in enumerate(models):
                file = context_file(model)
                named[index] = named[index].model_copy(update={field: file})
        return tuple(named)

    @cached_property
    def coding(self) -> str:
        """Name of its coding in latency tables; see `common.tables.rows.wire_of`."""
        return wire_of(self.cut.name, self.codec, wire_digest(self.named_wire, self.codec))


def context_file(model: ContextModel) -> str:
    """A context model's file in a bundle, named by its content: other models, other names."""
    return f"contexts/{hashlib.sha256(model.to_bytes()).hexdigest()[:32]}.bin"


@dataclass(frozen=True)
class CostModel:
    """Inputs of a prediction that all plans share: link, device, times, latency tables.

    Attributes:
        link: Between edge and cloud.
        device: The edge.
        preprocess_ms: Letterboxing an image on this machine.
        postprocess_ms: Making boxes of maps on this machine.
        calibration: Calibration of device and cloud by latency tables, if there are any.
    """

    link: Link
    device: DeviceProfile
    preprocess_ms: float
    postprocess_ms: float
    calibration: TableCalibration | None = None

    @property
    def edge(self) -> SpeedModel:
        """Speed model of the device."""
        return (
            SpeedModel(self.device.slowdown)
            if self.calibration is None
            else self.calibration.edge.pace
        )

    @property
    def cloud(self) -> SpeedModel:
        """Speed model of the cloud."""
        return SpeedModel() if self.calibration is None else self.calibration.cloud.pace


@dataclass(frozen=True)
class OwnCosts:
    """Times of one plan on this machine, its bytes on the wire, its edge memory.

    Attributes:
        coding: Name of its coding in latency tables; see `common.tables.rows.wire_of`.
        cut: Names of the tensors that travel, joined by "+".
        codec: What codes them; None for edge-only.
        head_ms: Of its head.
        encode_ms: Of symbols and coding.
        decode_ms: Of decoding and dequantizing.
        tail_ms: Of its tail.
        sent_bytes: Of a frame on the wire; 0 for edge-only.
        edge_memory_bytes: Weights and peak activations on the edge.
    """

    coding: str
    cut: str
    codec: CodecSpec | None
    head_ms: float
    encode_ms: float
    decode_ms: float
    tail_ms: float
    sent_bytes: float
    edge_memory_bytes: int


@dataclass(frozen=True, eq=False)
class RankedCandidate:
    """A candidate with its prediction.

    Attributes:
        candidate: The candidate.
        predicted: Its latency by stage, bytes and edge memory; the accuracy in it is not filled in.
        accuracy: None while it was not measured.
        judged_on: Images that the accuracy was measured on.
        most_lost: Upper end of the one-sided interval of the lost accuracy, in points; infinite
            until it is measured.
        digest: Digest of all that decides its detections and of what it sends, which
            distinguishes it from candidates of other searches; empty if nothing was measured.
    """

    candidate: Candidate
    predicted: Prediction
    accuracy: float | None = None
    judged_on: int = 0
    most_lost: float = math.inf
    digest: str = ""

    @property
    def latency_ms(self) -> float:
        """Predicted end-to-end latency."""
        return self.predicted.latency_ms

    @property
    def axes(self) -> tuple[float, float, float, float]:
        """Objectives to minimise: latency, bytes, edge memory, negated accuracy.

        The latency is that over a link `_FASTER` times as fast as the one asked for. Over slower
        links bytes only add to it: a plan with less of both is faster over all of them, and the
        edge chooses anew when its link changes.
        """
        fast_ms = self.latency_ms - self.predicted.uplink_ms * (1 - 1 / _FASTER)
        sent = 0.0 if self.candidate.codec is None else self.candidate.payload_bytes
        lost = -(self.accuracy or 0.0)
        return fast_ms, sent, float(self.candidate.edge_memory_bytes), lost


def predict(candidate: Candidate, times: CutTimes, cost_model: CostModel) -> Prediction:
    """Latency by stage on the device and link of `cost_model`; accuracy is left out."""
    return predicted(
        OwnCosts(
            coding=candidate.coding,
            cut=candidate.cut.name,
            codec=candidate.codec,
            head_ms=times.head.median_ms,
            encode_ms=candidate.encode_ms,
            decode_ms=candidate.decode_ms,
            tail_ms=times.tail.median_ms,
            sent_bytes=candidate.uplink_bytes,
            edge_memory_bytes=candidate.edge_memory_bytes,
        ),
        cost_model,
    )


def predicted(costs: OwnCosts, cost_model: CostModel) -> Prediction:
    """Latency by stage from a plan's own costs; accuracy is left out."""
    edge, cloud = cost_model.edge, cost_model.cloud
    codec, edge_only = "" if costs.codec is None else costs.codec.name, costs.codec is None
    stages = {
        "preprocess_ms": edge.ms(LETTERBOX, cost_model.preprocess_ms),
        "head_ms": edge.ms(head_to(costs.cut), costs.head_ms),
        "encode_ms": edge.ms(encode_of(costs.coding), costs.encode_ms, codec),
        "uplink_ms": transfer_ms(costs.sent_bytes, cost_model.link.uplink_bps),
        "rtt_ms": 0.0 if edge_only else cost_model.link.rtt_ms,
        "decode_ms": cloud.ms(decode_of(costs.coding), costs.decode_ms, codec),
        "tail_ms": cloud.ms(tail_from(costs.cut), costs.tail_ms),
        "postprocess_ms": (edge if edge_only else cloud).ms(BOXES, cost_model.postprocess_ms),
    }
    return Prediction.model_validate(
        {
            "latency_ms": sum(stages.values()),
            "uplink_bytes": costs.sent_bytes,
            "edge_memory_bytes": costs.edge_memory_bytes,
            **stages,
        }
    )


def with_coding(cost_model: CostModel, candidates: Iterable[Candidate]) -> CostModel:
    """Add slowdowns of codecs, from tables and the candidates that they cover."""
    if cost_model.calibration is None:
        return cost_model
    coded = []
    for each in candidates:
        if each.codec is not None:
            encode, decode = encode_of(each.coding), decode_of(each.coding)
            own = encode, each.encode_ms, decode, each.decode_ms
            coded.append(Coding(each.codec.name, *own))
    return replace(cost_model, calibration=cost_model.calibration.with_coding(coded))


def rank_candidates(
    candidates: Iterable[Candidate], times: dict[str, CutTimes], cost_model: CostModel
) -> list[RankedCandidate]:
    """Predict all candidates, fastest first."""
    ranked = (RankedCandidate(c, predict(c, times[c.cut.name], cost_model)) for c in candidates)
    return sorted(ranked, key=lambda each: each.latency_ms)


def shortlist(
    candidates: Sequence[Candidate],
    times: dict[str, CutTimes],
    cost_model: CostModel,
    *,
    per_width: int = 3,
) -> list[Candidate]:
    """The candidates whose accuracy is worth measuring.

    Accuracy is the most expensive measurement of a search. A narrower wire format of the same cut
    is faster and less accurate, so for every width the fastest few are kept, at the link asked for
    and at a quarter and four times of its bandwidth. All cloud-only and edge-only candidates are
    kept.
    """
    keep = [c for c in candidates if c.cut.kind != "split"]
    for factor in (1.0, 0.25, 4.0):
        link = replace(cost_model.link, uplink_bps=cost_model.link.uplink_bps * factor)
        ranked = rank_candidates(
            [c for c in candidates if c.cut.kind == "split"], times, replace(cost_model, link=link)
        )
        taken: dict[int, int] = {}
        for each in ranked:
            bits = each.candidate.wire[0].bits
            taken[bits] = taken.get(bits, 0) + 1
            if taken[bits] <= per_width:
                keep.append(each.candidate)
    return list(dict.fromkeys(keep))


def named_apart(
    candidates: Sequence[Candidate], digests: Mapping[Candidate, str]
) -> list[Candidate]:
    """Return the candidates, equal names made unique by a piece of each digest.

    Args:
        candidates: All different.
        digests: Of what each does.
    """
    counts = Counter(candidate.name for candidate in candidates)
    return [
        each if counts[each.name] == 1 else _labelled(each, digests[each][:_DIGITS])
        for each in candidates
    ]


def _labelled(candidate: Candidate, suffix: str) -> Candidate:
    usual = f"{candidate.wire[0].bits}-bit" if candidate.cut.kind == "split" else ""
    return replace(candidate, label=f"{candidate.label or usual} {suffix}".strip())


def pareto(ranked: Sequence[RankedCandidate]) -> list[RankedCandidate]:
    """The Pareto front: candidates that no other one beats or equals on every axis."""
    front: list[RankedCandidate] = []
    for each in sorted(ranked, key=lambda j: j.axes):
        if not any(_dominates(other, each) for other in front):
            front.append(each)
    return front


def worth_keeping(ranked: Sequence[RankedCandidate]) -> list[RankedCandidate]:
    """The Pareto front, and plans to compare with even if they are beaten, fastest first.

    The planner needs the front. A user needs to see, on the own link, the fastest plan of each kind
    and what would be done without a search: an upload of JPEG at the usual quality.
    """
    kept = pareto(ranked)
    kept += [j for j in ranked if j.candidate.codec == USUAL_UPLOAD and j not in kept]
    for kind in ("cloud-only", "split", "edge-only"):
        of_kind = [j for j in ranked if j.candidate.cut.kind == kind]
        if of_kind and not any(j.candidate.cut.kind == kind for j in kept):
            kept.append(min(of_kind, key=lambda j: j.latency_ms))
    return sorted(kept, key=lambda j: (j.latency_ms, -(j.accuracy or 0.0)))


def _dominates(one: RankedCandidate, other: RankedCandidate) -> bool:
    return all(a <= b for a, b in zip(one.axes, other.axes, strict=True))
