"""End-to-end latency of every way to run a model, on real pictures through real processes.

    python -m bench.side_by_side --images DIR --annotations FILE --calibration DIR --json OUT

Searches a bundle, starts a cloud and an edge on this machine with an emulated link, and sends
pictures by the fastest plan of each kind and by JPEG q75, interleaved. The edge runs at the speed
of one core of this machine.
"""

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from common.images import list_images
from common.link import parse_link
from search.devices import device_profile
from search.pipeline import search
from search.request import Request
from splitpoint import __version__
from splitpoint.demo.comparison import compare
from splitpoint.demo.tables import plan_lines, stages_table, ways_table
from splitpoint.progress import Stages


def main() -> None:
    """Search, measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="images to evaluate and send")
    parser.add_argument("--annotations", type=Path, required=True, help="their COCO instances file")
    parser.add_argument("--calibration", type=Path, required=True, help="images to calibrate on")
    parser.add_argument("--link", default="3mbit/20ms")
    parser.add_argument("--max-drop", type=float, default=2.0, help="AP points that may be lost")
    parser.add_argument("--send", type=int, default=24, help="images to send, spread evenly")
    parser.add_argument("--rounds", type=int, default=3, help="times that each is sent each way")
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    arguments = parser.parse_args()
    link = parse_link(arguments.link)
    request = Request(
        model="yolov3-tiny",
        link=link,
        device=device_profile("this-machine"),
        calibration=arguments.calibration,
        evaluation=arguments.images,
        annotations=arguments.annotations,
        max_drop=arguments.max_drop,
        max_images=1000,
        software_version=__version__,
    )
    paths = list_images(arguments.images)
    sent = paths[:: max(1, len(paths) // arguments.send)][: arguments.send]
    with tempfile.TemporaryDirectory() as name, Stages() as stages:
        folder = Path(name)
        manifest, _ = search(request, folder / "bundle", stages)
        comparison = compare(
            folder / "bundle",
            manifest,
            sent,
            link,
            rounds=arguments.rounds,
            logs=folder,
            stages=stages,
        )
    comparison.write_json(arguments.json)
    console = Console()
    console.print(stages_table(comparison.ways))
    console.print(ways_table(comparison))
    console.print(plan_lines(comparison.ways), highlight=False)


if __name__ == "__main__":
    main()
