"""Benchmark of scaling: the cloud with more edges, the search with larger networks.

    python -m bench.scale.report --bundle DIR --images DIR [--seconds 4] [--streams 1,2,4,8]
    python -m bench.scale.report --only search              # what is not measured again is kept

`bench.scale.many_edges` and `bench.scale.larger_networks` describe the measurements.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from bench.scale.larger_networks import measure_search, print_search
from bench.scale.many_edges import STREAMS, measure_edges, print_edges
from common.progress import Stages

_RESULT = Path(__file__).parents[1] / "results" / "scaling.json"
_PARTS = ("edges", "search")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="bundle that the cloud serves")
    parser.add_argument("--images", type=Path, help="pictures to send")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds for each plan and number of edges"
    )
    parser.add_argument("--streams", type=_numbers, default=STREAMS, help="numbers of edges")
    parser.add_argument("--only", choices=_PARTS, help="measure one of both, keep the other")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    wanted = [arguments.only] if arguments.only else list(_PARTS)
    if "edges" in wanted and None in (arguments.bundle, arguments.images):
        parser.error("edges are measured with --bundle and --images")
    path: Path = arguments.json
    result = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    with Stages() as stages:
        if "edges" in wanted:
            result["edges"] = measure_edges(arguments, stages)
        if "search" in wanted:
            result["search"] = measure_search(stages)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    console = Console()
    if "edges" in wanted:
        print_edges(result["edges"], console)
    if "search" in wanted:
        print_search(result["search"], console)


if __name__ == "__main__":
    main()
