"""Report of `bench.adaptation`: its section of the page, and a plot.

Targets are judged by their worst case.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench.harness import Lines, Result, Target, table

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def section(result: Result) -> Lines:
    """Section of the page."""
    share, machine = result["edge_share"], result["machine"]
    yield (
        f"{machine['cpu']}; edge at {share['asked']:g} of a core ({share['measured']:.2f} "
        f"measured); round trip {result['rtt_ms']:g} ms; TCP's congestion control "
        f"{result['congestion_control']}; {len(result['plans'])} plans. "
        "[feedback.md](feedback.md) describes the measurements."
    )
    yield ""
    yield from (target.line for target in targets(result))
    yield ""
    rows = [
        {
            "trace": name,
            "plan": plan,
            "runs": len(frames),
            "frames": sum(frames),
            "mean_ms": trace["mean_ms"][plan],
            "p90_ms": trace["p90_ms"][plan],
        }
        for name, trace in result.get("traces", {}).items()
        for plan, frames in trace["frames"].items()
    ]
    columns = {
        "trace": "{trace}",
        "plan:": "{plan}",
        "runs": "{runs}",
        "frames": "{frames}",
        "mean, ms": "{mean_ms:.0f}",
        "p90, ms": "{p90_ms:.0f}",
    }
    yield from table(rows, columns)
    yield ""
    yield "![A drive: the link, its estimate, and frame latencies](adaptation.svg)"


def targets(result: Result) -> Iterator[Target]:
    """Targets of the parts that were measured, each judged by the worst case."""
    for kind, part in result.get("predictions", {}).items():
        plans = part["plans"]
        for key, what, limit in (
            ("profile_error", "error of the profile alone at most 10 %", 0.10),
            ("learnt_error", f"error after {part['after']} frames at most 5 %", 0.05),
        ):
            worst, name = max((row[key], name) for name, row in plans.items())
            if key == "profile_error":
                # Single frames stray from their own median; a prediction cannot follow them there.
                median = max(row["profile_error_of_the_median"] for row in plans.values())
                name += f"; the median of every plan within {median:.1%}"
            else:
                name += f"; its own median, in hindsight, {plans[name]['hindsight_error']:.1%}"
            yield Target(f"{kind}, {what}", f"{worst:.1%}", name, worst <= limit)
        frames = sum(row["frames"] - part["after"] for row in plans.values())
        inside = sum((row["frames"] - part["after"]) * row["covered"] for row in plans.values())
        share = inside / frames
        what = f"{kind}, 95 % intervals hold 90 to 98 %"
        yield Target(what, f"{share:.1%}", f"of {frames} frames", 0.90 <= share <= 0.98)
    if steady := result.get("steady"):
        row = max(steady, key=lambda row: row["regret_mean"]["value"])
        regret = row["regret_mean"]
        shown = f"{regret['value']:.1%} [{regret['low']:.1%}, {regret['high']:.1%}]"
        where = f"at {row['mbit']:g} Mbit/s"
        yield Target("steady regret at most 3 %", shown, where, regret["value"] <= 0.03)
    if steps := result.get("steps"):
        row = max(steps, key=_lateness)
        shown = f"{row['frames']} frames, {row['seconds']:.2f} s"
        met = not _lateness(row)[0]
        yield Target("steps within 10 frames or 2 s", shown, f"to {row['to_mbit']:g} Mbit/s", met)
    if traces := result.get("traces"):
        name = max(traces, key=lambda name: traces[name]["regret_to_every_moment"])
        worst = traces[name]["regret_to_every_moment"]
        where = f"{name}; {_each(traces[name]['regrets'])} in single runs"
        yield Target("regret on traces at most 6 %", f"{worst:.1%}", where, worst <= 0.06)
    if load := result.get("load"):
        doubled = max(0, load["served"] - load["sent"] - load["rested"])
        wrong = f"{load['failed']} failed, {load['wrong']} wrong, {doubled} doubled"
        where = (
            f"{load['asked']} frames, {load['switches']} switches; {load['rested']} of them the "
            "edge took over from a late cloud"
        )
        met = not load["failed"] and not load["wrong"] and not doubled and load["switches"] >= 20
        yield Target("no frame failed, lost or doubled over 20 switches", wrong, where, met)


def _each(shares: Sequence[float]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


def plot(result: Result, path: Path) -> None:
    """Plot actual and estimated bandwidth over the drive, and the latency of every frame."""
    if "traces" not in result:
        return
    series = result["traces"]["drive"]["series"]
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


def _lateness(step: dict[str, Any]) -> tuple[bool, int]:
    """Whether the better plan was late, and the number of frames before it."""
    return step["frames"] > 10 and step["seconds"] > 2, step["frames"]
