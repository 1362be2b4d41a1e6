"""Effect of pauses on TCP: latency of messages that come close together, and after a rest.

    python -m bench.links.idle_check [--link 16mbit/20ms] [--json OUT]

A connection that has sent nothing for longer than its timeout, a fifth of a second or more, begins
again with a window of ten packets (RFC 6928, 14.6 KB): what is larger waits for another round trip.
Linux does so by default; `sysctl net.ipv4.tcp_slow_start_after_idle=0` keeps the window. Both are
measured over the same shaped link, in turn: milliseconds from sending until the other end has
answered.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.bootstrap import percentile
from bench.links.goodput import connected, round_trip_ms, served
from bench.links.shaped import SLOW_START_AFTER_IDLE, shaped
from bench.machine import machine
from common.link.link import parse_link
from common.version import __version__

SIZES = (5_000, 10_000, 20_000, 40_000, 60_000)
PAUSES_S = (0.05, 0.6)
HEAD = ("KB", "pause, s", "forgets, ms", "remembers, ms")
"""Headings of the columns of `by_size`."""
_RESULT = Path(__file__).parents[1] / "results" / "idle_check.json"
_ROUNDS, _WARM = 15, 4
_CHECK = (
    "import sys; from bench.links.idle_check import check; check(sys.argv[1], int(sys.argv[2]))"
)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--link", type=parse_link, default=parse_link("16mbit/20ms"))
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    with shaped(arguments.link) as wire, served(wire) as port:
        command = [*wire.edge.prefix, sys.executable, "-c", _CHECK, wire.cloud.address, port]
        rows = json.loads(subprocess.check_output(command, text=True))  # noqa: S603 - our own
    result = {
        "machine": machine(),
        "software_version": __version__,
        "uplink_bps": arguments.link.uplink_bps,
        "rtt_ms": arguments.link.rtt_ms,
        "rows": rows,
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    _show(rows)


def check(address: str, port: int) -> None:
    """Measure from this end, which has a network namespace of its own; prints rows."""
    took: dict[tuple[float, int, bool], list[float]] = {}
    for _ in range(_ROUNDS):
        for forgets in (True, False):
            SLOW_START_AFTER_IDLE.write_text(f"{forgets:d}")
            with connected(address, port) as link:
                for _ in range(_WARM):
                    round_trip_ms(link, max(SIZES))
                for pause_s in PAUSES_S:
                    for size in SIZES:
                        time.sleep(pause_s)
                        ms = round_trip_ms(link, size)
                        took.setdefault((pause_s, size, forgets), []).append(ms)
    rows = [
        {
            "pause_s": pause_s,
            "size_bytes": size,
            "forgets": forgets,
            "ms": percentile(np.array(each), 50),
        }
        for (pause_s, size, forgets), each in took.items()
    ]
    print(json.dumps(rows))  # noqa: T201 - for the parent process


def by_size(rows: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One line for every size and pause: latency with the window forgotten, and with it kept."""
    found = {(row["size_bytes"], row["pause_s"], row["forgets"]): row["ms"] for row in rows}
    return [
        (
            f"{size / 1e3:g}",
            f"{pause_s:g}",
            *(
                f"{ms['value']:.0f} [{ms['low']:.0f}, {ms['high']:.0f}]"
                for ms in (found[size, pause_s, True], found[size, pause_s, False])
            ),
        )
        for size in SIZES
        for pause_s in PAUSES_S
    ]


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table(title="until the other end has answered: median, 95 % interval")
    for column in HEAD:
        table.add_column(column, justify="right")
    for line in by_size(rows):
        table.add_row(*line)
    Console().print(table)


if __name__ == "__main__":
    main()
