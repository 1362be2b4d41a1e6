"""Checks of the instruments that benches measure with: slow edges, shaped links, and TCP on them.

    python -m bench.instruments slow [--share 0.1]           work takes longer in proportion
    python -m bench.instruments link                         links are as asked
    python -m bench.instruments idle [--link 16mbit/20ms]    what TCP forgets over a pause

Each needs root and writes `bench/results/NAME_check.json`, or `--json OUT`.

**slow**: Loops of so many milliseconds at full speed, each after a pause of 30 to 70 ms, as between
frames. In proportion, 2 ms take 20 at a tenth. Freezes are those of `bench.slow`; the quota is that
of cgroups (cpu.cfs_quota_us, cpu.max) over periods of 10 ms, which `docker run --cpus` sets too.

**link**: Goodput is what an application receives: messages in process (`edge.stream.shaping`, no
socket is in the path), bytes of one TCP connection on the wires (`bench.links.shaped`), which lose
3 to 5 % to headers. Round trips are medians on an idle link; tbf adds no delay.

**idle**: A connection that has sent nothing for longer than its timeout, a fifth of a second or
more, begins again with a window of ten packets (RFC 6928, 14.6 KB): what is larger waits for a
round trip more. `sysctl net.ipv4.tcp_slow_start_after_idle=0` keeps the window. Both take turns
over one link: milliseconds from sending until the other end has answered.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import MappingProxyType

import numpy as np

from bench.bootstrap import percentile
from bench.harness import Bench, Columns, Lines, Result, main_of, no_options, record, table
from bench.links.goodput import MeasuredGoodput, answering, connected, round_trip_ms, self_check
from bench.links.shaped import SLOW_START_AFTER_IDLE, Wire, shaped
from bench.slow import slowed
from common.errors import SplitpointError
from common.link.link import Link, parse_link
from common.progress import Stages
from common.rpc import splitpoint_pb2 as pb
from edge.stream.shaping import ShapedTransport
from edge.stream.transport import InProcessTransport

WORK_MS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
LINKS = ("1mbit/20ms", "3mbit/20ms", "10mbit/20ms")
SIZES = (5_000, 10_000, 20_000, 40_000, 60_000)
PAUSES_S = (0.05, 0.6)

_WORK_ROUNDS, _WORK_REPEATS = 2, 20
_PERIOD_US = 10_000
_ENTER = 'echo $$ > "$0" && exec "$@"'
# It finds out how fast it loops at full speed, is let into a cgroup, and loops.
_WORK = """
import json, sys, time
def work(n):
    for _ in range(n): pass
def took_s(n):
    start = time.perf_counter(); work(n); return time.perf_counter() - start
if len(sys.argv) == 1:
    print(100 / min(took_s(100_000) for _ in range(50)))
