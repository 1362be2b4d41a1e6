"""A slow edge: processes that get a share of a core, by a CPU quota. Needs root and Linux.

    with quota(0.25) as slow:
        Service(command, log, prefix=slow.prefix)
        subprocess.Popen([*slow.prefix, "program", "argument"])

A cgroup of its own, of version 1 (cpu.cfs_quota_us) or 2 (cpu.max), is made for the block and
removed after it. The share that really is given is measured before the block begins. A quota limits
time: it is no slower core and no smaller cache. In every period a process runs at full speed until
its share is used up, so short periods disturb latencies less than the kernel's usual 100 ms.
"""

import contextlib
import itertools
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import SplitpointError

_MOUNTS = Path("/proc/mounts")
_LEAST_US = 1000.0
_MOST_PERIOD_US = 1e6
_BURN_S = 0.5
_TRIES = 3
_OFF = 0.2
_REMOVE_S = 5.0
# It moves its own shell into the cgroup, then becomes the command.
_ENTER = 'echo $$ > "$0" && exec "$@"'
_BURN = """
import time
start, used = time.perf_counter(), time.process_time()
while time.perf_counter() - start < {seconds}: pass
print((time.process_time() - used) / (time.perf_counter() - start))
"""
_numbers = itertools.count()


class QuotaError(SplitpointError):
    """The machine lets no quota be set, or does not keep it."""


@dataclass(frozen=True)
class Quota:
    """A share of the CPU for processes that start inside.

    Attributes:
        share: Cores asked for; 0.25 is a quarter of one.
        measured: What a busy loop got.
        prefix: Of the command line of a process that shall start inside.
    """

    share: float
    measured: float
    prefix: tuple[str, ...]

    def take(self, pid: int) -> None:
        """Let a process that runs already go on inside, with all of its threads.

        Raises:
            QuotaError: If it cannot.
        """
        try:
            Path(self.prefix[-1]).write_text(str(pid))
        except OSError as error:
            raise QuotaError(f"process {pid} cannot be slowed: {error.strerror}") from error


@contextlib.contextmanager
def quota(share: float, period_ms: float = 10.0) -> Iterator[Quota]:
    """Share of a core for all processes that start inside, together.

    Args:
        share: Cores, above 0.
        period_ms: How often it is granted; longer if the share would be less than 1 ms.

    Raises:
        QuotaError: If no quota can be set, or it does not hold.
    """
    period_us = max(period_ms * 1e3, _LEAST_US / share if share > 0 else math.inf)
    if not period_us <= _MOST_PERIOD_US:
        raise QuotaError(f"a share of {share:g} of a core: expected at least 0.001")
    folder = _make(share * period_us, period_us)
    prefix = ("sh", "-c", _ENTER, str(folder / "cgroup.procs"))
    try:
        yield Quota(share, _checked(share, prefix), prefix)
    finally:
        _remove(folder)


def _make(quota_us: float, period_us: float) -> Path:
    """A new cgroup with that quota."""
    if os.geteuid() != 0:
        raise QuotaError("a CPU quota needs root: run this as root, or without a slow edge")
    version, root = _root()
    folder = root / f"splitpoint-{os.getpid()}-{next(_numbers)}"
    try:
        if version == 2:
            (root / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
    except OSError as error:
        raise QuotaError(f"{folder}: no cgroup can be made: {error.strerror}") from error
    try:
        if version == 2:
            (folder / "cpu.max").write_text(f"{quota_us:.0f} {period_us:.0f}")
        else:
            (folder / "cpu.cfs_period_us").write_text(f"{period_us:.0f}")
            (folder / "cpu.cfs_quota_us").write_text(f"{quota_us:.0f}")
    except OSError as error:
        folder.rmdir()
        raise QuotaError(f"{folder}: no quota can be set: {error.strerror}") from error
    return folder


def _root() -> tuple[int, Path]:
    """Version and mount point of the cgroups that limit the CPU."""
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()] if _MOUNTS.exists() else []
    for _, place, kind, options, *_ in mounts:
        if kind == "cgroup" and "cpu" in options.split(","):
            return 1, Path(place)
        controllers = Path(place) / "cgroup.controllers"
        if kind == "cgroup2" and "cpu" in controllers.read_text().split():
            return 2, Path(place)
    raise QuotaError("a CPU quota needs Linux cgroups with the cpu controller: none are mounted")


def _checked(share: float, prefix: Sequence[str]) -> float:
    """The share that was measured: within 20 % of what was asked, after a few tries."""
    for _ in range(_TRIES):
        measured = _measured(share, prefix)
        if abs(measured - share) <= _OFF * share:
            return measured
    reason = "the quota does not hold" if measured > share else "others use the CPU"
    raise QuotaError(f"asked for {share:g} of a core, got {measured:.3f}: {reason}")


def _measured(share: float, prefix: Sequence[str]) -> float:
    """Cores that busy loops got, one for every core of the share."""
    burn = [*prefix, sys.executable, "-S", "-c", _BURN.format(seconds=_BURN_S)]
    burners = [
        subprocess.Popen(burn, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
        for _ in range(math.ceil(share))
    ]
    outputs = [burner.communicate()[0] for burner in burners]
    if any(burner.returncode for burner in burners):
        raise QuotaError(f"no process could start inside {prefix[-1]}")
    return sum(map(float, outputs))


def _remove(folder: Path) -> None:
    """Remove the cgroup; what still runs inside goes back to where it would be without."""
    deadline_s = time.monotonic() + _REMOVE_S
    while True:
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > deadline_s:
            raise QuotaError(f"{folder}: the cgroup cannot be removed")
        for pid in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (folder.parent / "cgroup.procs").write_text(pid)
        time.sleep(0.02)
