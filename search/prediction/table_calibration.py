"""Calibration of predictions by latency tables: speeds of an edge and a cloud.

    rows of the device --best row of each segment--> its own time, taken as it is
    "head to CUT" rows / own times of the same cuts --weighted median--> slowdown of all else
    "tail from CUT" rows likewise for the cloud; "encode" and "decode" rows by codec

Rows of other networks, by their digest, are left out first. The search times every cut on this
machine. A table has observed latencies of a few segments where they are served; such a segment is
predicted with the table's median, and any other with its own time here multiplied by the slowdown
of that side. Ratios are pooled as logarithms, so that twice as slow and twice as fast cancel out.

Of several rows of a segment one is used: served frames (`ENOUGH` or more) before a profile, that
before fewer served frames, these before a simulation; then weights of 8 bits, as the cuts are
timed with; then the newest. Heads of other widths run in the same 8-bit containers and count as
much, but simulated ones are left out: no width is claimed to be faster.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from common.errors import SettingsError
from common.tables.rows import BOXES, LETTERBOX, LatencyRow, head_to, tail_from, trust
from search.network.cuts import Cut
from search.prediction.cut_times import CutTimes
from search.prediction.devices import DEVICES, DeviceProfile, SpeedModel

_MOST_WEIGHT = 100
_PLAIN_BITS = ("8", "32")


@dataclass(frozen=True)
class Coding:
    """One candidate's coding on this machine: names of its segments, and times in ms."""

    codec: str
    encode: str
    encode_ms: float
    decode: str
    decode_ms: float


@dataclass(frozen=True)
class SideCalibration:
    """Calibration of one side, edge or cloud.

    Attributes:
        pace: The speed model that follows from the rows.
        rows: The row used of each segment.
        paired: Number of segments with a time on this machine too, and so with a ratio.
        low: Lower quartile of the slowdown.
        high: Upper quartile of the slowdown.
    """

    pace: SpeedModel
    rows: Mapping[str, LatencyRow] = field(default_factory=dict)
    paired: int = 0
    low: float = 1.0
    high: float = 1.0

    def sources(self) -> Counter[str]:
        """Number of segments by source: served, profiled, simulated."""
        return Counter(row.source for row in self.rows.values())


@dataclass(frozen=True)
class TableCalibration:
    """Calibration of an edge and of the cloud.

    Attributes:
        device: Name of the edge.
        edge: Of the edge; without rows if it has a profile only.
        cloud: Of the cloud.
        ignored: Number of rows left out because their interval is wider than their median.
    """

    device: str
    edge: SideCalibration
    cloud: SideCalibration
    ignored: int

    def with_coding(self, coded: Sequence[Coding]) -> "TableCalibration":
        """Add slowdowns of the codecs of segments that candidates and rows share."""
        edge = ((each.codec, each.encode, each.encode_ms) for each in coded)
        cloud = ((each.codec, each.decode, each.decode_ms) for each in coded)
        return replace(
            self,
            edge=_with_coding(self.edge, edge),
            cloud=_with_coding(self.cloud, cloud),
        )


def rows_of(
    network: str,
    rows: Iterable[LatencyRow],
    device: DeviceProfile | None = None,
    runtime: str | None = None,
) -> list[LatencyRow]:
    """The rows of one network and runtime; those of others have segments of the same names.

    Args:
        network: Its digest; see `common.bundle.manifest.network_digest`.
        rows: Of the tables.
        device: An edge that must be in these rows, or have a profile.
        runtime: Name of the edges' runtime; None for any. The cloud's rows always count.

    Raises:
        SettingsError: If it is in neither.
    """
    found = [
        row
        for row in rows
        if row.network == network and (row.side == "cloud" or row.is_of(None, runtime))
    ]
    if device is not None and device.name not in (*devices_of(found), *DEVICES):
        raise SettingsError(
            f"the tables know the device {device.name!r} by times of other networks only, or of "
            "another --runtime, not of this one with these weights: profile it with this network, "
            "or name another --device"
        )
    return found


def devices_of(rows: Iterable[LatencyRow]) -> list[str]:
    """Names of the edges in the rows, sorted."""
    return sorted({row.device for row in rows if row.side == "edge"})


def calibrated_device(
    name: str, rows: Sequence[LatencyRow], *, reduced_range: bool | None = None
) -> DeviceProfile:
    """Look up a device of the tables, or a profile.

    A device of the tables keeps weights to 7 bits where this machine has to: accuracy is measured
    here, and a head that saturates here would be judged by that.

    Args:
        name: Of the device.
        rows: Of the tables.
        reduced_range: Overrides `DeviceProfile.reduced_range`, unless None.

    Raises:
        SettingsError: If it is in neither.
    """
    known = devices_of(rows)
    if name not in known and name not in DEVICES:
        raise SettingsError(
            f"unknown device {name!r}: the tables know {_listed(known)}; profiles are "
            f"{', '.join(DEVICES)}"
        )
    profile = DEVICES.get(name) or replace(DEVICES["this-machine"], name=name)
    return profile if reduced_range is None else replace(profile, reduced_range=reduced_range)


