"""A slow edge: processes that get a share of every moment of the CPU. Needs Linux.

    with slowed(0.1) as slow:
        Service(command, log, prefix=slow.prefix)
        subprocess.Popen([*slow.prefix, "program", "argument"])

A cgroup of its own is made for the block, which needs root: of version 2, where freezing needs no
controller, or of version 1 with its freezer. A process of real-time priority thaws it for 0.5 ms,
freezes it until its share is kept, and so on: at a tenth, for 0.5 ms of every 5. The share that
really is given is measured before the block begins.

Without root, `SIGNALS` stops and continues each process that starts inside (SIGSTOP, SIGCONT), not
those that it starts in turn. Each of its threads must be woken to stop, so the moments are longer:
good enough to show what a slow edge is like, not to measure by.

A CPU quota (cpu.max) would be simpler, but it bends what is measured: the kernel takes notice of an
exhausted quota at its next tick, so that the first milliseconds of work after every pause run at
full speed. A slow edge is still no smaller cache, and no other instruction set.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import SplitpointError

SIGNALS: Final = 0
"""Used instead of a version of cgroups: processes are stopped and continued one by one."""

_MOUNTS = Path("/proc/mounts")
_THAWED_S = 0.5e-3
_CONTINUED_S = 2.5e-3
_LEAST = 0.01
_BURN_S = 0.5
_TRIES = 3
_OFF = 0.2
_REMOVE_S = 5.0
_PRIORITY = 10
# It moves its own shell into the cgroup, then becomes the command.
_ENTER = 'echo $$ >> "$0" && exec "$@"'
_PROCESSES = "cgroup.procs"
_BURN = """
import time
start, used = time.perf_counter(), time.process_time()
while time.perf_counter() - start < {seconds}: pass
print((time.process_time() - used) / (time.perf_counter() - start))
"""
_numbers = itertools.count()


@dataclass(frozen=True)
class Freezer:
    """Files and values by which a version of cgroups freezes all processes of a group.

    Attributes:
        mounted: Type and an option of the mount that its groups are made in.
        file: File of a group to write to.
        frozen: Value that freezes its processes.
        thawed: Value that thaws them.
    """

    mounted: tuple[str, str]
    file: str
    frozen: str
    thawed: str


FREEZERS = {
    2: Freezer(("cgroup2", ""), "cgroup.freeze", "1", "0"),
    1: Freezer(("cgroup", "freezer"), "freezer.state", "FROZEN", "THAWED"),
}
"""Freezers by version of cgroups, the preferred one first."""


class SlowCpuError(SplitpointError):
    """The machine lets no process be slowed, or does not keep the share."""


@dataclass(frozen=True)
class SlowCpu:
    """A share of the CPU for processes that start inside.

    Attributes:
        share: Share of every core that they use; 0.25 is a quarter.
        measured: Share that a busy loop got.
        prefix: Prefix of the command line of a process that shall start inside.
    """

    share: float
    measured: float
    prefix: tuple[str, ...]

    def take(self, pid: int) -> None:
        """Move a running process inside, with all of its threads.

        Raises:
            SlowCpuError: If it cannot.
        """
        try:
            with Path(self.prefix[-1]).open("a") as processes:
                processes.write(f"{pid}\n")
        except OSError as error:
            raise SlowCpuError(f"process {pid} cannot be slowed: {error.strerror}") from error


@contextlib.contextmanager
def slowed(
    share: float, versions: Sequence[int] = tuple(FREEZERS), *, strict: bool = True
) -> Iterator[SlowCpu]:
    """Limit all processes that start inside to a share of the CPU.

    Args:
        share: Share of every core that they use, from 0.01 to below 1.
        versions: Versions of cgroups, or `SIGNALS`; the first that this machine has is used.
        strict: Whether a share that is not kept is an error; else it is only measured.

    Raises:
        SlowCpuError: If nothing can be slowed, or the share is not kept.
    """
    if not _LEAST <= share < 1:
        raise SlowCpuError(f"a share of {share:g} of a core: expected {_LEAST:g} to below 1")
    folder, version = _make(versions)
    prefix = ("sh", "-c", _ENTER, str(folder / _PROCESSES))
    try:
        switching = [sys.executable, "-m", "bench.slow", str(folder), str(version), f"{share:g}"]
        # A session of its own: Ctrl-C goes to the parent, which then ends it.
        switch = subprocess.Popen(switching, start_new_session=True)  # noqa: S603 - our own
        try:
            yield SlowCpu(share, _checked(share, prefix) if strict else _measured(prefix), prefix)
        finally:
            switch.terminate()
            switch.wait()
    finally:
        _remove(folder, version)


def _alternate(folder: Path, version: int, share: float, parent: int) -> None:
    """Thaw and freeze in turn, until the parent process is gone."""
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))
    thaw, freeze = _switches(folder, version)
    moment_s = _CONTINUED_S if version == SIGNALS else _THAWED_S
    while os.getppid() == parent:
        thaw()
        thawed_s = time.perf_counter()
        time.sleep(moment_s)
        freeze()
        # The measured time decides the length of the rest: sleeps take longer than requested.
        rest_s = (time.perf_counter() - thawed_s) * (1 / share - 1)
        time.sleep(rest_s)
    thaw()


def _switches(folder: Path, version: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return two calls that thaw and freeze all processes inside."""
    if version == SIGNALS:
        return (
            lambda: _signal(folder, signal.SIGCONT),
            lambda: _signal(folder, signal.SIGSTOP),
        )
    freezer = FREEZERS[version]
    state = os.open(folder / freezer.file, os.O_WRONLY)
    thawed, frozen = freezer.thawed.encode(), freezer.frozen.encode()
    return lambda: os.pwrite(state, thawed, 0), lambda: os.pwrite(state, frozen, 0)


