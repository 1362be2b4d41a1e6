"""docs/performance.md is what its results say."""

import re
from pathlib import Path

from bench.harness import RESULTS
from bench.performance import OUT, page


def test_the_page_is_made_of_the_committed_results() -> None:
    assert OUT.read_text() == page(), "run python -m bench.performance"


def test_the_page_opens_with_who_wins_where_and_what_missed() -> None:
    summary = page().partition("## Summary")[2].partition("## ")[0]

    for words in ("A split wins", "An image wins", "The edge alone wins", "H.264 wins", "Missed"):
        assert words in summary, words


def test_every_picture_and_link_of_it_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", OUT.read_text())

    assert links
    assert [link for link in links if not (OUT.parent / link).exists()] == []


def test_a_result_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "many_edges.json").write_text((RESULTS / "many_edges.json").read_text())

    text = page(tmp_path)

    assert text.count("Not measured yet.") == 7
    assert "| 64 | JPEG |" in text
