"""Time of a search by stage, with a cold cache and with results of earlier searches.

    python -m bench.micro.search_time --images DIR --annotations FILE --calibration DIR --json OUT

The same search three times with one cache: empty at first; once more; and for another link and
another limit on accuracy, where statistics, sensitivities, times and rounded weights are found but
another plan may have to be refined. The result names the machine, all options and what was found.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.harness import Bench, Lines, Result, add_coco_options, record, table
from common.link.link import parse_link
from common.progress import Stages
from search.bundling import search_to
from search.constraints import constraints
from search.prediction.devices import device_profile
from search.request import Request, SearchResult


def measure(arguments: argparse.Namespace, _stages: Stages) -> Result:
    """Measure the three searches."""
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            model=arguments.model,
            link=parse_link("3mbit/20ms"),
            device=device_profile("quarter-core"),
            calibration=arguments.calibration,
            evaluation=arguments.images,
            annotations=arguments.annotations,
            constraints=constraints(edge_memory=arguments.edge_memory),
            max_images=arguments.max_images,
            cache=Path(folder) / "cache",
        )
        asked = {
            "cold": request,
            "the same again": request,
            "another link and limit": replace(
                request,
                link=parse_link("1mbit/40ms"),
                constraints=constraints(edge_memory=arguments.edge_memory, max_drop=2.0),
            ),
        }
        runs = [_timed(name, each, Path(folder)) for name, each in asked.items()]
    return record(
        model=arguments.model,
        device=request.device.name,
        edge_memory=arguments.edge_memory,
        runs=runs,
    )


def section(result: Result) -> Lines:
    """Table of the runs."""
    return table(result["runs"], {"run": "{run}", "s": "{seconds:.0f}", "chosen:": "{chosen}"})


def _timed(name: str, request: Request, folder: Path) -> dict[str, Any]:
    with Stages() as stages:
        clock = _Clock(stages)
        start = time.perf_counter()
        found = search_to(folder / "bundle.zip", request, clock)
        seconds = time.perf_counter() - start
    return {
        "run": name,
        "link": str(request.link),
        "max_drop": request.max_drop,
        "seconds": seconds,
        "stages_s": clock.seconds(start + seconds),
        **_summary(found),
    }


def _summary(found: SearchResult) -> dict[str, Any]:
    best = found.kept[0]
    return {
        "chosen": best.candidate.name,
        "latency_ms": best.latency_ms,
        "accuracy": best.accuracy,
        "reference_accuracy": found.reference_accuracy,
        "cuts": found.cuts,
        "candidates": len(found.ranked),
        "measured": len(found.measured),
        "given_up_early": sum(j.judged_on < len(found.evaluation_images) for j in found.measured),
        "kept": len(found.kept),
        "calibration_images": found.calibration_images,
        "evaluation_images": len(found.evaluation_images),
    }


class _Clock:
    """Passes stages on and remembers when each began; a stage lasts until the next one."""

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._began: list[tuple[str, float]] = []

    def stage(self, title: str, /) -> Callable[..., None]:
        self._began.append((title, time.perf_counter()))
        return self._stages.stage(title)

    def seconds(self, end: float) -> dict[str, float]:
        """Seconds by stage; stages of the same title are added up."""
        total: dict[str, float] = {}
        ends = [began for _, began in self._began[1:]] + [end]
        for (title, began), until in zip(self._began, ends, strict=True):
            total[title] = total.get(title, 0.0) + until - began
        return total


def _options(parser: argparse.ArgumentParser) -> None:
    add_coco_options(parser, max_images=64)
    parser.add_argument("--model", default="yolov3-tiny", help="model of the zoo")
    parser.add_argument("--edge-memory", default="8MiB", help="memory limit on the edge")


BENCH = Bench(__doc__, "search_time", _options, measure, section)

if __name__ == "__main__":
    BENCH.main()