else:
    loops, works, repeats = float(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
    took = {str(ms): [] for ms in works}
    for k in range(repeats):
        for ms in works:
            time.sleep(0.03 + 0.0037 * (k % 11))
            took[str(ms)].append(took_s(int(loops * ms)) * 1e3)
    print(json.dumps(took))
"""
_MESSAGES, _SKIP, _PINGS = 40, 10, 15
_TRANSFER_S = 1.2
_IDLE_ROUNDS, _WARM = 15, 4


def _measure_slow(arguments: argparse.Namespace, _stages: Stages) -> Result:
    """Measure what each length of work takes by freezes and by a quota, in turn."""
    work = [sys.executable, "-S", "-c", _WORK]
    loops = subprocess.check_output(work, text=True).strip()  # noqa: S603 - our own
    work += [loops, json.dumps(WORK_MS), str(_WORK_REPEATS)]
    took: dict[str, dict[str, list[float]]] = {"freezes": {}, "quota": {}}
    for _ in range(_WORK_ROUNDS):
        for by, limited in (("freezes", _freezes), ("quota", _quota)):
            with limited(arguments.share) as prefix:
                found = json.loads(subprocess.check_output([*prefix, *work], text=True))  # noqa: S603
            for ms, times in found.items():
                took[by].setdefault(ms, []).extend(times)
    rows = [
        {"work_ms": ms, **{by: _summary(times[str(ms)]) for by, times in took.items()}}
        for ms in WORK_MS
    ]
    return record(share=arguments.share, rows=rows)


def _summary(times: Sequence[float]) -> dict[str, float]:
    return {"p50_ms": median(times), "p90_ms": sorted(times)[int(0.9 * len(times))]}


@contextlib.contextmanager
def _freezes(share: float) -> Iterator[tuple[str, ...]]:
    with slowed(share) as slow:
        yield slow.prefix


@contextlib.contextmanager
def _quota(share: float) -> Iterator[tuple[str, ...]]:
    """Set a CPU quota like `docker run --cpus`; gives the prefix of a command line.

    Raises:
        SplitpointError: If this machine lets no quota be set.
    """
    quota_us, groups = f"{share * _PERIOD_US:.0f}", Path("/sys/fs/cgroup")
    values = {"cpu.max": f"{quota_us} {_PERIOD_US}"}
    if (groups / "cpu").exists():  # version 1
        groups /= "cpu"
        values = {"cpu.cfs_period_us": f"{_PERIOD_US}", "cpu.cfs_quota_us": quota_us}
    folder = groups / f"splitpoint-quota-{os.getpid()}"
    try:
        folder.mkdir()
        for name, value in values.items():
            (folder / name).write_text(value)
    except OSError as error:
        raise SplitpointError(f"{folder}: no quota can be set: {error.strerror}") from error
    try:
        yield ("sh", "-c", _ENTER, str(folder / "cgroup.procs"))
    finally:
        folder.rmdir()


def in_process(link: Link) -> MeasuredGoodput:
    """Measure a transport behind an emulated link: pings, then messages up, then messages down."""
    came_up: list[float] = []
    up, down = (int(r * _TRANSFER_S / 8 / _MESSAGES) for r in (link.uplink_bps, link.downlink_bps))
    answers = [pb.CloudMessage(rejection=pb.Rejection(message="x" * down))] * _MESSAGES

    def serve(message: pb.EdgeMessage) -> list[pb.CloudMessage]:
        came_up.append(time.perf_counter())
        if message.WhichOneof("kind") == "hello":
            return [pb.CloudMessage(result=pb.Result())]
        return answers if len(came_up) == _PINGS + _MESSAGES else []

    def ping_ms() -> float:
        start_s = time.perf_counter()
        transport.send(pb.EdgeMessage(hello=pb.Hello()))
        transport.receive()
        return 1e3 * (time.perf_counter() - start_s)

    transport = ShapedTransport(InProcessTransport(serve), link)
    try:
        pings = [ping_ms() for _ in range(_PINGS)]
        frame = pb.EdgeMessage(frame=pb.Frame(payloads=[pb.Payload(data=bytes(up))]))
        for _ in range(_MESSAGES):
            transport.send(frame)
        came_down = []
        for _ in answers:
            transport.receive()
            came_down.append(time.perf_counter())
    finally:
        transport.close()
    up_bps = _goodput_bps(came_up[_PINGS:], frame.ByteSize())
    return MeasuredGoodput(up_bps, _goodput_bps(came_down, answers[0].ByteSize()), median(pings))


def _goodput_bps(times_s: Sequence[float], size_bytes: int) -> float:
    """Goodput of messages from their arrival times, without the first ones."""
    rest = times_s[_SKIP:]
    return (len(rest) - 1) * size_bytes * 8 / (rest[-1] - rest[0])


def _on_wire(wire: Wire) -> Callable[[Link], MeasuredGoodput]:
    def check(link: Link) -> MeasuredGoodput:
        with shaped(link, wire) as made:
            return self_check(made, link, seconds=_TRANSFER_S)

    return check


EMULATIONS: Mapping[str, Callable[[Link], MeasuredGoodput]] = MappingProxyType(
    {"in process": in_process, "tbf": _on_wire("tbf"), "relay": _on_wire("relay")}
)


def _measure_links(_arguments: argparse.Namespace, _stages: Stages) -> Result:
    rows = [
        {"wire": name, "link": text, "asked": asdict(link), "measured": asdict(check(link))}
        for text in LINKS
        for link in [parse_link(text)]
        for name, check in EMULATIONS.items()
    ]
    return record(rows=rows)


def _measure_idle(arguments: argparse.Namespace, _stages: Stages) -> Result:
    """Measure messages after short and long pauses, with the window forgotten and kept."""
    link: Link = arguments.link
    took: dict[tuple[float, int, bool], list[float]] = {}
    with shaped(link) as wire, answering(wire) as port:
        for _ in range(_IDLE_ROUNDS):
            for forgets in (True, False):
                setting = f"{forgets:d}"
                wire.edge.inside(lambda: SLOW_START_AFTER_IDLE.write_text(setting))  # noqa: B023
                with connected(wire, port) as connection:
                    for _ in range(_WARM):
                        round_trip_ms(connection, max(SIZES))
                    for pause_s in PAUSES_S:
                        for size in SIZES:
                            time.sleep(pause_s)
                            ms = round_trip_ms(connection, size)
                            took.setdefault((pause_s, size, forgets), []).append(ms)
    rows = [
        {"pause_s": s, "size_bytes": size, "forgets": f, "ms": percentile(np.array(each), 50)}
        for (s, size, f), each in took.items()
    ]
    return record(uplink_bps=link.uplink_bps, rtt_ms=link.rtt_ms, rows=rows)


def _slow_section(result: Result) -> Lines:
    yield (
        f"What work takes at {result['share']:g} of a core, in ms: by short freezes, as edges are "
        "slowed here, and by a CPU quota, which bends short times."
    )
    yield ""
    share = result["share"]
    columns: Columns = {
        "work at full speed": "{work_ms:g}",
        "in proportion": lambda row: f"{row['work_ms'] / share:g}",
        "freezes, p50": "{freezes[p50_ms]:.1f}",
        "freezes, p90": "{freezes[p90_ms]:.1f}",
        "quota, p50": "{quota[p50_ms]:.1f}",
        "quota, p90": "{quota[p90_ms]:.1f}",
    }
    yield from table(result["rows"], columns)


def _link_section(result: Result) -> Lines:
    columns: Columns = {
        "asked": "{link}",
        "wire:": "{wire}",
        "up, Mbit/s": lambda row: f"{row['measured']['uplink_bps'] / 1e6:.2f}",
        "down, Mbit/s": lambda row: f"{row['measured']['downlink_bps'] / 1e6:.2f}",
        "round trip, ms": "{measured[rtt_ms]:.1f}",
    }
    return table(result["rows"], columns)


def _idle_section(result: Result) -> Lines:
    yield (
        "Milliseconds until the other end has answered a message, over "
        f"{result['uplink_bps'] / 1e6:g} Mbit/s, round trip {result['rtt_ms']:g} ms: medians with "
        "95 % intervals. Linux forgets a connection's window when nothing was sent for longer than "
        "its timeout, and then sends ten packets (14.6 KB) before it waits; "
        "`sysctl net.ipv4.tcp_slow_start_after_idle=0` at the edge keeps it."
    )
    yield ""
    pairs: dict[tuple[int, float], Result] = {}
    for row in sorted(result["rows"], key=lambda row: (row["size_bytes"], row["pause_s"])):
        pair = pairs.setdefault((row["size_bytes"], row["pause_s"]), {})
        pair |= {"kb": row["size_bytes"] / 1e3, "pause_s": row["pause_s"]}
        pair["forgets" if row["forgets"] else "remembers"] = row["ms"]
    columns = {"KB": "{kb:g}", "pause, s": "{pause_s:g}"}
    for how in ("forgets", "remembers"):
        columns[f"{how}, ms"] = f"{{{how}[value]:.0f}} [{{{how}[low]:.0f}}, {{{how}[high]:.0f}}]"
    yield from table(pairs.values(), columns)


def _slow_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--share", type=float, default=0.1, help="share of a core")


def _idle_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--link", type=parse_link, default=parse_link("16mbit/20ms"))


INSTRUMENTS: Mapping[str, Bench] = MappingProxyType(
    {
        "slow": Bench(
            "Is a slow edge slow in proportion?",
            "slow_check",
            _slow_options,
            _measure_slow,
            _slow_section,
        ),
        "link": Bench(
            "Are links what they are asked to be?",
            "link_check",
            no_options,
            _measure_links,
            _link_section,
        ),
        "idle": Bench(
            "What TCP forgets over a pause",
            "idle_check",
            _idle_options,
            _measure_idle,
            _idle_section,
        ),
    }
)


if __name__ == "__main__":
    main_of(INSTRUMENTS)
