"""Latency tables: what each segment of each plan takes on each device, and how that is known.

    (device, runtime, threads) x (segment, bits) -> n, median, p90, 95 % interval, source, last seen

A segment is a piece of a plan's path that other plans may share: the head up to a cut, the tail
behind it, the coding of one wire format. Tables come from a profile of a device, from frames that
were served, or from a device that was only simulated; they travel as JSON, and the cloud's store
keeps them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from common.errors import StoreError
from common.manifest import Plan

Side = Literal["edge", "cloud"]
Source = Literal["simulated", "profiled", "served"]

_MAX_FILE_BYTES = 64 << 20


class LatencyRow(BaseModel):
    """One row of a latency table; times in ms.

    Attributes:
        device: What it was measured on, as its operator calls it.
        runtime: What models run in there; see `common.runtime.runtime_name`.
        threads: Threads within one run.
        side: Which end of the link the device stands at.
        segment: As `segments` names it.
        bits: Widths of the segment's weights, such as "8" or "2-8"; "32" for floating point.
        n: Runs or frames.
        median_ms: Their median.
        p90_ms: Their 90th percentile.
        low_ms: Lower end of the median's 95 % interval.
        high_ms: Its upper end.
        source: How it is known.
        last_seen_s: When the newest of them was, in seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str = Field(min_length=1, max_length=128)
    runtime: str = Field(max_length=128)
    threads: int = Field(ge=0)
    side: Side
    segment: str = Field(min_length=1, max_length=512)
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


_ROWS = TypeAdapter(list[LatencyRow])


@dataclass(frozen=True)
class Segment:
    """A piece of a plan's path.

    Attributes:
        stage: Of the path: preprocess, head, encode, decode, tail or postprocess.
        side: Where it runs.
        name: The same for all plans that share it.
        bits: Widths of its weights, or of its symbols.
    """

    stage: str
    side: Side
    name: str
    bits: str


def segments(plan: Plan) -> Iterator[Segment]:
    """The segments of a plan, in the order of the path."""
    cut = "+".join(plan.cut)
    yield Segment("preprocess", "edge", "letterbox", "8")
    if plan.head is not None:
        yield Segment("head", "edge", f"head to {cut}", _range(plan.head.bits.values()))
    if plan.tail is None:
        yield Segment("postprocess", "edge", "boxes", "32")
        return
    wire = f"{cut} {plan.codec} of plan {plan.name}"
    widths = _range(tensor.bits for tensor in plan.wire)
    yield Segment("encode", "edge", f"encode {wire}", widths)
    yield Segment("decode", "cloud", f"decode {wire}", widths)
    yield Segment("tail", "cloud", f"tail from {cut}", "32")
    yield Segment("postprocess", "cloud", "boxes", "32")


def to_json(rows: Sequence[LatencyRow]) -> str:
    """The table as a JSON list of objects."""
    return json.dumps([row.model_dump() for row in rows], indent=1) + "\n"


def read_json(path: Path) -> list[LatencyRow]:
    """Read a table that `to_json` wrote.

    Raises:
        StoreError: If it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise StoreError(f"{path}: no latency table: larger than {_MAX_FILE_BYTES} bytes")
        return _ROWS.validate_json(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path}: no latency table: {where}: {first['msg']}") from error


def _range(widths: Iterable[int]) -> str:
    known = sorted(set(widths))
    if not known:
        return "32"
    return str(known[0]) if len(known) == 1 else f"{known[0]}-{known[-1]}"
