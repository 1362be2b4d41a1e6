"""Generator of docs/performance.md from the committed results: no figure in it is typed.

    python -m bench.performance [--results bench/results] [--out docs/performance.md]

It opens with a summary. Every section is made of one JSON of `bench/results` and names the command
that writes it; a section whose result is missing says so.
"""

import argparse
import json
import re
from pathlib import Path

from bench import networks
from bench.adaptation import report as adaptation
from bench.autosplit import report as autosplit
from bench.harness import RESULTS, Lines, Result
from bench.latency import report as latency
from bench.rate import video_rate, wire_rate
from bench.scale import many_edges, strangers
from bench.summary import summary

OUT = Path(__file__).parents[1] / "docs" / "performance.md"
_HEAD = (
    "Made by `python -m bench.performance` from the results in `bench/results`; no figure here is "
    "typed. Times are of shared machines: compare ratios, not milliseconds."
)
_LOST = (
    "Why points are lost. One reason: the planner's stream has its turn once a round, while fixed "
    "plans share one: TCP has forgotten its window by then, and a picture waits for a round trip "
    "more (links of these benches keep windows since this run). The "
    "rest is not explained cell by cell; how much is noise, the same plan under two names shows. "
    "Where the link is quick for the edge, pictures win: the head takes longer than it saves on "
    "the wire, so the planner sends pictures, and their bytes. The cloud's time is the tail's: "
    "behind this cut it is still most of the network, and a later cut takes the edge longer."
)
_SERVED = "--bundle BUNDLE --images IMAGES"
_COCO = "--images IMAGES --annotations INSTANCES.json --calibration IMAGES"


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    lines = ["# Performance", "", _HEAD, "", "## Summary", "", *summary(found), ""]
    for title, name, command, section in _SECTIONS:
        lines += [f"## {title}", "", f"    {command}", ""]
        lines += [*(section(found[name]) if name in found else ["Not measured yet."]), ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _latency(result: Result) -> Lines:
    stem = "../bench/results/run_latency"
    yield from latency.section(result, stem)
    yield _LOST
    yield ""
    yield f"Every strategy in every cell: [run_latency.md]({stem}.md)."


_SECTIONS = (
    (
        "Every strategy, over bandwidths and slow edges",
        "run_latency",
        f"splitpoint bench latency {_COCO} --json bench/results/run_latency.json",
        _latency,
    ),
    (
        "Adaptation",
        "adaptation",
        f"python -m bench.adaptation {_SERVED} --video VIDEO --plot docs/adaptation.svg",
        adaptation.section,
    ),
    (
        "Bytes of a split against pictures of equal AP",
        "wire_rate",
        f"python -m bench.rate.wire_rate {_COCO}",
        wire_rate.section,
    ),
    (
        "Bytes of a frame of video",
        "video_rate",
        "python -m bench.rate.video_rate --calibration IMAGES --videos VIDEO ...",
        video_rate.section,
    ),
    (
        "Networks of others",
        "networks",
        f"python -m bench.networks --models MODELS {_COCO}",
        networks.BENCH.section,
    ),
    (
        "The original's experiment, simulated",
        "autosplit",
        f"python -m bench.reproduce_autosplit --scale-sim {_COCO} --plot docs/autosplit.svg",
        autosplit.section,
    ),
    (
        "More edges",
        "many_edges",
        f"python -m bench.scale.many_edges {_SERVED}",
        many_edges.BENCH.section,
    ),
    (
        "An honest edge beside strangers",
        "strangers",
        f"python -m bench.scale.strangers {_SERVED}",
        strangers.BENCH.section,
    ),
)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    arguments.out.write_text(page(arguments.results))


if __name__ == "__main__":
    main()
