"""The machine that this process runs on, as far as times depend on it."""

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_UNKNOWN = "unknown"
_X86 = {"x86_64", "amd64", "i686", "i386"}
_VNNI = {"avx512_vnni", "avx_vnni"}
_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")
_BOARD = Path("/proc/device-tree/model")


def cpu_name() -> str:
    """Name of the processor; without one, of the board that it is on."""
    named = _cpu_fields().get("model name")
    if named:
        return named
    try:
        return _BOARD.read_text("utf-8", "replace").strip("\0 \n") or _UNKNOWN
    except OSError:
        return platform.processor() or _UNKNOWN


def cpu_model() -> str:
    """The processor's name and revision: clouds give many processors the same name."""
    fields = _cpu_fields()
    keys = "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU revision"
    return " ".join([cpu_name(), *(fields[key] for key in keys if key in fields)])


def saturates_int8() -> bool:
    """Whether sums of two 8-bit products saturate at 16 bits here: x86 without VNNI.

    Weights then have to keep to 7 bits, or heads lose most of their accuracy.
    """
    if platform.machine().lower() not in _X86:
        return False
    return _VNNI.isdisjoint(_cpu_fields().get("flags", "").split())


def usable_cores() -> float:
    """Cores that this process may use: its affinity, or less by the quotas of control groups."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cores = os.cpu_count() or 1
    return min([float(cores), *_quotas(_PROC / "self" / "cgroup", _GROUPS)])


def _cpu_fields() -> dict[str, str]:
    """Fields of the first processor in /proc/cpuinfo."""
    try:
        first, _, _ = (_PROC / "cpuinfo").read_text("utf-8", "replace").partition("\n\n")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _quotas(membership: Path, root: Path) -> Iterator[float]:
    """CPU quotas of the process's control group and of all above it, in cores.

    Args:
        membership: A file as /proc/self/cgroup: a line "0::PATH" of version 2, or
            "NUMBER:CONTROLLERS:PATH" of version 1.
        root: Where control groups are mounted.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for group in _groups(root / controllers, path):
            quota = _quota_v1(group) if controllers else _quota_v2(group)
            if quota is not None:
                yield quota


def _groups(mount: Path, path: str) -> Iterator[Path]:
    """A group and all above it; a container sees its own at the mount, whatever the path says."""
    relative = PurePosixPath(path.lstrip("/"))
    if ".." in relative.parts:
        relative = PurePosixPath()
    yield from (mount / each for each in (relative, *relative.parents))


def _quota_v2(group: Path) -> float | None:
    """CPU quota in cores, from "MICROSECONDS PERIOD"; None for "max PERIOD"."""
    found = re.fullmatch(r"(\d+) ([1-9]\d*)\s*", _text(group / "cpu.max"))
    return int(found[1]) / int(found[2]) if found else None


def _quota_v1(group: Path) -> float | None:
    """CPU quota in cores, from two files; None for a quota of -1."""
    quota = re.fullmatch(r"(\d+)\s*", _text(group / "cpu.cfs_quota_us"))
    period = re.fullmatch(r"([1-9]\d*)\s*", _text(group / "cpu.cfs_period_us"))
    return int(quota[1]) / int(period[1]) if quota and period else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
