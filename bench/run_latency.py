"""Latency of every strategy to run the network, over bandwidths and slow edges.

    splitpoint bench latency --images DIR --annotations FILE --calibration DIR --json OUT
    python -m bench.run_latency ...                # the same
    ... --quick                                    # two cells, once the plans are searched

Real processes and real packets: a cloud, a slowed edge (`bench.slow`), and two network namespaces
with a shaped wire between them (`bench.links.shaped`). That needs root and Linux; without, links
are emulated in the edge's process (`--emulate`) and only a whole core can be measured.

In every cell of the grid all strategies take turns, frame by frame (`bench.latency.cell`). Each is
a plan through the same edge and cloud, so only the decision differs; two are not, to compare with:
the network in floating point on the edge, and a plain FastAPI service (`bench.micro.plain_service`)
that takes JPEGs. A strategy that errs or has no plan is shown as such.

Two settings: A, no limit on the edge's memory; B, 4 MiB, which the whole network in int8 exceeds.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from bench.harness import Result, add_coco_options, listed, record, show, spread
from bench.latency.cell import measure_cell, reference_accuracy
from bench.latency.report import section, write_all
from bench.latency.stage import stage
from bench.latency.strategies import MBITS, MEMORY, SHARES, Cell, build, cells_of
from bench.links.shaped import RTT_MS, ShapedLink, can_shape, emulated, link_of, shaped
from common.bundle.bundle import Bundle
from common.errors import BundleError, SettingsError, SplitpointError
from common.imaging.images import list_images
from common.progress import Stages
from search.zoo.download import cache_folder

PROFILE_S, QUICK_PROFILE_S = 40.0, 8.0


def measure(arguments: argparse.Namespace, stages: Stages) -> Result:
    """Measure all cells."""
    bundle, strategies = _strategies(arguments, stages)
    images = spread(list_images(arguments.images), arguments.send)
    result = _described(arguments, bundle, strategies, images)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        first = link_of(arguments.mbits[0])
        real = None if arguments.emulate else stack.enter_context(shaped(first))
        progress, cells = stages.stage("measuring"), cells_of(arguments.shares, arguments.mbits)
        for share, mbits in _groups(arguments, real):
            wire = real or emulated(link_of(mbits[0]))
            result["congestion_control"] = wire.congestion
            profile_s = QUICK_PROFILE_S if arguments.quick else PROFILE_S
            with stage(wire, bundle, strategies, images, share, folder, profile_s) as running:
                result["shares"][f"{share:g}"] = {"measured": running.share}
                for mbit in mbits:
                    wire.change(link_of(mbit))
                    cell = Cell(share, mbit)
                    result["cells"] += measure_cell(
                        running, cell, arguments.frames, arguments.budget
                    )
                    # A run that is cut off leaves what it has measured.
                    arguments.json.write_text(json.dumps(result) + "\n")
                    progress(1 + cells.index(cell), len(cells))
    return result


def _groups(
    arguments: argparse.Namespace, real: ShapedLink | None
) -> Iterator[tuple[float, Sequence[float]]]:
    """Group bandwidths by the processes that serve them: all of a share, if the wire can change."""
    for share in arguments.shares:
        if real is not None:
            yield share, arguments.mbits
        else:
            yield from ((share, [mbit]) for mbit in arguments.mbits)


def _described(
    arguments: argparse.Namespace, bundle: Bundle, strategies: Result, images: Sequence[Path]
) -> Result:
    """A result without its measurements."""
    return record(
        bundle=bundle.digest.hex(),
        search=bundle.manifest.search.model_dump(mode="json"),
        plans={p.name: p.predicted.model_dump(mode="json") for p in bundle.plans.values()},
        kinds={p.name: p.kind for p in bundle.plans.values()},
        strategies=strategies,
        memory=MEMORY,
        reference_accuracy=reference_accuracy(bundle),
        images=[path.name for path in images],
        frames=arguments.frames,
        budget_s=arguments.budget,
        rtt_ms=RTT_MS,
        wire="emulated in the edge's process" if arguments.emulate else "relay",
        shares={},
        cells=[],
    )


def _strategies(arguments: argparse.Namespace, stages: Stages) -> tuple[Bundle, Result]:
    """Open the bundle of all strategies' plans; search for it if there is none yet."""
    folder: Path = arguments.strategies
    kept = folder.with_suffix(".json")
    try:
        known = Bundle.open(folder), json.loads(kept.read_text())
    except (BundleError, OSError, ValueError):
        pass  # none yet, or one that was cut off
    else:
        found = datetime.fromtimestamp(kept.stat().st_mtime).astimezone()
        stages.stage(f"taking plans found {found:%Y-%m-%d %H:%M}")(1, 1, f"from {folder}")
        return known
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The whole grid, so that a later run of more of it needs no other search.
    strategies = build(
        folder,
        calibration=arguments.calibration,
        evaluation=arguments.images,
        annotations=arguments.annotations,
        max_images=arguments.max_images,
        cache=cache_folder("search"),
        reporter=stages,
    )
    kept.write_text(json.dumps(strategies, indent=1))
    return Bundle.open(folder), strategies


def _options(parser: argparse.ArgumentParser) -> None:
    add_coco_options(parser)
    bundle = cache_folder("strategies") / "bundle"
    parser.add_argument("--strategies", type=Path, default=bundle, help="plans found earlier")
    parser.add_argument("--shares", type=listed(float), default=SHARES, help="cores of the edge")
    parser.add_argument("--mbits", type=listed(float), default=MBITS)
    parser.add_argument("--frames", type=int, default=40, help="of each strategy in each cell")
    parser.add_argument("--budget", type=float, default=16.0, help="seconds for each, at the most")
    parser.add_argument("--send", type=int, default=24, help="pictures to send, spread evenly")
    parser.add_argument("--emulate", action="store_true", help="links in the edge's process")
    parser.add_argument("--quick", action="store_true", help="two cells, few frames")
    parser.add_argument("--json", type=Path, required=True)


def _parsed(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("latency", description=__doc__.partition("\n")[0])
    _options(parser)
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.shares, arguments.mbits = (0.25,), (3.0, 16.0)
        arguments.frames, arguments.budget = 5, 1.0
    if not arguments.emulate and not can_shape():
        sys.stderr.write("links are emulated in the edge's process: shaping real ones needs root\n")
        arguments.emulate = True
    if arguments.emulate:
        arguments.shares = (1.0,)
    _check(arguments)
    return arguments


def _check(arguments: argparse.Namespace) -> None:
    """Validate the arguments before minutes have passed.

    Raises:
        SettingsError: If something cannot be measured.
    """
    for name, values, known in (
        ("--mbits", arguments.mbits, MBITS),
        ("--shares", arguments.shares, SHARES),
    ):
        if not values or set(values) - set(known):
            raise SettingsError(
                f"{name}: expected some of {', '.join(f'{each:g}' for each in known)}, "
                "which plans are searched for"
            )
    if not (arguments.frames > 0 and arguments.budget > 0 and arguments.send > 0):
        raise SettingsError("--frames, --budget and --send: expected positive numbers")


def main(words: Sequence[str] | None = None) -> None:
    """Measure, print and write.

    Raises:
        SplitpointError: If something cannot be measured, or measured honestly.
    """
    arguments = _parsed(words)
    with Stages() as stages:
        result = measure(arguments, stages)
    write_all(result, arguments.json)
    show(section(result, arguments.json.stem))


if __name__ == "__main__":
    try:
        main()
    except SplitpointError as error:
        sys.exit(f"error: {error}")
