"""Real shaped links, where this machine's kernel and user allow them."""

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from bench.links.shaped import End, ShapedLink, ShapingError, shaped
from common.link.link import Link, parse_link
from tests.served import until

LINK, SLOWER = parse_link("8mbit:4mbit/20ms"), parse_link("2mbit/60ms")


@pytest.fixture
def wire() -> Iterator[ShapedLink]:
    context = shaped(LINK)
    try:
        made = context.__enter__()
    except ShapingError as error:
        pytest.skip(str(error))
    yield made
    context.__exit__(None, None, None)
    assert made.edge.namespace not in _namespaces()


def test_a_wire_is_as_asked_and_changes(wire: ShapedLink) -> None:
    for link in (LINK, SLOWER):
        wire.change(link)
        until(partial(_as_asked, wire, link))


def _as_asked(wire: ShapedLink, link: Link) -> bool:
    """Whether a measurement fits a link, loosely: others may take the machine's time meanwhile."""
    up_bps = _goodput_bps(wire.edge, wire.cloud, link.uplink_bps, link.rtt_ms)
    down_bps = _goodput_bps(wire.cloud, wire.edge, link.downlink_bps, link.rtt_ms)
    assert up_bps < 1.05 * link.uplink_bps
    assert down_bps < 1.05 * link.downlink_bps
    return min(up_bps / link.uplink_bps, down_bps / link.downlink_bps) > 0.5


def _goodput_bps(source: End, sink: End, rate_bps: float, rtt_ms: float) -> float:
    """Goodput of one TCP connection, without the first quarter of what it sends."""
    size = int(rate_bps * 0.4 / 8)
    listener = sink.inside(lambda: socket.create_server((sink.address, 0)))
    began_s = time.perf_counter()
    address = (sink.address, listener.getsockname()[1])
    sending = source.inside(lambda: socket.create_connection(address, 60))
    assert time.perf_counter() - began_s >= rtt_ms / 1e3  # a packet each way
    with listener, sending, listener.accept()[0] as receiving:
        sender = threading.Thread(target=sending.sendall, args=(bytes(size),))
        sender.start()
        got, start_s, skipped = 0, 0.0, 0
        while got < size:
            got += len(receiving.recv(1 << 16))
            if not start_s and got >= size / 4:
                start_s, skipped = time.perf_counter(), got
        sender.join()
        return (size - skipped) * 8 / (time.perf_counter() - start_s)


def test_both_ends_control_congestion_alike(wire: ShapedLink) -> None:
    for end in (wire.edge, wire.cloud):
        read = [
            subprocess.check_output([*end.prefix, "cat", f"/proc/sys/net/ipv4/{name}"], text=True)  # noqa: S603
            for name in ("tcp_congestion_control", "tcp_slow_start_after_idle")
        ]
        assert wire.congestion == f"{read[0].strip()}, with windows that outlast pauses"
        assert read[1].strip() == "0"


def test_two_wires_stand_side_by_side(wire: ShapedLink) -> None:
    with shaped(SLOWER) as other:
        assert {other.edge.namespace, wire.edge.namespace} <= _namespaces()


@pytest.mark.usefixtures("wire")
def test_an_error_inside_leaves_nothing_behind() -> None:
    before = _namespaces()
    with pytest.raises(ZeroDivisionError), shaped(LINK):
        raise ZeroDivisionError
    assert _namespaces() <= before


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ShapingError, match="need root"), shaped(LINK):
        pass


def _namespaces() -> set[str]:
    """Of this process."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)  # noqa: S607
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    return {name for name in names if name.startswith(f"splitpoint-{os.getpid()}-")}
