"""One direction of the relay between namespaces; time is a number."""

import pytest

from bench.links.relay import Lane

PACKET = bytes(1000)


def _lane(rate_bps: float = 8e6, delay_ms: float = 10.0) -> Lane:
    lane = Lane()
    lane.change(0.0, rate_bps, delay_ms)
    return lane


def _arrivals(lane: Lane) -> list[float]:
    """When each packet that travels arrives."""
    times = []
    while (at_s := lane.next_s()) < 1e6:
        times += [at_s] * len(lane.take(at_s))
    return times


def test_packets_leave_at_the_rate_and_travel_for_the_delay() -> None:
    lane = _lane()  # a packet takes 1 ms
    for _ in range(3):
        lane.put(5.0, PACKET)
    assert _arrivals(lane) == pytest.approx([5.011, 5.012, 5.013])


def test_they_stay_whole_and_in_order() -> None:
    lane = _lane()
    packets = [bytes([number]) * 700 for number in range(30)]
    for packet in packets:
        lane.put(0.0, packet)
    assert lane.take(1.0) == packets


def test_what_waits_leaves_at_the_new_rate() -> None:
    lane = _lane()
    lane.put(0.0, PACKET)
    lane.put(0.0, PACKET)
    lane.change(0.0005, 8e5, 10.0)
    # Half of the first is sent, the rest takes ten times as long.
    assert _arrivals(lane) == pytest.approx([0.0155, 0.0255])


def test_nothing_passes_an_outage_and_nothing_is_forgotten() -> None:
    lane = _lane()
    lane.put(0.0, PACKET)
    lane.change(0.0005, 0.0, 10.0)
    lane.put(1.0, PACKET)
    assert lane.take(2.0) == []
    lane.change(5.0, 8e6, 10.0)
    assert _arrivals(lane) == pytest.approx([5.0105, 5.0115])


def test_a_full_queue_drops_what_comes_last() -> None:
    lane = _lane(rate_bps=8e3)
    for _ in range(100):
        lane.put(0.0, PACKET)
    assert len(_arrivals(lane)) == 32
