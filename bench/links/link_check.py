"""Check of the three link emulations: requested against measured goodput and round trips.

    python -m bench.links.link_check [--json OUT]

    in process   `edge.stream.shaping`: messages of a transport are delayed, no socket is in the way
    tbf          network namespaces, a veth pair, the kernel's token bucket; adds no delay
    relay        network namespaces, TUN devices, our own process between them

Goodput is what an application receives: messages in process, bytes of one TCP connection otherwise,
so that the wires lose 3 to 5 % to headers. Round trips are medians on an idle link.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.links.goodput import MeasuredGoodput, self_check
from bench.links.shaped import Wire, shaped
from bench.machine import machine
from common.link.link import Link, parse_link
from common.rpc.splitpoint_pb2 import (
    CloudMessage,
    EdgeMessage,
    Frame,
    Hello,
    Payload,
    Rejection,
    Result,
)
from common.version import __version__
from edge.stream.shaping import ShapedTransport
from edge.stream.transport import InProcessTransport

LINKS = ("1mbit/20ms", "3mbit/20ms", "10mbit/20ms")
_RESULT = Path(__file__).parents[1] / "results" / "link_check.json"
_MESSAGES, _SKIP, _PINGS = 40, 10, 15
_TRANSFER_S = 1.2


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=_RESULT, help="where the result goes")
    path = parser.parse_args().json
    rows = [
        {"wire": name, "link": text, "asked": asdict(link), "measured": asdict(check(link))}
        for text in LINKS
        for link in [parse_link(text)]
        for name, check in CHECKS.items()
    ]
    result = {"machine": machine(), "software_version": __version__, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")
    _show(rows)


def in_process(link: Link) -> MeasuredGoodput:
    """Measure a transport behind an emulated link: pings, then messages up, then messages down."""
    came_up: list[float] = []
    size = int(link.downlink_bps * _TRANSFER_S / 8 / _MESSAGES)
    answers = [CloudMessage(rejection=Rejection(message="x" * size))] * _MESSAGES

    def serve(message: EdgeMessage) -> list[CloudMessage]:
        came_up.append(time.perf_counter())
        if message.WhichOneof("kind") == "hello":
            return [CloudMessage(result=Result())]
        return answers if len(came_up) == _PINGS + _MESSAGES else []

    transport = ShapedTransport(InProcessTransport(serve), link)
    try:
        pings = [_round_trip_ms(transport) for _ in range(_PINGS)]
        size = int(link.uplink_bps * _TRANSFER_S / 8 / _MESSAGES)
        frame = EdgeMessage(frame=Frame(payloads=[Payload(data=bytes(size))]))
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


def _round_trip_ms(transport: ShapedTransport) -> float:
    start_s = time.perf_counter()
    transport.send(EdgeMessage(hello=Hello()))
    transport.receive()
    return 1e3 * (time.perf_counter() - start_s)


def _goodput_bps(times_s: Sequence[float], size_bytes: int) -> float:
    """Goodput of messages from their arrival times, without the first ones."""
    rest = times_s[_SKIP:]
    return (len(rest) - 1) * size_bytes * 8 / (rest[-1] - rest[0])


def _on_wire(wire: Wire) -> Callable[[Link], MeasuredGoodput]:
    def check(link: Link) -> MeasuredGoodput:
        with shaped(link, wire) as made:
            return self_check(made, link, seconds=_TRANSFER_S)

    return check


CHECKS: Mapping[str, Callable[[Link], MeasuredGoodput]] = MappingProxyType(
    {"in process": in_process, "tbf": _on_wire("tbf"), "relay": _on_wire("relay")}
)


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table("link", "wire", title="asked for, and measured", title_justify="left")
    for column in ("up Mbit/s", "down Mbit/s", "round trip ms"):
        table.add_column(column, justify="right")
    for row in rows:
        got = row["measured"]
        rates = (f"{got[name] / 1e6:.2f}" for name in ("uplink_bps", "downlink_bps"))
        table.add_row(row["link"], row["wire"], *rates, f"{got['rtt_ms']:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
