"""Generator of docs/performance.md from the committed results: no figure in it is typed.

    python -m bench.performance [--results bench/results] [--out docs/performance.md]

Every section is made of one JSON of `bench/results` and names the command that writes it; a section
whose result is missing says so.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.adaptation import report as adaptation_report
from bench.latency import report as latency_report
from bench.latency import verdicts as latency_verdicts
from bench.links import idle_check
from bench.scale import strangers
from bench.targets import Target

ROOT = Path(__file__).parents[1]
RESULTS, OUT = ROOT / "bench" / "results", ROOT / "docs" / "performance.md"
_HEAD = (
    "Made by `python -m bench.performance` from the results in `bench/results`; no figure here is "
    "typed. Times are of one shared machine: compare ratios, not milliseconds."
)
_DATA = "--images IMAGES --annotations INSTANCES.json --calibration IMAGES"
_ADAPTATION = (
    "python -m bench.adaptation --bundle BUNDLE --images IMAGES --video VIDEO "
    "--json bench/results/adaptation.json --plot docs/adaptation.svg"
)

_LOST = (
    "Why points are lost. One reason: the planner's stream has its turn once a round, while fixed "
    "plans share one: TCP has forgotten its window by then, and a picture waits for a round trip "
    "more (see what TCP forgets, below; links of these benches keep windows since this run). The "
    "rest is not explained cell by cell; how much is noise, the same plan under two names shows. "
    "Where the link is quick for the edge, pictures win: the head takes longer than it saves on "
    "the wire, so the planner sends pictures, and their bytes. The cloud's time is the tail's: "
    "behind this cut it is still most of the network, and a later cut takes the edge longer."
)

Lines = Iterable[str]


def page(results: Path = RESULTS) -> str:
    """The whole page."""
    lines = ["# Performance", "", _HEAD, ""]
    for title, name, command, section in _SECTIONS:
        lines += [f"## {title}", "", f"    {command}", ""]
        path = results / f"{name}.json"
        if path.exists():
            lines += [*section(json.loads(path.read_text())), ""]
        else:
            lines += ["Not measured yet.", ""]
    return "\n".join(lines)


def _latency(result: dict[str, Any]) -> Lines:
    stem = "../bench/results/run_latency"
    yield from latency_report.setup(result)[2:]
    yield ""
    yield from _targets(latency_verdicts.targets(result))
    yield ""
    yield _LOST
    yield ""
    for share in latency_verdicts.shares(result):
        yield f"![Latency over bandwidth, {share:g} of a core]({stem}-{share:g}.png)"
        yield ""
    yield from latency_report.verdict_table(result)
    yield ""
    yield from latency_report.planning(result)
    yield ""
    yield f"Every strategy in every cell: [run_latency.md]({stem}.md)."
    yield ""
    yield from latency_report.work_table(result)
    yield ""
    yield f"![Where the time goes]({stem}-stages.png)"
    yield ""
    yield f"![Accuracy over bytes]({stem}-accuracy.png)"
    if result["traces"]:
        yield ""
        yield from latency_report.trace_table(result)


def _adaptation(result: dict[str, Any]) -> Lines:
    share, machine = result["edge_share"], result["machine"]
    yield (
        f"{machine['cpu']}; edge at {share['asked']:g} of a core ({share['measured']:.2f} "
        f"measured); round trip {result['rtt_ms']:g} ms; TCP's congestion control "
        f"{result['congestion_control']}; {len(result['plans'])} plans. "
        "[feedback.md](feedback.md) describes the measurements."
    )
    yield ""
    yield from _targets(adaptation_report.targets(result))
    yield ""
    yield from _table(
        ("trace", "plan", "runs", "frames", "mean, ms", "p90, ms"),
        (
            (
                name,
                plan,
                str(len(frames)),
                str(sum(frames)),
                f"{trace['mean_ms'][plan]:.0f}",
                f"{trace['p90_ms'][plan]:.0f}",
            )
            for name, trace in result["traces"].items()
            for plan, frames in trace["frames"].items()
        ),
    )
    yield ""
    yield "![A drive: the link, its estimate, and frame latencies](adaptation.svg)"


def _parts(result: dict[str, Any]) -> Lines:
    yield from _table(
        ("part", "plan", "median, us", "95 % interval", "floor", "floor, us", "ratio", ""),
        (
            (
                row["part"],
                row["plan"] or "",
                f"{row['median_us']:,.0f}",
                f"{row['low_us']:,.0f} to {row['high_us']:,.0f}",
                row["floor"] or "",
                "" if row["floor_us"] is None else f"{row['floor_us']:,.1f}",
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                row["note"] or "",
            )
            for row in result["rows"]
        ),
    )


def _scaling(result: dict[str, Any]) -> Lines:
    edges, search = result["edges"], result["search"]
    sent = ", ".join(
        f"{way}: {name}, {edges['frame_bytes'][way]:,} bytes"
        for way, name in edges["plans"].items()
    )
    yield f"Streams to one cloud, each with one frame in flight, on loopback. {sent}."
    yield ""
    yield from _table(
        ("streams", "way", "frames/s", "p50, ms", "p99, ms", "cloud CPU, ms", "MiB", "failed"),
        (
            (
                str(row["streams"]),
                row["way"],
                f"{row['frames_per_s']:.1f}",
                f"{row['p50_ms']:.0f}",
                f"{row['p99_ms']:.0f}",
                f"{row['cloud_cpu_ms']:.1f}",
                f"{row['cloud_resident_mib']:.0f}",
                str(row["failed"]),
            )
            for row in edges["rows"]
        ),
    )
    yield ""
    yield (
        "Stages of a search that depend on a network's structure alone, with random weights, in "
        "seconds."
    )
    yield ""
    yield from _table(
        ("network", "convolutions", "cuts", "read", "enumerate", "min-cut (DADS)", "exact widths"),
        (
            (
                row["network"],
                str(row["convolutions"]),
                str(row["cuts"]),
                f"{row['read_s']:.2f}",
                f"{row['cuts_s']:.4f}",
                f"{row['dads_s']:.4f}",
                f"{row['allocation_s']:.3f}",
            )
            for row in search["rows"]
        ),
    )


def _strangers(result: dict[str, Any]) -> Lines:
    yield (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, which cloud, edge and "
        f"strangers share. {result['frames']} frames of one edge by {result['plan']}, one at a "
        "time, in turns with each kind of stranger; in brackets the ratio to the edge alone in the "
        "same run. What strangers met: a status, how a stream or connection ended, or how many "
        "left."
    )
    yield ""
    yield from _table(strangers.HEAD, strangers.by_kind(result["rows"]))


def _links(result: dict[str, Any]) -> Lines:
    yield from _table(
        ("asked", "wire", "up, Mbit/s", "down, Mbit/s", "round trip, ms"),
        (
            (
                row["link"],
                row["wire"],
                f"{row['measured']['uplink_bps'] / 1e6:.2f}",
                f"{row['measured']['downlink_bps'] / 1e6:.2f}",
                f"{row['measured']['rtt_ms']:.1f}",
            )
            for row in result["rows"]
        ),
    )


def _idle(result: dict[str, Any]) -> Lines:
    mbit, rtt = result["uplink_bps"] / 1e6, result["rtt_ms"]
    yield (
        f"Milliseconds until the other end has answered a message, over {mbit:g} Mbit/s, round "
        f"trip {rtt:g} ms: medians with 95 % intervals. Linux forgets a connection's window "
        "when nothing was sent for longer than its timeout, and then sends ten packets (14.6 KB) "
        "before it waits; `sysctl net.ipv4.tcp_slow_start_after_idle=0` at the edge keeps it."
    )
    yield ""
    yield from _table(idle_check.HEAD, idle_check.by_size(result["rows"]))


def _slow(result: dict[str, Any]) -> Lines:
    yield (
        f"What work takes at {result['share']:g} of a core, in ms: by short freezes, as edges are "
        "slowed here, and by a CPU quota, which bends short times."
    )
    yield ""
    yield from _table(
        ("work at full speed", "in proportion", "freezes, p50", "p90", "quota, p50", "p90"),
        (
            (
                f"{row['work_ms']:g}",
                f"{row['work_ms'] / result['share']:g}",
                *(
                    f"{row[by][at]:.1f}"
                    for by in ("freezes", "quota")
                    for at in ("p50_ms", "p90_ms")
                ),
            )
            for row in result["rows"]
        ),
    )


def _targets(targets: Iterable[Target]) -> Lines:
    return (f"- {target.line}" for target in targets)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Lines:
    yield "| " + " | ".join(head) + " |"
    yield "|---|" + "--:|" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


_SECTIONS: Sequence[tuple[str, str, str, Callable[[dict[str, Any]], Lines]]] = (
    (
        "Every way to run it, over bandwidths and slow edges",
        "run_latency",
        f"splitpoint bench latency {_DATA} --json bench/results/run_latency.json",
        _latency,
    ),
    (
        "Adaptation",
        "adaptation",
        _ADAPTATION,
        _adaptation,
    ),
    (
        "Parts against their floors",
        "parts",
        "python -m bench.micro.parts --bundle BUNDLE --images IMAGES",
        _parts,
    ),
    (
        "More edges, larger networks",
        "scaling",
        "python -m bench.scale.report --bundle BUNDLE --images IMAGES",
        _scaling,
    ),
    (
        "An honest edge beside strangers",
        "strangers",
        "python -m bench.scale.strangers --bundle BUNDLE --images IMAGES",
        _strangers,
    ),
    (
        "Are links what they are asked to be?",
        "link_check",
        "python -m bench.links.link_check",
        _links,
    ),
    (
        "What TCP forgets over a pause",
        "idle_check",
        "python -m bench.links.idle_check",
        _idle,
    ),
    ("Is a slow edge slow in proportion?", "slow_check", "python -m bench.slow_check", _slow),
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
