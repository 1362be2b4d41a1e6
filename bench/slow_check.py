"""Check that a slow edge is slow in proportion: time of work by freezes and by a CPU quota.

    python -m bench.slow_check [--share 0.1] [--json OUT]

Work is a loop of so many milliseconds at full speed, after a pause of 30 to 70 ms, as between
frames. In proportion, 2 ms take 20 at a tenth. Freezes are those of `bench.slow`; the quota is that
of cgroups (cpu.cfs_quota_us, cpu.max) over periods of 10 ms, which `docker run --cpus` sets too.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.machine import machine
from bench.slow import slowed
from common.errors import SplitpointError
from common.version import __version__

WORK_MS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_RESULT = Path(__file__).parent / "results" / "slow_check.json"
_ROUNDS, _REPEATS = 2, 20
_PERIOD_US = 10_000
_CPU = Path("/sys/fs/cgroup/cpu")
_UNIFIED = Path("/sys/fs/cgroup")
_ENTER = 'echo $$ > "$0" && exec "$@"'
_WORK = """
import json, sys, time
loops, works, repeats = float(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
def work(n):
    for _ in range(n): pass
took = {str(ms): [] for ms in works}
for k in range(repeats):
    for ms in works:
        time.sleep(0.03 + 0.0037 * (k % 11))
        start = time.perf_counter()
        work(int(loops * ms))
        took[str(ms)].append((time.perf_counter() - start) * 1e3)
print(json.dumps(took))
"""
_LOOPS = """
import time
def work(n):
    for _ in range(n): pass
best = 1e9
for _ in range(50):
    start = time.perf_counter(); work(100_000); best = min(best, time.perf_counter() - start)
print(100_000 / best / 1e3)
"""


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--share", type=float, default=0.1, help="share of a core")
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "software_version": __version__,
        "share": arguments.share,
        "rows": check(arguments.share),
    }
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table(title=f"ms at {arguments.share:g} of a core: median, 90th percentile")
    for column in ("work", "in proportion", "freezes", "", "quota", ""):
        table.add_column(column, justify="right")
    for row in result["rows"]:
        cells = [row[by][of] for by in ("freezes", "quota") for of in ("p50_ms", "p90_ms")]
        table.add_row(
            f"{row['work_ms']:g}",
            f"{row['work_ms'] / arguments.share:g}",
            *(f"{cell:.1f}" for cell in cells),
        )
    Console().print(table)


def check(share: float) -> list[dict[str, Any]]:
    """Measure the time of each length of work, the two ways in turn."""
    command = [sys.executable, "-S", "-c", _LOOPS]
    loops = subprocess.check_output(command, text=True).strip()  # noqa: S603 - our own
    took: dict[str, dict[float, list[float]]] = {}
    for _ in range(_ROUNDS):
        with slowed(share) as slow:
            _collect(took.setdefault("freezes", {}), slow.prefix, loops)
        with _quota(share) as prefix:
            _collect(took.setdefault("quota", {}), prefix, loops)
    return [
        {"work_ms": ms, **{by: _summary(times[ms]) for by, times in took.items()}} for ms in WORK_MS
    ]


def _collect(into: dict[float, list[float]], prefix: Sequence[str], loops: str) -> None:
    command = [*prefix, sys.executable, "-S", "-c", _WORK, loops, json.dumps(WORK_MS)]
    found = json.loads(subprocess.check_output([*command, str(_REPEATS)], text=True))  # noqa: S603
    for ms in WORK_MS:
        into.setdefault(ms, []).extend(found[str(ms)])


def _summary(times: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": median(times), "p90_ms": sorted(times)[int(0.9 * len(times))]}


@contextlib.contextmanager
def _quota(share: float) -> Iterator[tuple[str, ...]]:
    """Set a CPU quota like `docker run --cpus`; gives the prefix of a command line.

    Raises:
        SplitpointError: If this machine lets no quota be set.
    """
    first = _CPU.exists()
    folder = (_CPU if first else _UNIFIED) / f"splitpoint-quota-{os.getpid()}"
    try:
        folder.mkdir()
        if first:
            (folder / "cpu.cfs_period_us").write_text(f"{_PERIOD_US}")
            (folder / "cpu.cfs_quota_us").write_text(f"{share * _PERIOD_US:.0f}")
        else:
            (folder / "cpu.max").write_text(f"{share * _PERIOD_US:.0f} {_PERIOD_US}")
    except OSError as error:
        raise SplitpointError(f"{folder}: no quota can be set: {error.strerror}") from error
    try:
        yield ("sh", "-c", _ENTER, str(folder / "cgroup.procs"))
    finally:
        folder.rmdir()


if __name__ == "__main__":
    main()
