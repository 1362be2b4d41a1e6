"""The demo, whole, on a small network and a small video: what a new user sees first."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from splitpoint.demo import frames
from splitpoint.demo.frames import FITTED, JUDGING, SHOWN
from splitpoint.demo.run import run_demo
from splitpoint.demo.ways import BY_ITSELF
from tests import zoo

SMALL_BYTES = 40_000
"""A part of the small network fits, the whole does not."""


@pytest.fixture
def _small(tmp_path: Path) -> Iterator[None]:
    """A small network, video and edge in the place of the published ones."""
    video = tmp_path / "published.mp4"
    zoo.video(video, SHOWN[-1] + 1)
    with pytest.MonkeyPatch.context() as patched, zoo.small_zoo(tmp_path):
        patched.setenv("SPLITPOINT_CACHE", str(tmp_path / "cache"))
        patched.setattr(frames, "VIDEO", zoo.published(video))
        patched.setattr("splitpoint.demo.run.SMALL_BYTES", SMALL_BYTES)
        yield


@pytest.mark.usefixtures("_small")
def test_the_demo_maps_who_wins_where_and_keeps_its_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo(tmp_path)
    shown = capsys.readouterr().out
    for word in ("image upload", "edge-only", "split", BY_ITSELF, "does not fit", "Pictures:"):
        assert word in shown

    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [(cell["edge_memory_bytes"], cell["link"]) for cell in figures["cells"]] == [
        (SMALL_BYTES, "100kbit/20ms"),
        (SMALL_BYTES, "1mbit/20ms"),
        (SMALL_BYTES, "10mbit/20ms"),
        (None, "100kbit/20ms"),
    ]
    for cell in figures["cells"]:
        ways, roomy = cell["ways"], cell["edge_memory_bytes"] is None
        named = {"split", "image upload"} | ({"edge-only"} if roomy else set())
        assert set(ways) == named | {BY_ITSELF}
        assert cell["fastest"] == min(named, key=lambda title: ways[title]["latency_ms"])
        assert all(len(way["plans"]) == 1 for title, way in ways.items() if title in named)
        for way in ways.values():
            agreed = way["same_boxes"]
            assert agreed["matched"] >= 0.5 * (agreed["matched"] + agreed["missing"])
        if roomy:
            assert set(ways["edge-only"]["uplink_bytes"]) == {0}

    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert [picture.stem for picture in pictures] == [f"frame-{index:03d}" for index in SHOWN]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 96
    assert (tmp_path / "map.md").read_text().count("**") == 2 * (2 + 4)  # two edges, four cells

    manifest = tmp_path / "bundle" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    run_demo(tmp_path)
    assert manifest.stat().st_mtime_ns == written


def test_no_picture_is_sent_that_a_search_has_seen() -> None:
    assert len({*FITTED, *JUDGING, *SHOWN}) == len(FITTED) + len(JUDGING) + len(SHOWN)
