"""The demo, whole: what a new user sees first."""

import json
from pathlib import Path

import pytest
from PIL import Image

from common.errors import SplitpointError
from search.weights import fetch
from splitpoint.demo.frames import SHOWN, VIDEO
from splitpoint.demo.run import run_demo


@pytest.fixture(scope="module")
def _published(tiny_weights: Path) -> None:
    """What the demo downloads, beside the weights."""
    try:
        fetch(VIDEO)
    except SplitpointError as error:
        pytest.skip(f"the video cannot be fetched: {error}")


@pytest.mark.timeout(600)  # a whole search, with its progress
@pytest.mark.usefixtures("_published")
def test_the_demo_compares_three_ways_and_keeps_its_search(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_demo(tmp_path)
    shown = capsys.readouterr().out
    for word in ("image upload", "edge-only", "split", "predicted", "person", "Pictures:"):
        assert word in shown

    figures = json.loads((tmp_path / "figures.json").read_text())
    ways = figures["ways"]
    assert set(ways) - {"JPEG q75"} == {"image upload", "edge-only", "split"}
    assert ways["edge-only"]["uplink_bytes"] == [0] * len(ways["edge-only"]["uplink_bytes"])
    for way in ways.values():
        agreed = way["same_boxes"]
        assert agreed["matched"] >= 0.7 * (agreed["matched"] + agreed["missing"])
        assert sum(way["stages_ms"].values()) > 0

    pictures = sorted((tmp_path / "pictures").glob("*.png"))
    assert [picture.stem for picture in pictures] == [f"frame-{index:03d}" for index in SHOWN]
    with Image.open(pictures[0]) as picture:
        assert picture.width > 3 * 600

    manifest = tmp_path / "bundle" / "manifest.json"
    written = manifest.stat().st_mtime_ns
    run_demo(tmp_path)
    assert manifest.stat().st_mtime_ns == written
