"""Sources of the times of a search, in words and as JSON, for its reports."""

from collections.abc import Iterable
from typing import Any

from search.prediction.table_calibration import SideCalibration, TableCalibration

_SOURCES = ("served", "profiled", "simulated")


def in_words(learned: TableCalibration) -> list[str]:
    """One line for the edge, one for the cloud, and one for rows that were ignored."""
    return list(_lines(learned))


def as_json(learned: TableCalibration) -> dict[str, Any]:
    """Calibration of both sides as JSON, with the table row used for every segment."""
    return {
        "device": learned.device,
        "ignored_rows": learned.ignored,
        "edge": _side(learned.edge),
        "cloud": _side(learned.cloud),
    }


def _lines(learned: TableCalibration) -> Iterable[str]:
    edge = f"the edge {learned.device}"
    if learned.edge.rows:
        yield _line(edge, learned.edge)
    else:
        yield (
            f"{edge}: the tables do not know it; as its profile says, this machine's times x "
            f"{learned.edge.pace.slowdown:.3g}"
        )
    if learned.cloud.rows:
        yield _line("the cloud", learned.cloud)
    else:
        yield "the cloud: the tables do not know it; it is taken to be as fast as this machine"
    if learned.ignored:
        yield f"rows ignored, their 95 % interval being wider than their median: {learned.ignored}"


def _line(who: str, lesson: SideCalibration) -> str:
    counts = lesson.sources()
    known = ", ".join(f"{counts[source]} {source}" for source in _SOURCES if counts[source])
    pace = f"this machine's times x {lesson.pace.slowdown:.3g}"
    if lesson.paired:
        pace += (
            f" (median of {lesson.paired} that both know; the middle half of them is "
            f"{lesson.low:.3g} to {lesson.high:.3g})"
        )
    else:
        pace += " (nothing in the tables compares with what was timed here)"
    line = f"{who}: {len(lesson.rows)} segments by themselves ({known}); all others are {pace}"
    coding = [f"{codec} x {slow:.3g}" for codec, slow in lesson.pace.coding.items()]
    return f"{line}; coding by {', '.join(coding)}" if coding else line


def _side(lesson: SideCalibration) -> dict[str, Any]:
    return {
        "slowdown": lesson.pace.slowdown,
        "slowdown_quartiles": [lesson.low, lesson.high],
        "paired": lesson.paired,
        "coding": dict(lesson.pace.coding),
        "segments": {
            name: {"median_ms": row.median_ms, "n": row.n, "source": row.source}
            for name, row in lesson.rows.items()
        },
    }
