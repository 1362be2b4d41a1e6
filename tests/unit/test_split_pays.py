"""What the report of a search says where no split is the fastest plan."""

from dataclasses import replace

import pytest

from search.constraints import constraints
from search.reports.markdown import markdown
from search.reports.split_pays import EdgeLine, edge_range, split_pays
from search.request import SearchResult
from tests.reported import found_by_search, judged


def _found(*, split_ms: float, split_bytes: float = 5300, jpeg: float = 21_700) -> SearchResult:
    """A search that kept a plan of each kind, fastest first."""
    plans = (
        judged("split", 44.1, split_bytes, split_ms),
        judged("cloud-only", 44.5, jpeg, 0),
        judged("edge-only", 43.0, 0, 30),
    )
    kept = tuple(
        sorted((replace(each, most_lost=1.0) for each in plans), key=lambda j: j.latency_ms)
    )
    return replace(found_by_search(), kept=kept, measured=kept, ranked=kept)


def test_nothing_is_said_where_a_split_is_the_fastest() -> None:
    assert split_pays(_found(split_ms=2)) == []


def test_the_bandwidth_and_the_edge_that_would_do_are_said() -> None:
    result = _found(split_ms=18)
    assert result.kept[0].candidate.cut.kind == "cloud-only"
    first, bandwidth, edge = split_pays(result)
    assert first.startswith("No split pays at 3.00 Mbit/s") or "3" in first
    assert "By bandwidth a split is the fastest" in bandwidth
    assert edge.endswith("as fast as this one makes a split the fastest.")
    assert first in markdown(result)


def test_a_split_that_sends_and_takes_more_never_pays() -> None:
    result = _found(split_ms=40, split_bytes=30_000)
    assert split_pays(result)[1:] == [
        "No bandwidth makes one the fastest.",
        "No other speed of the edge makes one the fastest on this link.",
    ]


def test_the_limit_that_keeps_a_split_out_is_named() -> None:
    result = _found(split_ms=10)
    split = next(each for each in result.kept if each.candidate.cut.kind == "split")
    request = replace(result.request, constraints=constraints(edge_memory="1MiB", max_drop=3.0))
    rest = tuple(each for each in result.kept if each is not split)
    (line,) = split_pays(replace(result, request=request, kept=rest[::-1]))
    assert "Every split is kept out by a limit" in line
    assert line.endswith("it breaks edge memory 1 MiB.")


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([EdgeLine(True, 10, 10), EdgeLine(False, 15, 0)], (0, 0.5)),
        ([EdgeLine(True, 10, 1), EdgeLine(False, 0, 5)], (2.5, float("inf"))),
        ([EdgeLine(True, 10, 1), EdgeLine(False, 5, 0)], None),
        ([EdgeLine(True, 1, 1), EdgeLine(False, 5, 0), EdgeLine(False, 0, 3)], (0.5, 4)),
    ],
)
def test_the_speeds_of_an_edge_at_which_a_split_is_the_fastest(
    lines: list[EdgeLine], expected: tuple[float, float] | None
) -> None:
    assert edge_range(lines) == expected


def test_a_network_that_sees_nothing_is_warned_of() -> None:
    result = replace(_found(split_ms=2), sees_nothing=True)
    assert "detects nothing on the 1 pictures that judge: check scaling" in markdown(result)
    assert "Warning" not in markdown(replace(result, sees_nothing=False))
