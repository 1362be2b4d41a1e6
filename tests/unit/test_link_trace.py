"""Links that change: when messages leave, against counting milliseconds; and traces as text."""

import math
from collections import deque
from itertools import accumulate, count
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.links.traces import FOLDER, TRACES
from common.errors import SettingsError
from common.link.link import Link, LinkTrace, Shaper, TokenBucket, parse_link
from common.link.trace import HEADER, link_or_trace, parse_trace, read_trace, to_csv

FAST, SLOW = parse_link("8mbit"), parse_link("2mbit")  # 1000 and 250 bytes a millisecond
_HEAD = ",".join(HEADER) + "\n"
_RATES = st.integers(0, 20).map(lambda rate: rate * 100)  # bytes a millisecond
_STEPS = st.lists(st.tuples(st.integers(1, 200), _RATES), min_size=1, max_size=6)
_MESSAGES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50_000)), min_size=1, max_size=8)


def _counted(rates: list[int], burst: float, messages: list[tuple[int, int]]) -> list[int]:
    """The millisecond in which each message (gap in ms, bytes) has left, one by one."""
    arrivals = list(accumulate(gap_ms for gap_ms, _ in messages))
    tokens, queue, left = burst, deque[float](), list[int]()

    def serve(now_ms: int) -> None:
        nonlocal tokens
        while queue and tokens >= queue[0]:
            tokens -= queue.popleft()
            left.append(now_ms)
        if queue:
            queue[0] -= tokens
            tokens = 0

    for now_ms in count():
        open_now, open_before = (rates[each % len(rates)] > 0 for each in (now_ms, now_ms - 1))
        if open_now or open_before:
            serve(now_ms)
        tokens = min(burst, tokens)
        queue.extend(
            size for at_ms, (_, size) in zip(arrivals, messages, strict=True) if at_ms == now_ms
        )
        if open_now:
            serve(now_ms)
        if len(left) == len(messages):
            return left
        tokens += rates[now_ms % len(rates)]
    raise AssertionError


