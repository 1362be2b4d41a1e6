"""What the search finds on a COCO-format set: bytes, latency and accuracy of every way, as JSON.

    python -m bench.search_coco --images DIR --annotations FILE --calibration DIR --json OUT

Accuracy is COCO AP of the plans as deployed, latencies are predictions from times measured on this
machine in the same run. The result names the machine and the images.
"""

import argparse
import json
import tempfile
from pathlib import Path

from common.link import parse_link
from search.devices import device_profile
from search.pipeline import search
from search.report import as_json
from search.request import Request
from splitpoint import __version__
from splitpoint.machine import machine
from splitpoint.progress import Stages


def main() -> None:
    """Run one search and write its result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="images to evaluate on")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--link", default="3mbit/20ms")
    parser.add_argument("--device", default="this-machine")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    request = Request(
        model="yolov3-tiny",
        link=parse_link(arguments.link),
        device=device_profile(arguments.device),
        calibration=arguments.calibration,
        evaluation=arguments.images,
        annotations=arguments.annotations,
        max_drop=100.0,
        max_images=1000,
        software_version=__version__,
    )
    with tempfile.TemporaryDirectory() as folder, Stages() as stages:
        _, found = search(request, Path(folder) / "bundle", stages)
    result = {"machine": machine(), **as_json(found)}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
