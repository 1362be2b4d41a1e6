"""Summary of all results, to be read in a minute: who wins where, by how much, and what missed."""

from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter

from bench.adaptation import report as adaptation
from bench.harness import Lines, Result, Target, table
from bench.latency import verdicts
from bench.latency.verdicts import Row
from bench.rate.video_rate import H264, JPEG

_SHARE = 0.25
"""Share of a core that examples are of."""
_SHOWN = {"split": "split", "cloud-only": "image", "edge-only": "edge"}


def summary(results: Mapping[str, Result]) -> Lines:
    """Section of the page; what was not measured is left out.

    Args:
        results: Results by name.
    """
    parts = {
        "run_latency": _latency,
        "adaptation": _adaptation,
        "wire_rate": _bytes,
        "video_rate": _video,
        "many_edges": _cloud,
    }
    known = {name: lines for name, lines in parts.items() if name in results}
    for name, lines in known.items():
        yield from lines(results[name])
    machines: dict[str, list[str]] = {}
    for name in known:
        machines.setdefault(results[name]["machine"]["cpu"], []).append(name)
    yield ""
    shown = (f"{cpu} ({', '.join(names)})" for cpu, names in machines.items())
    yield f"Measured on {'; '.join(shown)}."
    missed = [target for target in _targets(results) if not target.met]
    if missed:
        yield ""
        yield "Missed, by the worst case (details below):"
        yield ""
        yield from (f"- {target.what}: {target.worst.partition(';')[0]}" for target in missed)


def _latency(result: Result) -> Lines:
    mbits = sorted({row["mbit"] for row in result["cells"]})
    yield (
        "YOLOv3-tiny by real processes: a cloud, an edge slowed to a share of a core "
        f"({', '.join(result['shares'])}), a shaped link of {mbits[0]:g} to {mbits[-1]:g} Mbit/s "
        f"with a round trip of {result['rtt_ms']:g} ms, on {result['machine']['cores']} cores. "
        f"Latencies are medians of up to {result['frames']} frames, with 95 % intervals in "
        "brackets; only what loses at most one point of AP counts."
    )
    yield ""
    yield "The fastest: a split, an uploaded image, or the edge alone."
    yield ""
    rows: dict[tuple[str, float], Row] = {}
    for row in verdicts.verdicts(result):
        setting, share, limit = row["setting"], row["share"], result["memory"][row["setting"]]
        memory = "no limit" if limit is None else f"{limit / 2**20:g} MiB"
        where = {"memory": f"{setting}: {memory}", "core": f"{share:g}"}
        cells = rows.setdefault((setting, share), where)
        cells[row["mbit"]] = _SHOWN[verdicts.fastest_kind(result, row)]
    columns: dict[str, str | Callable[[Row], str]] = {
        "setting, memory on the edge": "{memory}",
        "core": "{core}",
    }
    columns |= {f"{mbit:g} Mbit/s:": itemgetter(mbit) for mbit in mbits}
    yield from table(rows.values(), columns)
    yield ""
    yield from _examples(result)


def _examples(result: Result) -> Lines:
    """Cells in which a split, an image and the edge alone win."""
    every = [row for row in verdicts.verdicts(result) if row["share"] == _SHARE]
    narrow = [row for row in every if row["setting"] == "B"]
    won = [r for r in narrow if verdicts.fastest_kind(result, r) == "split"]
    if won:
        cells = (
            f"{r['mbit']:g} Mbit/s: {r['adaptive_ms']:.0f} ms against {r['baseline_ms']:.0f} of "
            f"{r['baseline']}, {r['baseline_ratio']:.2f} x "
            f"[{r['baseline_low']:.2f}, {r['baseline_high']:.2f}]"
            for r in (won[0], won[-1])
        )
        yield (
            "- **A split wins** on thin links where memory is short; at "
            f"{_SHARE:g} of a core: {'; '.join(cells)}"
        )
    images = [r for r in narrow if verdicts.fastest_kind(result, r) == "cloud-only"]
    if images:
        first, worst = images[0], max(images, key=lambda row: row["ratio"])
        yield (
            f"- **An image wins** (JPEG or WebP) there from {first['mbit']:g} Mbit/s on; the "
            f"adaptive planner then takes at worst {worst['ratio']:.2f} x "
            f"[{worst['ratio_low']:.2f}, {worst['ratio_high']:.2f}] of the fastest other "
            f"({worst['mbit']:g} Mbit/s)"
        )
    alone = [row for row in every if verdicts.fastest_kind(result, row) == "edge-only"]
    if alone:
        yield (
            f"- **The edge alone wins** where it has memory for the whole network, up to "
            f"{alone[-1]['mbit']:g} Mbit/s: {min(r['best_ms'] for r in alone):.0f} to "
            f"{max(r['best_ms'] for r in alone):.0f} ms"
        )


def _adaptation(result: Result) -> Lines:
    worst = max(result["steady"], key=lambda row: row["regret_mean"]["value"])["regret_mean"]
    means = "; ".join(
        f"over a {name} {trace['mean_ms']['adaptive']:.0f} ms on average against "
        f"{min(ms for plan, ms in trace['mean_ms'].items() if plan != 'adaptive'):.0f} of the "
        "best fixed plan"
        for name, trace in result["traces"].items()
    )
    yield (
        f"- **Links that change** ({result['edge_share']['asked']:g} of a core): {means}. On "
        f"steady links planning costs at most {worst['value']:.1%} [{worst['low']:.1%}, "
        f"{worst['high']:.1%}] against the best fixed plan"
    )


def _bytes(result: Result) -> Lines:
    found = result["summary"]
    rates = found["bd_rate_percent"]
    near = [row for row in found["at_equal_ap"] if row["ap"] >= found["reference_ap"] - 3]
    best = min(near, key=lambda row: row["bytes"])
    yield (
        f"- **Bytes at equal AP**, single frames: {rates['adapted against jpeg']:.0f} % against "
        f"JPEG and {rates['adapted against webp']:.0f} % against WebP over the whole curve "
        f"(BD-rate, {len(result['evaluation_images'])} pictures); at {best['ap']:.1f} AP "
        f"{best['bytes']:,.0f} bytes against {min(best['jpeg'], best['webp']):,.0f}"
    )


def _video(result: Result) -> Lines:
    each = "; ".join(
        f"{name}: {row['after the frame before']['bytes']:,.0f} bytes a frame against "
        f"{row[H264]:,.0f} of H.264 and {row[JPEG]:,.0f} of JPEG"
        for name, row in result["videos"].items()
    )
    yield f"- **H.264 wins on video**, by bytes where frames come in sequence: {each}"


def _cloud(result: Result) -> Lines:
    most = {
        kind: max(row["frames_per_s"] for row in result["rows"] if row["kind"] == kind)
        for kind in result["plans"]
    }
    shown = ", ".join(f"{rate:.0f} frames/s by {kind}" for kind, rate in most.items())
    cores = result["machine"]["cores"]
    yield f"- **One cloud** of {cores} cores serves at most {shown}"


def _targets(results: Mapping[str, Result]) -> Iterator[Target]:
    if "run_latency" in results:
        yield from verdicts.targets(results["run_latency"])
    if "adaptation" in results:
        yield from adaptation.targets(results["adaptation"])
