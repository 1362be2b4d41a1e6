"""The demo, whole: what a new user sees first."""

import json
from pathlib import Path

import pytest
from PIL import Image

from common.errors import SplitpointError
from search.zoo.download import fetch
from splitpoint.demo.frames import FITTED, JUDGING, SHOWN, VIDEO
from splitpoint.demo.run import SMALL_BYTES, run_demo
from splitpoint.demo.ways import BY_ITSELF


@pytest.fixture(scope="module")
def _published(tiny_weights: Path) -> None:
    """What the demo downloads, beside the weights."""
    try:
        fetch(VIDEO)
    except SplitpointError as error:
        pytest.skip(f"the video cannot be fetched: {error}")


@pytest.mark.timeout(1800)  # a whole search, on a machine that may be busy
@pytest.mark.usefixtures("_published")
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
        assert picture.width > 3 * 600
    assert (tmp_path / "map.md").read_text().count("**") == 2 * (2 + 4)  # two edges, four cells

    manifest = tmp_path / "bundle" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    run_demo(tmp_path)
    assert manifest.stat().st_mtime_ns == written


def test_no_picture_is_sent_that_a_search_has_seen() -> None:
    assert len({*FITTED, *JUDGING, *SHOWN}) == len(FITTED) + len(JUDGING) + len(SHOWN)