def _signal(folder: Path, number: signal.Signals) -> None:
    processes = folder / _PROCESSES
    for pid in processes.read_text().split():
        try:
            os.kill(int(pid), number)
        except OSError:  # it has ended, and another process may get its number
            left = [each for each in processes.read_text().split() if each != pid]
            processes.write_text("".join(f"{each}\n" for each in left))


def _make(versions: Sequence[int]) -> tuple[Path, int]:
    """Create a cgroup; returns its folder and version."""
    if os.geteuid() != 0 and SIGNALS not in versions:
        raise SlowCpuError("a slow edge needs root: run this as root, or without one")
    try:
        return _make_cgroup([version for version in versions if version != SIGNALS])
    except SlowCpuError:
        if SIGNALS not in versions:
            raise
    folder = Path(tempfile.mkdtemp(prefix="splitpoint-slow-"))
    (folder / _PROCESSES).touch()
    return folder, SIGNALS


def _make_cgroup(versions: Sequence[int]) -> tuple[Path, int]:
    for version in versions:
        root = _root(*FREEZERS[version].mounted)
        if root is None:
            continue
        folder = root / f"splitpoint-{os.getpid()}-{next(_numbers)}"
        try:
            folder.mkdir()
        except OSError as error:
            raise SlowCpuError(f"{folder}: no cgroup can be made: {error.strerror}") from error
        if (folder / FREEZERS[version].file).exists():
            return folder, version
        folder.rmdir()  # version 2 cannot freeze before Linux 5.2
    known = " or ".join(map(str, versions))
    raise SlowCpuError(
        f"a slow edge needs Linux cgroups of version {known} that freeze: none are mounted"
    )


def _root(kind: str, option: str) -> Path | None:
    """Mount point of cgroups of this type and option; None if they are not mounted."""
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()] if _MOUNTS.exists() else []
    for _, place, type_, options, *_ in mounts:
        if type_ == kind and (not option or option in options.split(",")):
            return Path(place)
    return None


def _checked(share: float, prefix: Sequence[str]) -> float:
    """Measure the share until it is within 20 % of the requested one, in a few tries."""
    for _ in range(_TRIES):
        measured = _measured(prefix)
        if abs(measured - share) <= _OFF * share:
            return measured
    reason = "it is not kept" if measured > share else "others use the CPU"
    raise SlowCpuError(f"asked for {share:g} of a core, got {measured:.3f}: {reason}")


def _measured(prefix: Sequence[str]) -> float:
    """Share of a core that a busy loop got."""
    burn = [*prefix, sys.executable, "-S", "-c", _BURN.format(seconds=_BURN_S)]
    done = subprocess.run(burn, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SlowCpuError(f"no process could start inside {prefix[-1]}")
    return float(done.stdout)


def _remove(folder: Path, version: int) -> None:
    """Remove the cgroup; processes still inside move back to its parent."""
    if version == SIGNALS:
        _signal(folder, signal.SIGCONT)
        shutil.rmtree(folder, ignore_errors=True)
        return
    freezer = FREEZERS[version]
    deadline_s = time.monotonic() + _REMOVE_S
    (folder / freezer.file).write_text(freezer.thawed)
    while True:
        with contextlib.suppress(OSError):
            folder.rmdir()
            return
        if time.monotonic() > deadline_s:
            raise SlowCpuError(f"{folder}: the cgroup cannot be removed")
        for pid in (folder / _PROCESSES).read_text().split():
            with contextlib.suppress(OSError):
                (folder.parent / _PROCESSES).write_text(pid)
        time.sleep(0.02)


if __name__ == "__main__":
    _alternate(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), os.getppid())
