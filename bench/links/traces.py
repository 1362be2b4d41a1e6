"""Traces of links that change, for benches and for `splitpoint edge --link`: the CSVs of traces/.

    python -m bench.links.traces [--out DIR]

    step     6 Mbit/s, down to a quarter of it after 20 s, up again after 40 s, and so on
    drive    a drive through a city on LTE: the log of the bandwidth drifts as an AR(1) process,
             between 0.6 and 25 Mbit/s in steps of 100 to 500 ms, with short fades; round trips of
             30 to 80 ms
    outage   3 Mbit/s, with 5 s of nothing after 12 s of 30
    drift    a slow sine of the log of the bandwidth between 0.8 and 12 Mbit/s, 90 s

All are made of formulas and seeded noise, none is a recording; all are cyclic.
"""

import argparse
import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from bench.links.shaped import RTT_MS, ShapedLink, link_of
from common.link.link import Link, LinkTrace
from common.link.trace import to_csv

FOLDER = Path(__file__).parents[1] / "traces"

_DRIVE_SEED = 7
_DRIVE_S, _DRIVE_MBIT = 120.0, (0.6, 25.0)
_DRIVE_MEAN_MBIT = 5.0
# Log of the bandwidth: time constant of its autocorrelation, and its standard deviation.
_DRIVE_MEMORY_S, _DRIVE_SPREAD = 8.0, 0.9
_FADES_PER_S, _FADE_S, _FADE = 0.05, (0.3, 1.5), 0.2


def step() -> LinkTrace:
    """Step down to a quarter of the bandwidth, and back."""
    fast, slow = link_of(6.0), link_of(1.5)
    return LinkTrace(((0.0, fast), (20.0, slow), (40.0, fast)), 60.0)


def outage() -> LinkTrace:
    """Outage of five seconds on a 3 Mbit/s link."""
    link = link_of(3.0)
    return LinkTrace(((0.0, link), (12.0, None), (17.0, link)), 30.0)


def drift(seconds: float = 90.0, every_s: float = 0.5) -> LinkTrace:
    """One slow swing of the bandwidth."""
    low, high = math.log(0.8), math.log(12.0)

    def link(at_s: float) -> Link:
        swing = math.sin(2 * math.pi * at_s / seconds)
        return _link((low + high) / 2 + swing * (high - low) / 2, RTT_MS)

    times = [every_s * number for number in range(int(seconds / every_s))]
    return LinkTrace(tuple((at_s, link(at_s)) for at_s in times), seconds)


def drive(seed: int = _DRIVE_SEED) -> LinkTrace:
    """Drive through a city on LTE; each seed gives another one."""
    rng = np.random.default_rng(seed)
    low, high = map(math.log, _DRIVE_MBIT)
    mean = math.log(_DRIVE_MEAN_MBIT)
    strays, fade_until_s, rtt_ms = 0.0, 0.0, 45.0
    steps, at_s = [], 0.0
    while at_s < _DRIVE_S:
        steps.append((at_s, _link(min(high, max(low, mean + strays)), rtt_ms)))
        gap_s = round(rng.uniform(0.1, 0.5), 3)
        keeps = math.exp(-gap_s / _DRIVE_MEMORY_S)
        noise = _DRIVE_SPREAD * math.sqrt(1 - keeps**2)
        at_s = round(at_s + gap_s, 3)
        strays = keeps * strays + noise * rng.standard_normal()
        rtt_ms = min(80.0, max(30.0, 45 + 0.8 * (rtt_ms - 45) + 6 * rng.standard_normal()))
        if at_s >= fade_until_s and rng.random() < _FADES_PER_S * gap_s:
            fade_until_s = at_s + rng.uniform(*_FADE_S)
        mean = math.log(_DRIVE_MEAN_MBIT * (_FADE if at_s < fade_until_s else 1.0))
    return LinkTrace(tuple(steps), _DRIVE_S)


TRACES: Mapping[str, Callable[[], LinkTrace]] = MappingProxyType(
    {"step": step, "drive": drive, "outage": outage, "drift": drift}
)


@contextlib.contextmanager
def replayed(wire: ShapedLink, trace: LinkTrace) -> Iterator[float]:
    """Let a wire follow a trace; gives the start by `time.monotonic`.

    Afterwards the wire has the conditions of the trace's beginning.
    """
    ended, started_s = threading.Event(), time.monotonic()

    def play() -> None:
        while not ended.is_set():
            link, until_s = trace.piece(time.monotonic() - started_s)
            wire.change(link)
            ended.wait(max(0.0, until_s - (time.monotonic() - started_s)))

    player = threading.Thread(target=play, name="trace")
    player.start()
    try:
        yield started_s
    finally:
        ended.set()
        player.join()
        wire.change(trace.at(0.0))


def main() -> None:
    """Write all traces as CSV files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the CSV files")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in TRACES.items():
        (folder / f"{name}.csv").write_text(to_csv(make()))


def _link(log_mbit: float, rtt_ms: float) -> Link:
    """Symmetric link, with rate and round trip rounded for the CSV file."""
    rate_bps = round(math.exp(log_mbit) * 1e3) * 1e3
    return Link(rate_bps, rate_bps, round(rtt_ms, 1))


if __name__ == "__main__":
    main()
