"""Benchmark of the planner: predictions, steady links, steps, traces and switches under load.

    python -m bench.adaptation --bundle DIR --images DIR --video FILE [--plot FILE] [--quick]

A cloud and an edge in processes of their own, the edge slowed to a tenth of a core, a link of real
packets between two network namespaces (`bench.links.shaped`). Needs root and Linux.

| part | what is measured |
|---|---|
| profile | `splitpoint profile` of all sides, edges slow and not: the first predictions |
| predictions | every plan in turn: error of the profile alone and of the planner; 95 % intervals; |
| | on unrelated pictures, and on frames of a video; |
| | also with the whole core for the edge, which then is as steady as a machine of its own |
| steady | regret of the planner against every fixed plan, frame by frame in turn, by bandwidth |
| steps | frames and seconds until a better plan is in use after the bandwidth steps by four |
| traces | a drive and a drift: regret against the best plan at every moment, and fixed plans; |
| | three times each, in turn; the run of the median regret is drawn |
| load | two threads while plans switch: failed, wrong and doubled frames |

All other parts play the video, as a camera would.

The best plan at every moment of a trace is a bound for any planner: each plan's own median time on
either side, as measured, plus the time its bytes take at the trace's bandwidth then.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.adaptation.parts import load, on_trace, predictions, steady, steps
from bench.adaptation.report import plot, section
from bench.adaptation.scene import PILOT, WHOLE, Scene, video_frames
from bench.harness import Bench, Result, add_bundle_options, listed, record, spread, write
from bench.links.shaped import RTT_MS, link_of, shaped
from bench.processes import Service, profile_both
from bench.slow import slowed
from common.bundle.bundle import Bundle
from common.imaging.images import list_images
from common.progress import Stages
from edge.detector import find_plan

SHARE = 0.1


def _parts(scene: Scene, result: Result, *, quick: bool) -> dict[str, Callable[[], Any]]:
    """All parts, in order; steps use the results of predictions, traces those of steady links."""
    rounds, repeats = (12, 1) if quick else (80, 3)
    lengths = {"drive": 20, "drift": 20} if quick else {"drive": 60, "drift": 90}

    def traces() -> dict[str, Any]:
        fixed = [statistics.mode(row["best"] for row in result["steady"])]
        return {n: on_trace(scene, n, s, fixed, repeats) for n, s in lengths.items()}

    return {
        "predictions": lambda: {
            "pictures": predictions(scene, rounds, lambda k: k % scene.stills),
            "video": predictions(scene, rounds, scene.frame),
            "video, a whole core": predictions(scene, rounds, scene.frame, WHOLE),
        },
        "steady": lambda: steady(scene, 10 if quick else 40),
        "steps": lambda: steps(scene, 1 if quick else 4, result["predictions"]["video"]["plans"]),
        "traces": traces,
        "load": lambda: load(scene, 2 if quick else 20, 60 if quick else 600),
    }


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure all parts."""
    bundle = Bundle.open(arguments.bundle)
    names = arguments.plans or [plan.name for plan in bundle.plans.values()]
    plans = {d: bundle.plans[d] for d in (find_plan(bundle, name) for name in names)}
    images = spread(list_images(arguments.images), arguments.send)
    stills = len(images)
    result = record(
        bundle=bundle.digest.hex(),
        search=bundle.manifest.search.model_dump(mode="json"),
        plans=[plan.name for plan in plans.values()],
        images=[path.name for path in images],
        video={"file": arguments.video.name, "frames": arguments.video_frames},
        rtt_ms=RTT_MS,
        quick=arguments.quick,
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        slow = stack.enter_context(slowed(SHARE))
        result["edge_share"] = {"asked": slow.share, "measured": slow.measured}
        images += video_frames(arguments.video, arguments.video_frames, folder)
        progress, tables = stages.stage("profile"), folder / "tables.json"
        budget_s = 20.0 if arguments.quick else arguments.profile
        profile_both(arguments.bundle, {PILOT: slow.prefix, WHOLE: ()}, tables, budget_s)
        progress(1, 1)
        wire = stack.enter_context(shaped(link_of(3.0)))
        result["congestion_control"] = wire.congestion
        cloud = Service.cloud(
            arguments.bundle,
            folder / "cloud.log",
            *("--store", str(folder / "store.sqlite")),
            host=wire.cloud.address,
            prefix=wire.cloud.prefix,
        )
        stack.enter_context(cloud)
        scene = Scene(arguments.bundle, plans, images, stills, wire, cloud, slow, tables, stages)
        for name, part in _parts(scene, result, quick=arguments.quick).items():
            result[name] = part()
            write(result, arguments.json)  # a run that is cut off leaves what it has measured
    return result


def _options(parser: argparse.ArgumentParser) -> None:
    add_bundle_options(parser)
    parser.add_argument("--video", type=Path, required=True, help="video to play like a camera")
    parser.add_argument(
        "--video-frames", type=int, default=48, help="frames of the video, every fifth"
    )
    parser.add_argument("--send", type=int, default=24, help="pictures to send, spread evenly")
    parser.add_argument("--plans", type=listed(str), help="names of plans; default: all")
    parser.add_argument("--quick", action="store_true", help="a few minutes, for a first look")
    parser.add_argument("--profile", type=float, default=90.0, help="seconds to profile each side")


BENCH = Bench(__doc__, "adaptation", _options, measure, section, plot)

if __name__ == "__main__":
    BENCH.main()