class TestPiecewise:
    @given(steps=_STEPS, messages=_MESSAGES, burst=st.integers(0, 3000))
    def test_a_message_leaves_in_the_millisecond_that_counting_finds(
        self, steps: list[tuple[int, int]], messages: list[tuple[int, int]], burst: int
    ) -> None:
        steps = [*steps, (50, 500)]
        rates = [rate for length_ms, rate in steps for _ in range(length_ms)]
        trace = _trace(steps)

        def rate(time_s: float) -> tuple[float, float]:
            link, end_s = trace.piece(time_s)
            return (0.0 if link is None else link.uplink_bps), end_s

        bucket, now_ms = TokenBucket(rate, burst), 0
        expected = _counted(rates, burst, messages)
        for (gap_ms, size), left_ms in zip(messages, expected, strict=True):
            now_ms += gap_ms
            departure_ms = bucket.departure_s(now_ms / 1e3, size) * 1e3
            assert left_ms - 1 - 1e-6 <= departure_ms <= left_ms + 1e-6

    def test_bits_that_wait_leave_at_the_new_rate(self) -> None:
        shaper = Shaper(LinkTrace(((0.0, FAST), (0.05, SLOW))))
        # 50 ms at the old rate carry 50,000 bytes beside the burst, the other half takes 200 ms.
        assert shaper.uplink_arrival_s(0.0, 101_500) == pytest.approx(0.25)

    def test_what_waits_for_an_earlier_message_too(self) -> None:
        shaper = Shaper(LinkTrace(((0.0, SLOW), (0.1, FAST))))
        assert shaper.uplink_arrival_s(0.0, 26_500) == pytest.approx(0.1)
        assert shaper.uplink_arrival_s(0.01, 50_000) == pytest.approx(0.15)

    def test_nothing_passes_an_outage_not_even_a_burst(self) -> None:
        shaper = Shaper(LinkTrace(((0.0, FAST), (1.0, None), (6.0, FAST))))
        assert shaper.uplink_arrival_s(1.5, 10) == 6.0
        assert shaper.downlink_arrival_s(2.0, 10) == 6.0
        assert shaper.uplink_arrival_s(7.0, 101_500) == pytest.approx(7.1)

    def test_half_a_message_waits_for_the_end_of_the_outage(self) -> None:
        shaper = Shaper(LinkTrace(((0.0, FAST), (0.05, None), (5.05, FAST))))
        assert shaper.uplink_arrival_s(0.0, 101_500) == pytest.approx(5.1)

    def test_a_shorter_round_trip_lets_no_message_overtake(self) -> None:
        trace = LinkTrace(((0.0, Link(1e9, 1e9, 200.0)), (0.01, Link(1e9, 1e9, 2.0))))
        shaper = Shaper(trace)
        assert shaper.uplink_arrival_s(0.0, 10) == pytest.approx(0.1)
        assert shaper.uplink_arrival_s(0.02, 10) == pytest.approx(0.1)
        assert shaper.uplink_arrival_s(0.2, 10) == pytest.approx(0.201)

    def test_the_clock_of_a_trace_begins_where_it_is_told(self) -> None:
        shaper = Shaper(LinkTrace(((0.0, FAST), (1.0, None), (6.0, FAST))), start_s=100.0)
        assert shaper.uplink_arrival_s(90.0, 10) == 90.0
        assert shaper.uplink_arrival_s(101.5, 10) == 106.0

    @given(
        period=st.floats(0.01, 100),
        cuts=st.lists(st.floats(0.01, 0.99), max_size=5, unique=True),
        times=st.lists(st.floats(0, 1e4), max_size=20),
    )
    def test_a_piece_holds_its_time_and_ends_later(
        self, period: float, cuts: list[float], times: list[float]
    ) -> None:
        starts = sorted({0.0, *(period * cut for cut in cuts)})
        trace = LinkTrace(tuple((at_s, FAST) for at_s in starts), period)
        for time_s in [*times, *starts, period, 3 * period]:
            _, end_s = trace.piece(time_s)
            assert time_s < end_s <= time_s + period * (1 + 1e-9) + 1e-9


class TestTrace:
    def test_it_holds_each_link_until_the_next(self) -> None:
        trace = LinkTrace(((0.0, FAST), (2.0, None), (3.0, SLOW)))
        links = [trace.at(at_s) for at_s in (-1.0, 0.0, 1.9, 2.0, 3.0, 1e9)]
        assert links == [FAST, FAST, FAST, None, SLOW, SLOW]

    def test_it_may_begin_again(self) -> None:
        trace = LinkTrace(((0.0, FAST), (2.0, None)), 3.0)
        assert [trace.at(at_s) for at_s in (1.0, 2.5, 3.0, 5.5, 300.0)] == [
            *(FAST, None, FAST, None, FAST)
        ]

    @pytest.mark.parametrize(
        ("steps", "period_s"),
        [
            ((), None),
            (((1.0, FAST),), None),
            (((0.0, FAST), (0.0, SLOW)), None),
            (((0.0, FAST), (math.nan, SLOW)), None),
            (((0.0, FAST), (math.inf, SLOW)), None),
            (((0.0, FAST), (2.0, SLOW)), 2.0),
            (((0.0, FAST), (2.0, None)), None),
            (((0.0, None),), 2.0),
        ],
    )
    def test_nonsense_is_refused(
        self, steps: tuple[tuple[float, Link | None], ...], period_s: float | None
    ) -> None:
        with pytest.raises(SettingsError, match="trace of a link"):
            LinkTrace(steps, period_s)


