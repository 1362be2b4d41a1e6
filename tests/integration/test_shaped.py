"""Real shaped links, where this machine's kernel and user allow them."""

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import get_args

import pytest

from bench.links.goodput import self_check
from bench.links.shaped import ShapedLink, ShapingError, Wire, shaped
from common.link.link import Link, parse_link
from tests.served import until

LINK, SLOWER = parse_link("8mbit:4mbit/20ms"), parse_link("2mbit/60ms")


@pytest.fixture(params=get_args(Wire))
def wire(request: pytest.FixtureRequest) -> Iterator[tuple[Wire, ShapedLink]]:
    context = shaped(LINK, request.param)
    try:
        made = context.__enter__()
    except ShapingError as error:
        pytest.skip(str(error))
    yield request.param, made
    context.__exit__(None, None, None)
    assert made.edge.namespace not in _namespaces()


def test_a_wire_is_as_asked_and_changes(wire: tuple[Wire, ShapedLink]) -> None:
    kind, made = wire
    for link in (LINK, SLOWER):
        made.change(link)
        until(partial(_as_asked, kind, made, link))


def _as_asked(kind: Wire, made: ShapedLink, link: Link) -> bool:
    """Whether a measurement fits a link, loosely: others may take the machine's time meanwhile."""
    measured = self_check(made, link, seconds=0.4)
    assert measured.uplink_bps < 1.05 * link.uplink_bps
    assert measured.downlink_bps < 1.05 * link.downlink_bps
    assert measured.rtt_ms >= (link.rtt_ms if kind == "relay" else 0.0)
    slowest = min(measured.uplink_bps / link.uplink_bps, measured.downlink_bps / link.downlink_bps)
    return slowest > 0.5


def test_both_ends_control_congestion_alike(wire: tuple[Wire, ShapedLink]) -> None:
    _, made = wire
    for end in (made.edge, made.cloud):
        read = [
            subprocess.check_output([*end.prefix, "cat", f"/proc/sys/net/ipv4/{name}"], text=True)  # noqa: S603
            for name in ("tcp_congestion_control", "tcp_slow_start_after_idle")
        ]
        assert made.congestion == f"{read[0].strip()}, with windows that outlast pauses"
        assert read[1].strip() == "0"


def test_two_wires_stand_side_by_side(wire: tuple[Wire, ShapedLink]) -> None:
    kind, made = wire
    with shaped(SLOWER, kind) as other:
        assert {other.edge.namespace, made.edge.namespace} <= _namespaces()


def test_an_error_inside_leaves_nothing_behind(wire: tuple[Wire, ShapedLink]) -> None:
    kind, _ = wire
    before = _namespaces()
    with pytest.raises(ZeroDivisionError), shaped(LINK, kind):
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
