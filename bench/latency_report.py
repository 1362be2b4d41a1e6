"""What `bench.run_latency` found: tables, CSV, pictures, and docs/performance.md.

result (JSON) -> CSV, one row per cell and strategy
              -> Markdown, with every target that was met or missed
              -> plots: latency over bandwidth, stages, accuracy over bytes
"""

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

ADAPTIVE, FIXED = "Splitpoint, adaptive", "Splitpoint, fixed plan"
OURS = (ADAPTIVE, FIXED)
WITHIN = 1.0
"""Points of AP that a rival may lose and still be one."""
SLACK = 1.03
_COLUMNS = ("p50_ms", "p90_ms", "p99_ms")
_STAGES = {
    "preprocess": "#bbbbbb",
    "head": "#4477aa",
    "encode": "#66ccee",
    "uplink": "#ee6677",
    "queue": "#dddddd",
    "decode": "#ccbb44",
    "tail": "#228833",
    "postprocess": "#aa3377",
    "downlink": "#ffaabb",
    "other": "#999999",
}
_COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#aa3377", "#bbbbbb", "#999933", "#882255")


Row = dict[str, Any]


def rows_of(result: dict[str, Any], share: float, setting: str) -> dict[float, list[Row]]:
    """Measured rows of a share and setting by bandwidth."""
    found: dict[float, list[Row]] = {}
    for row in result["cells"]:
        if row["share"] == share and setting in row["settings"] and "p50_ms" in row:
            found.setdefault(row["mbit"], []).append(row)
    return found


def rivals(rows: Sequence[Row], reference: float) -> list[Row]:
    """Strategies that are not ours, answered every frame and keep the accuracy; fastest first."""
    able = [
        row
        for row in rows
        if row["strategy"] not in OURS
        and not row["failed"]
        and row["accuracy"] is not None
        and row["accuracy"] >= reference - WITHIN
    ]
    return sorted(able, key=lambda row: row["p50_ms"]["value"])


def ours(rows: Sequence[Row], name: str = ADAPTIVE) -> Row | None:
    """Our own row."""
    return next((row for row in rows if row["strategy"] == name), None)


def verdicts(result: dict[str, Any]) -> Iterator[Row]:
    """Our adaptive planner beside the best rival, for every cell and setting."""
    reference = result["reference_accuracy"]
    for share in _shares(result):
        for setting in result["memory"]:
            for mbit, rows in sorted(rows_of(result, share, setting).items()):
                mine, others = ours(rows), rivals(rows, reference)
                if mine is None or not others:
                    continue
                best = others[0]
                uploads = [r for r in others if r["strategy"] in result["who"]["uploads"]]
                least = min((r["uplink_bytes"] for r in uploads), default=None)
                sent = mine["uplink_bytes"]
                yield {
                    "share": share,
                    "setting": setting,
                    "mbit": mbit,
                    "adaptive_ms": mine["p50_ms"]["value"],
                    "best": best["strategy"],
                    "best_ms": best["p50_ms"]["value"],
                    "ratio": mine["p50_ms"]["value"] / best["p50_ms"]["value"],
                    "bytes_ratio": None if least is None or not sent else least / sent,
                    "plans": mine["plans"],
                    "accuracy": mine["accuracy"],
                }


def write_all(result: dict[str, Any], path: Path) -> None:
    """The JSON, and beside it CSV, Markdown and pictures."""
    path.write_text(json.dumps(result, indent=1) + "\n")
    write_csv(result, path.with_suffix(".csv"))
    for share in _shares(result):
        plot_latency(result, share, path.with_name(f"{path.stem}-{share:g}.png"))
    plot_stages(result, path.with_name(f"{path.stem}-stages.png"))
    plot_accuracy(result, path.with_name(f"{path.stem}-accuracy.png"))
    path.with_suffix(".md").write_text(markdown(result, path.stem))


