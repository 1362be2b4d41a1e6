"""Sources of the times of a search, in words and as JSON, for its reports."""

from collections.abc import Iterable
from typing import Any

from search.prediction.table_calibration import SideCalibration, TableCalibration

_SOURCES = ("served", "profiled", "simulated")


def in_words(calibration: TableCalibration) -> list[str]:
    """One line for the edge, one for the cloud, and one for rows that were ignored."""
    return list(_lines(calibration))


def as_json(calibration: TableCalibration) -> dict[str, Any]:
    """Calibration of both sides as JSON, with the table row used for every segment."""
    return {
        "device": calibration.device,
        "ignored_rows": calibration.ignored,
        "edge": _side(calibration.edge),
        "cloud": _side(calibration.cloud),
    }


def _lines(calibration: TableCalibration) -> Iterable[str]:
    edge = f"the edge {calibration.device}"
    if calibration.edge.rows:
        yield _line(edge, calibration.edge)
    else:
        yield (
            f"{edge}: the tables do not know it; as its profile says, this machine's times x "
            f"{calibration.edge.pace.slowdown:.3g}"
        )
    if calibration.cloud.rows:
        yield _line("the cloud", calibration.cloud)
    else:
        yield "the cloud: the tables do not know it; it is taken to be as fast as this machine"
    if calibration.ignored:
        ignored = calibration.ignored
        yield f"rows ignored, their 95 % interval being wider than their median: {ignored}"


def _line(who: str, side: SideCalibration) -> str:
    counts = side.sources()
    known = ", ".join(f"{counts[source]} {source}" for source in _SOURCES if counts[source])
    pace = f"this machine's times x {side.pace.slowdown:.3g}"
    if side.paired:
        pace += (
            f" (median of {side.paired} that both know; the middle half of them is "
            f"{side.low:.3g} to {side.high:.3g})"
        )
    else:
        pace += " (nothing in the tables compares with what was timed here)"
    line = f"{who}: {len(side.rows)} segments by themselves ({known}); all others are {pace}"
    coding = [f"{codec} x {slow:.3g}" for codec, slow in side.pace.coding.items()]
    return f"{line}; coding by {', '.join(coding)}" if coding else line


def _side(side: SideCalibration) -> dict[str, Any]:
    return {
        "slowdown": side.pace.slowdown,
        "slowdown_quartiles": [side.low, side.high],
        "paired": side.paired,
        "coding": dict(side.pace.coding),
        "segments": {
            name: {"median_ms": row.median_ms, "n": row.n, "source": row.source}
            for name, row in side.rows.items()
        },
    }
