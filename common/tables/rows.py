"""Latency tables: latency of each segment of each plan on each device, and its source.

    (device, runtime, threads) x (network, segment, bits)
        -> n, median, p90, 95 % interval, source, last seen

A segment is a piece of a plan's path that other plans may share: the head up to a cut, the tail
behind it, the coding of one wire format. Two segments are the same only if they belong to the same
network, by its digest: other weights or another input size make another network, however alike the
names of its layers. Names of plans do not enter. Tables come from a profile of a device, from
frames that were served, or from a device that was only simulated; they travel as JSON, and the
cloud's store keeps them (`common.tables.store_file`).
"""

import hashlib
import json
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from common.bundle.manifest import Plan, Sha256, wire_digest
from common.codec.spec import CodecSpec
from common.errors import StoreError
from common.tables.timing import Timing

Side = Literal["edge", "cloud"]
Source = Literal["simulated", "profiled", "served"]

StageTimes = Mapping[bytes, Mapping[str, Timing]]
"""Observed times by digest of a plan and stage of its path."""

ENOUGH = 20
"""Served frames that take precedence over a profile."""
MAX_PROFILE_ROWS = 2048
"""Most rows that one ProfileReport may carry."""

LETTERBOX, BOXES = "letterbox", "boxes"
"""Segments that every plan of a network shares."""

_MAX_FILE_BYTES = 64 << 20
_DIGEST_CHARACTERS = 16
_WIDTHS_CHARACTERS = 8


class RuntimeTarget(NamedTuple):
    """Device, runtime and thread count that latencies belong to.

    Attributes:
        device: The machine, as its operator calls it.
        runtime: What models run in there; see `common.runtime.registry.runtime_name`.
        threads: Threads within one run; 0 if nobody said.
    """

    device: str
    runtime: str
    threads: int