def write_csv(result: dict[str, Any], path: Path) -> None:
    """One row for each cell and strategy."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["share", "mbit", "strategy", "settings", "plan", "frames", "failed"]
        spread = [f"{c}_{end}" for c in _COLUMNS for end in ("value", "low", "high")]
        rest = ["uplink_bytes", "edge_cpu_ms", "cloud_cpu_ms", "accuracy", "infeasible"]
        writer.writerow([*head, *spread, *rest])
        for row in result["cells"]:
            cells = [row.get(name) for name in head]
            cells += [row.get(c, {}).get(e) for c in _COLUMNS for e in ("value", "low", "high")]
            writer.writerow([*cells, *(row.get(name) for name in rest)])


def markdown(result: dict[str, Any], stem: str) -> str:
    """The whole report."""
    lines = ["# Performance", "", *_setup(result), ""]
    for share in _shares(result):
        for setting, memory in result["memory"].items():
            limit = "no limit on memory" if memory is None else f"{memory / 2**20:g} MiB of memory"
            lines += [f"## {share:g} of a core, setting {setting}: {limit}", ""]
            lines += [*_grid_table(result, share, setting), ""]
        lines += [f"![Latency over bandwidth]({stem}-{share:g}.png)", ""]
    lines += ["## Against the best rival", "", *_verdict_table(result), ""]
    lines += ["## Work on either side", "", *_cpu_table(result), ""]
    lines += [f"![Stages]({stem}-stages.png)", "", f"![Accuracy]({stem}-accuracy.png)", ""]
    return "\n".join(lines)


def _setup(result: dict[str, Any]) -> list[str]:
    made, images = result["machine"], len(result["images"])
    shares = ", ".join(f"{s} ({v['measured']:.2f} measured)" for s, v in result["shares"].items())
    words = (
        f"{made['cpu']}, {made['cores']} cores, {made['system']}; commit {result['commit']}; "
        f"edge at {shares} of a core; round trip {result['rtt_ms']:g} ms; up to "
        f"{result['frames']} frames of each strategy in each cell, in turn, over {images} "
        "pictures. Medians in ms with bootstrap 95 % intervals; AP on all evaluation pictures, "
        f"{result['reference_accuracy']:.1f} in floating point."
    )
    return ["Generated by `python -m bench.run_latency`; nothing here is typed.", "", words]


def _grid_table(result: dict[str, Any], share: float, setting: str) -> list[str]:
    by_mbit = rows_of(result, share, setting)
    mbits = sorted(by_mbit)
    names = list(dict.fromkeys(row["strategy"] for rows in by_mbit.values() for row in rows))
    lines = ["| strategy | AP | " + " | ".join(f"{mbit:g} Mbit/s" for mbit in mbits) + " |"]
    lines.append("|---|--:|" + "--:|" * len(mbits))
    for name in names:
        cells, accuracies = [], []
        for mbit in mbits:
            row = next((r for r in by_mbit[mbit] if r["strategy"] == name), None)
            if row is None:
                cells.append("none")
                continue
            best = min(r["p50_ms"]["value"] for r in by_mbit[mbit])
            ms = row["p50_ms"]
            text = f"{ms['value']:.0f} [{ms['low']:.0f}, {ms['high']:.0f}]"
            text += f" ({row['failed']} failed)" if row["failed"] else ""
            cells.append(f"**{text}**" if ms["value"] == best else text)
            accuracies.append(row["accuracy"])
        known = [a for a in accuracies if a is not None]
        span = "" if not known else f"{min(known):.1f}"
        span += f" to {max(known):.1f}" if known and max(known) - min(known) >= 0.1 else ""
        lines.append(f"| {name} | {span} | " + " | ".join(cells) + " |")
    return lines


def _verdict_table(result: dict[str, Any]) -> list[str]:
    lines = [
        f"A rival fits the setting and loses {WITHIN:g} AP at most; bytes against its codecs.",
        "",
        "| core | setting | Mbit/s | adaptive | best rival | ratio | target | fewer bytes | plan |",
        "|--:|---|--:|--:|---|--:|---|--:|---|",
    ]
    for row in verdicts(result):
        met = "met" if row["ratio"] <= SLACK else "missed"
        fewer = "" if row["bytes_ratio"] is None else f"{row['bytes_ratio']:.1f} x"
        plan = max(row["plans"], key=row["plans"].__getitem__)
        lines.append(
            f"| {row['share']:g} | {row['setting']} | {row['mbit']:g} | {row['adaptive_ms']:.0f} | "
            f"{row['best']}, {row['best_ms']:.0f} | {row['ratio']:.2f} | {met} | {fewer} | {plan} |"
        )
    return lines


def _cpu_table(result: dict[str, Any]) -> list[str]:
    lines = [
        "Mean CPU time for a frame, over all bandwidths, in ms.",
        "",
        "| core | strategy | edge | cloud |",
        "|--:|---|--:|--:|",
    ]
    for share in _shares(result):
        by_name: dict[str, list[Row]] = {}
        for row in result["cells"]:
            if row["share"] == share and "p50_ms" in row:
                by_name.setdefault(row["strategy"], []).append(row)
        for name, rows in by_name.items():
            edge = sum(row["edge_cpu_ms"] for row in rows) / len(rows)
            cloud = sum(row["cloud_cpu_ms"] for row in rows) / len(rows)
            lines.append(f"| {share:g} | {name} | {edge:.1f} | {cloud:.1f} |")
    return lines


def print_table(result: dict[str, Any]) -> None:
    """The verdicts, on the terminal."""
    table = Table("core", "setting", "Mbit/s", "adaptive ms", "best rival", "ms", "ratio", "plan")
    for row in verdicts(result):
        plan = max(row["plans"], key=row["plans"].__getitem__)
        numbers = (f"{row['share']:g}", row["setting"], f"{row['mbit']:g}")
        times = (f"{row['adaptive_ms']:.0f}", row["best"], f"{row['best_ms']:.0f}")
        table.add_row(*numbers, *times, f"{row['ratio']:.2f}", plan)
    Console().print(table)


def plot_latency(result: dict[str, Any], share: float, path: Path) -> None:
    """Median latency over bandwidth, both settings, the winner's envelope behind."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(result["memory"]), sharey=True)
    for axis, (setting, memory) in zip(axes, result["memory"].items(), strict=True):
        by_mbit = rows_of(result, share, setting)
        mbits = sorted(by_mbit)
        names = list(dict.fromkeys(r["strategy"] for rows in by_mbit.values() for r in rows))
        for number, name in enumerate(names):
            points = [
                (mbit, row["p50_ms"]["value"])
                for mbit in mbits
                for row in by_mbit[mbit]
                if row["strategy"] == name
            ]
            mine = name == ADAPTIVE
            axis.plot(
                *zip(*points, strict=True),
                label=name,
                color="#ee6677" if mine else _COLOURS[number % len(_COLOURS)],
                lw=2.5 if mine else 1.0,
                ls="-" if mine else ("-", "--", ":")[number // len(_COLOURS) % 3],
                zorder=3 if mine else 2,
            )
        best = [min(r["p50_ms"]["value"] for r in by_mbit[mbit]) for mbit in mbits]
        axis.plot(mbits, best, color="#dddddd", lw=8, zorder=1, label="the fastest")
        limit = "no limit" if memory is None else f"{memory / 2**20:g} MiB"
        axis.set_title(f"{share:g} of a core, {limit} on the edge")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xlabel("uplink, Mbit/s")
    axes[0].set_ylabel("median latency, ms")
    axes[-1].legend(fontsize="x-small", frameon=False, loc="upper right")
    figure.savefig(path, dpi=110)


def plot_stages(result: dict[str, Any], path: Path) -> None:
    """Where the time goes, strategy by strategy, in one cell of each share."""
    shares = _shares(result)
    figure = Figure(figsize=(11, 3.6 * len(shares)), layout="constrained")
    axes = figure.subplots(len(shares), 1, squeeze=False)[:, 0]
    for axis, share in zip(axes, shares, strict=True):
        rows = [r for r in result["cells"] if r["share"] == share and r.get("stages_ms")]
        mbit = min({row["mbit"] for row in rows}, key=lambda each: abs(each - 3.0))
        rows = [row for row in rows if row["mbit"] == mbit]
        rows.sort(key=lambda row: -row["p50_ms"]["value"])
        labels = [f"{row['strategy']} ({row['settings']})" for row in rows]
        left = [0.0] * len(rows)
        for stage, colour in _STAGES.items():
            widths = [row["stages_ms"].get(stage, 0.0) for row in rows]
            axis.barh(labels, widths, left=left, color=colour, label=stage)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_xlim(0, 3 * min(row["p50_ms"]["value"] for row in rows))
        axis.set_title(f"{share:g} of a core, {mbit:g} Mbit/s")
        axis.set_xlabel("ms")
    axes[0].legend(fontsize="x-small", frameon=False, ncols=2, loc="upper right")
    figure.savefig(path, dpi=110)


def plot_accuracy(result: dict[str, Any], path: Path) -> None:
    """Accuracy over bytes of every plan."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axis = figure.subplots()
    for kind, colour in (("cloud-only", "#4477aa"), ("split", "#ee6677"), ("edge-only", "#228833")):
        plans = [p for name, p in result["plans"].items() if result["kinds"][name] == kind]
        sent = [max(1.0, plan["uplink_bytes"]) for plan in plans]
        axis.scatter(sent, [plan["accuracy"] for plan in plans], color=colour, label=kind)
    axis.axhline(result["reference_accuracy"], color="#222222", lw=0.8, label="floating point")
    axis.set_xscale("log")
    axis.set_xlabel("bytes up for a frame")
    axis.set_ylabel("AP")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _shares(result: dict[str, Any]) -> list[float]:
    return sorted({row["share"] for row in result["cells"]}, reverse=True)