def require_device(name: str, rows: Sequence[LatencyRow]) -> None:
    """Require that an edge is in the rows.

    Raises:
        SettingsError: If it is not.
    """
    known = devices_of(rows)
    if name not in known:
        raise SettingsError(
            f"the tables know nothing of the device {name!r}: they know {_listed(known)} of this "
            "network; name one of these with --device"
        )


def cuts_of(rows: Iterable[LatencyRow], cuts: Iterable[Cut]) -> list[Cut]:
    """The cuts whose head or tail has a row."""
    named = {row.segment for row in rows}
    return [cut for cut in cuts if {head_to(cut.name), tail_from(cut.name)} & named]


def calibrate(
    rows: Sequence[LatencyRow],
    device: DeviceProfile,
    times: Mapping[str, CutTimes],
    *,
    preprocess_ms: float,
    postprocess_ms: float,
) -> TableCalibration:
    """Calibrate by comparing tables with times on this machine.

    Args:
        rows: Of the tables.
        device: The edge; its slowdown holds unless rows give another.
        times: Of cuts on this machine, by name.
        preprocess_ms: Letterboxing on this machine.
        postprocess_ms: Making boxes on this machine.
    """
    heads = {head_to(name): side.head.median_ms for name, side in times.items()}
    tails = {tail_from(name): side.tail.median_ms for name, side in times.items()}
    boxes = {BOXES: postprocess_ms}
    shared = {LETTERBOX: preprocess_ms} | boxes
    believable = [row for row in rows if row.high_ms - row.low_ms <= row.median_ms]
    mine = [row for row in believable if row.side == "edge" and row.device == device.name]
    theirs = [row for row in believable if row.side == "cloud"]
    return TableCalibration(
        device=device.name,
        edge=_side_calibration(mine, heads, shared, device.slowdown),
        cloud=_side_calibration(theirs, tails, boxes, 1.0),
        ignored=sum(_concerns(row, device.name) for row in rows) - len(mine) - len(theirs),
    )


def _side_calibration(
    rows: Sequence[LatencyRow],
    own_ms: Mapping[str, float],
    small_ms: Mapping[str, float],
    otherwise: float,
) -> SideCalibration:
    """Calibrate one side by its rows.

    Args:
        rows: Of that side.
        own_ms: Times of models on this machine, by segment.
        small_ms: Times of other segments here, compared if no model has a row.
        otherwise: Slowdown if there is nothing to compare.
    """
    best = _believed(rows)
    known_ms = {name: row.median_ms for name, row in best.items()}
    ratios = _ratios(best, own_ms) or _ratios(best, small_ms)
    if not ratios:
        return SideCalibration(SpeedModel(otherwise, known_ms), best, 0, otherwise, otherwise)
    low, middle, high = _quantiles(ratios, (0.25, 0.5, 0.75))
    return SideCalibration(SpeedModel(middle, known_ms), best, len(ratios), low, high)


def _with_coding(side: SideCalibration, coded: Iterable[tuple[str, str, float]]) -> SideCalibration:
    """Add slowdowns by codec, from (codec, segment, own ms) of candidates."""
    ratios: dict[str, dict[str, tuple[float, float]]] = {}
    for codec, segment, own_ms in coded:
        ratios.setdefault(codec, {}).update(_ratios(side.rows, {segment: own_ms}))
    coding = {codec: _quantiles(each, (0.5,))[0] for codec, each in sorted(ratios.items()) if each}
    return replace(side, pace=replace(side.pace, coding=coding))


def _believed(rows: Iterable[LatencyRow]) -> dict[str, LatencyRow]:
    """The best row of each segment."""
    best: dict[str, LatencyRow] = {}
    for row in sorted(rows, key=_worth, reverse=True):
        if row.source != "simulated" or row.bits in _PLAIN_BITS or not _is_head(row):
            best.setdefault(row.segment, row)
    return dict(sorted(best.items()))


def _worth(row: LatencyRow) -> tuple[int, bool, float]:
    return trust(row), row.bits in _PLAIN_BITS, row.last_seen_s


def _is_head(row: LatencyRow) -> bool:
    return row.segment.startswith("head ")


def _ratios(
    rows: Mapping[str, LatencyRow], own_ms: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Logarithm of the slowdown and its weight, by segment."""
    return {
        name: (math.log(row.median_ms / own), float(min(max(1, row.n), _MOST_WEIGHT)))
        for name, own in own_ms.items()
        if own > 0 and (row := rows.get(name)) is not None and row.median_ms > 0
    }


def _quantiles(ratios: Mapping[str, tuple[float, float]], shares: Sequence[float]) -> list[float]:
    """Weighted quantiles of slowdowns, each ratio standing in the middle of its weight."""
    logs, weights = np.array(sorted(ratios.values())).T
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    return [math.exp(each) for each in np.interp(shares, middles, logs)]


def _concerns(row: LatencyRow, device: str) -> bool:
    return row.side == "cloud" or row.device == device


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "no edge"
