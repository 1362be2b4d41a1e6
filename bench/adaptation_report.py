"""What `bench.adaptation` found, in lines and as a picture."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def report(result: dict[str, Any]) -> None:
    """The figures that were asked for."""
    console = Console()
    rows = [
        (kind, name, row)
        for kind, part in result.get("predictions", {}).items()
        for name, row in part["plans"].items()
    ]
    for kind, name, row in rows:
        console.print(
            f"{kind}, {name}: {row['latency_ms']:.1f} ms; off by {row['profile_error']:.1%} by the "
            f"profile ({row['profile_error_of_the_median']:.1%} the medians), "
            f"{row['learnt_error']:.1%} learnt; covered {row['covered']:.0%}",
            highlight=False,
        )
    for row in result.get("steady", ()):
        regret = row["regret_mean"]
        console.print(
            f"{row['mbit']:g} Mbit/s: {row['adaptive_mean_ms']:.1f} ms, best {row['best']} "
            f"{row['best_mean_ms']:.1f}: regret {regret['value']:.1%} "
            f"[{regret['low']:.1%}, {regret['high']:.1%}]; {row['chosen']}; "
            f"estimated {row['estimated_mbit'] or 0:.2f} Mbit/s",
            highlight=False,
        )
    for row in result.get("steps", ()):
        console.print(
            f"to {row['to_mbit']:g} Mbit/s: {row['better']} after {row['frames']} frames, "
            f"{row['seconds']:.2f} s",
            highlight=False,
        )
    for name, trace in result.get("traces", {}).items():
        console.print(
            f"{name}: regret {trace['regret_to_every_moment']:.1%} to every moment's best; "
            f"mean ms {trace['mean_ms']}; {trace['switches']} switches",
            highlight=False,
        )
    console.print(result.get("outage"), result.get("load"))


def plot(trace: dict[str, Any], path: Path) -> None:
    """Bandwidth over a trace as it was and as it was believed, and what every frame took."""
    series = trace["series"]
    at_s = [row["at_s"] for row in series]
    figure = Figure(figsize=(9, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(at_s, [row["mbit"] for row in series], color="#999999", label="the link")
    above.plot(at_s, [row["estimated_mbit"] for row in series], color="#222222", label="estimated")
    above.set_yscale("log")
    above.set_ylabel("uplink, Mbit/s")
    above.legend(loc="upper right", frameon=False)
    names = list(dict.fromkeys(row["plan"] for row in series))
    for name, colour in zip(names, _COLOURS, strict=False):
        rows = [row for row in series if row["plan"] == name]
        below.scatter(
            [row["at_s"] for row in rows],
            [row["latency_ms"] for row in rows],
            s=6,
            color=colour,
            label=name,
        )
    below.plot(at_s, [row["best_ms"] for row in series], color="#222222", lw=0.8, label="best plan")
    below.set_ylim(0, 2.5 * max(row["best_ms"] for row in series))
    below.set_ylabel("latency, ms")
    below.set_xlabel("seconds")
    below.legend(loc="upper right", frameon=False, ncols=2, fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