class LatencyRow(BaseModel):
    """One row of a latency table; times in ms.

    Attributes:
        device: What it was measured on, as its operator calls it.
        runtime: What models run in there; see `common.runtime.registry.runtime_name`.
        threads: Threads within one run.
        side: Which end of the link the device stands at.
        network: Digest of the network that the segment belongs to; see `network_digest`.
        segment: As `segments` names it.
        bits: Bit widths of the segment's weights: "8", or "2-8" and a digest of each layer's;
            "32" for floating point.
        n: Runs or frames.
        median_ms: Their median.
        p90_ms: Their 90th percentile.
        low_ms: Lower end of the median's 95 % interval.
        high_ms: Its upper end.
        source: Where it comes from.
        last_seen_s: When the newest of them was, in seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str = Field(min_length=1, max_length=128)
    runtime: str = Field(max_length=128)
    threads: int = Field(ge=0)
    side: Side
    network: Sha256
    segment: str = Field(min_length=1, max_length=4096)
    bits: str = Field(max_length=32)
    n: int = Field(ge=0)
    median_ms: float = Field(ge=0)
    p90_ms: float = Field(ge=0)
    low_ms: float = Field(ge=0)
    high_ms: float = Field(ge=0)
    source: Source
    last_seen_s: float = Field(ge=0)

    @model_validator(mode="after")
    def _the_interval_holds_the_median(self) -> "LatencyRow":
        if not self.low_ms <= self.median_ms <= self.high_ms:
            raise ValueError(f"{self.segment}: its median is not inside its own interval")
        return self

    @property
    def key(self) -> tuple[str, str, int, Side, str, str, str, Source]:
        """Identity of the row: a table has at most one row of each key."""
        return (
            *(self.device, self.runtime, self.threads),
            *(self.side, self.network, self.segment, self.bits, self.source),
        )

    def is_of(self, device: str | None, runtime: str | None) -> bool:
        """Whether it was measured on a device and in a runtime; None stands for any.

        Args:
            device: Name of the device.
            runtime: Registered name of the runtime, whatever its version and threads; a simulation
                is of any.
        """
        if device not in (None, self.device):
            return False
        known = self.runtime.partition(" ")[0]
        return runtime in (None, known) or self.source == "simulated"


_ROWS = TypeAdapter(list[LatencyRow])


@dataclass(frozen=True, order=True)
class Segment:
    """A piece of a plan's path.

    Attributes:
        stage: Of the path: preprocess, head, encode, decode, tail or postprocess.
        side: Where it runs.
        network: Digest of the network that it belongs to.
        name: The same for all plans of the network that share it, apart from `bits`.
        bits: Bit widths of its weights, or of its symbols.
    """

    stage: str
    side: Side
    network: str
    name: str
    bits: str


def head_to(cut: str) -> str:
    """Name of the segment that is the head up to a cut.

    Args:
        cut: Names of the cut's tensors, joined by "+".
    """
    return f"head to {cut}"


def tail_from(cut: str) -> str:
    """Name of the segment that is the tail behind a cut."""
    return f"tail from {cut}"


def wire_of(cut: str, codec: CodecSpec | None, digest: str) -> str:
    """Name of a coding; `encode_of` and `decode_of` name its two segments.

    Args:
        cut: Names of the cut's tensors, joined by "+".
        codec: What codes them.
        digest: Of the wire format, in hex; see `common.bundle.manifest.wire_digest`.
    """
    return f"{cut} {codec} {digest[:_DIGEST_CHARACTERS]}"


def encode_of(coding: str) -> str:
    """Name of the segment that is the encoding of what `wire_of` names."""
    return f"encode {coding}"


def decode_of(coding: str) -> str:
    """Name of the segment that is the decoding of what `wire_of` names."""
    return f"decode {coding}"


def head_segment(network: str, cut: str, bits: str = "8") -> Segment:
    """The head up to a cut, with the widths of its weights."""
    return Segment("head", "edge", network, head_to(cut), bits)


def tail_segment(network: str, cut: str) -> Segment:
    """The tail behind a cut, in floating point."""
    return Segment("tail", "cloud", network, tail_from(cut), "32")


def segments(plan: Plan) -> Iterator[Segment]:
    """The segments of a plan, in the order of the path."""
    network, cut = plan.network, "+".join(plan.cut)
    yield Segment("preprocess", "edge", network, LETTERBOX, "8")
    if plan.head is not None:
        yield head_segment(network, cut, _widths(plan.head.bits))
    if plan.tail is None:
        yield Segment("postprocess", "edge", network, BOXES, "32")
        return
    wire = wire_of(cut, plan.codec, wire_digest(plan.wire, plan.codec))
    bits = _range(tensor.bits for tensor in plan.wire)
    yield Segment("encode", "edge", network, encode_of(wire), bits)
    yield Segment("decode", "cloud", network, decode_of(wire), bits)
    yield tail_segment(network, cut)
    yield Segment("postprocess", "cloud", network, BOXES, "32")


def profiled(
    times: StageTimes, plans: Mapping[bytes, Plan], side: Side, target: RuntimeTarget, now_s: float
) -> list[LatencyRow]:
    """The rows of a profile of plans; what several plans share becomes one row.

    Args:
        times: The measured times.
        plans: All of these plans, by digest.
        side: Which side of them; stages of the other are left out.
        target: Where it was timed.
        now_s: When, in seconds since the epoch.
    """
    shared: dict[Segment, list[Timing]] = defaultdict(list)
    for digest, stages in times.items():
        for segment in segments(plans[digest]):
            if segment.side == side and segment.stage in stages:
                shared[segment].append(stages[segment.stage])
    return [
        row_of(Timing.pooled(timings), segment, target, "profiled", now_s)
        for segment, timings in shared.items()
    ]


def row_of(
    timing: Timing, segment: Segment, target: RuntimeTarget, source: Source, last_seen_s: float
) -> LatencyRow:
    """The row of one segment."""
    return LatencyRow(
        device=target.device,
        runtime=target.runtime,
        threads=target.threads,
        side=segment.side,
        network=segment.network,
        segment=segment.name,
        bits=segment.bits,
        n=timing.n,
        median_ms=timing.median_ms,
        p90_ms=timing.p90_ms,
        low_ms=timing.low_ms,
        high_ms=timing.high_ms,
        source=source,
        last_seen_s=last_seen_s,
    )


def merged(*tables: Iterable[LatencyRow]) -> list[LatencyRow]:
    """One table of several: of rows of the same thing the newest, of equally new ones the last."""
    newest: dict[object, LatencyRow] = {}
    for table in tables:
        for row in table:
            known = newest.get(row.key)
            if known is None or row.last_seen_s >= known.last_seen_s:
                newest[row.key] = row
    return list(newest.values())


def trust(row: LatencyRow) -> int:
    """Trust in a row, 3 to 0: `ENOUGH` served frames, a profile, few frames, a simulation."""
    if row.source == "served":
        return 3 if row.n >= ENOUGH else 1
    return {"profiled": 2, "simulated": 0}[row.source]


def to_json(rows: Sequence[LatencyRow]) -> str:
    """The table as a JSON list of objects."""
    return json.dumps([row.model_dump() for row in rows], indent=1) + "\n"


def read_json(path: Path) -> list[LatencyRow]:
    """Read a table that `to_json` wrote.

    Raises:
        StoreError: If it cannot be read, or is none.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its writer
            raise StoreError(f"{path}: cannot be read: expected a file")
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise StoreError(f"{path}: no latency table: larger than {_MAX_FILE_BYTES} bytes")
        return _ROWS.validate_json(data)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "missing" and first["loc"][1:] == ("network",):
            raise StoreError(
                f"{path}: written by an older version, which did not say of which network its "
                "times are: run `splitpoint profile --tables` again, into another file"
            ) from error
        where = ".".join(map(str, first["loc"]))
        why = f"{where}: {first['msg']}" if where else first["msg"]
        raise StoreError(f"{path}: no latency table: {why}") from error


def _widths(bits: Mapping[str, int]) -> str:
    """Bit widths of a head's layers; where they differ, with a digest of which layer has which."""
    spread = _range(bits.values())
    if len(set(bits.values())) < 2:
        return spread
    digest = hashlib.sha256(json.dumps(bits, sort_keys=True).encode()).hexdigest()
    return f"{spread} {digest[:_WIDTHS_CHARACTERS]}"


def _range(widths: Iterable[int]) -> str:
    known = sorted(set(widths))
    if not known:
        return "32"
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"