class TestText:
    def test_every_column(self) -> None:
        text = _HEAD + "0,4,,20\n10, 0 ,,\n\n12.5,1,8,60\n30,repeat,,\n"
        assert parse_trace(text) == LinkTrace(
            ((0.0, Link(4e6, 4e6, 20)), (10.0, None), (12.5, Link(1e6, 8e6, 60))), 30.0
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "line 1: expected the header seconds,uplink_mbit"),
            ("0,1,1,1\n", "line 1: expected the header"),
            (_HEAD, "line 1: .*first step"),
            (_HEAD + "1,1,,1\n", "line 2: the first step is at 1 s: expected 0"),
            (_HEAD + "0,1,,1\n5,1,,1\n5,2,,1\n", "line 4: 5 s does not come after 5 s"),
            (_HEAD + "0,1,,1\n-5,1,,1\n", "line 3: -5 s does not come"),
            (_HEAD + "0,1,1\n", "line 2: expected 4 columns, found 3"),
            (_HEAD + "0,fast,,1\n", "line 2: uplink_mbit is 'fast'"),
            (_HEAD + "0,nan,,1\n", "line 2: uplink_mbit is 'nan'"),
            (_HEAD + "0,1,,inf\n", "line 2: rtt_ms is 'inf'"),
            (_HEAD + "0,1,,-1\n", "line 2: a round trip of -1 ms"),
            (_HEAD + "0,1,0,1\n", "line 2: a link of 0 bit/s"),
            (_HEAD + "0,-1,,1\n", "line 2: a link of"),
            (_HEAD + "0,1,,1\n3,0,,\n", "line 3: .*outage"),
            (_HEAD + "0,1,,1\n3,repeat,,\n4,1,,1\n", "line 4: a step after 'repeat'"),
            (_HEAD + '0,1,,"1\n', "not CSV"),
        ],
    )
    def test_a_mistake_names_its_line(self, text: str, message: str) -> None:
        with pytest.raises(SettingsError, match=message) as refused:
            parse_trace(text)
        assert "\n" not in str(refused.value)

    def test_files_are_checked_too(self, tmp_path: Path) -> None:
        path = tmp_path / "trace.csv"
        with pytest.raises(SettingsError, match=r"trace\.csv: cannot be read"):
            read_trace(path)
        path.write_bytes(b"\xff\xfe")
        with pytest.raises(SettingsError, match="not UTF-8"):
            read_trace(path)
        path.write_bytes(b"0" * (9 << 20))
        with pytest.raises(SettingsError, match="larger than"):
            read_trace(path)
        path.write_text("\ufeff" + _HEAD + "0,1,,1\r\n")
        assert read_trace(path) == LinkTrace(((0.0, Link(1e6, 1e6, 1)),))

    def test_a_link_or_the_path_of_a_trace(self) -> None:
        assert link_or_trace("3mbit/20ms") == Link(3e6, 3e6, 20)
        assert link_or_trace(str(FOLDER / "step.csv")) == TRACES["step"]()
        with pytest.raises(SettingsError, match="cannot be read"):
            link_or_trace("no.csv")

    @pytest.mark.parametrize("name", TRACES)
    def test_the_traces_that_ship_are_those_that_the_script_makes(self, name: str) -> None:
        text = (FOLDER / f"{name}.csv").read_text()
        assert text == to_csv(TRACES[name]())
        assert parse_trace(text) == TRACES[name]()

    def test_the_drive_stays_on_its_road(self) -> None:
        links = [link for _, link in TRACES["drive"]().steps if link is not None]
        assert all(0.6e6 <= link.uplink_bps <= 25e6 for link in links)
        assert all(30 <= link.rtt_ms <= 80 for link in links)
        assert min(link.uplink_bps for link in links) < 1.2e6
        assert max(link.uplink_bps for link in links) > 12e6


def _trace(steps: list[tuple[int, int]]) -> LinkTrace:
    """Of (milliseconds, bytes a millisecond), again and again."""
    at_ms, made = 0, []
    for length_ms, rate in steps:
        made.append((at_ms / 1e3, Link(rate * 8e3, rate * 8e3, 0.0) if rate else None))
        at_ms += length_ms
    return LinkTrace(tuple(made), at_ms / 1e3)
