"""Links as users write them, and when messages leave a bucket; time is a number."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import SettingsError
from common.link.link import Link, Shaper, TokenBucket, parse_link

BURST = 1500.0


class TestParse:
    @pytest.mark.parametrize(
        ("text", "link"),
        [
            ("3mbit/20ms", Link(3e6, 3e6, 20)),
            ("3mbit", Link(3e6, 3e6, 0)),
            ("500kbit/50ms", Link(5e5, 5e5, 50)),
            ("1gbit/0.5ms", Link(1e9, 1e9, 0.5)),
            ("2000bit", Link(2000, 2000, 0)),
            ("1.5mbit/7ms", Link(1.5e6, 1.5e6, 7)),
            ("3mbit:16mbit/20ms", Link(3e6, 16e6, 20)),
            ("500kbit:1gbit", Link(5e5, 1e9, 0)),
            ("  3MBIT/20MS ", Link(3e6, 3e6, 20)),
        ],
    )
    def test_links_that_make_sense(self, text: str, link: Link) -> None:
        assert parse_link(text) == link

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "fast",
            "3",
            "3mb/20ms",
            "3mbit/20",
            "3mbit/20s",
            "mbit/20ms",
            "3mbit/",
            "/20ms",
            "3mbit:/20ms",
            "3mbit/20ms/5ms",
            "3mbit 20ms",
            "-3mbit/20ms",
            "3mbit/-20ms",
            "0mbit/20ms",
            "3mbit:0kbit/20ms",
            "nanmbit/20ms",
            "infmbit",
            "3mbit/nanms",
            "1e3mbit",
            "3,5mbit",
            "٣mbit",
            # nobody's link
            "99999gbit",
            "1bit",
            "3mbit/99999999ms",
            "9" * 400 + "mbit",
        ],
    )
    def test_nonsense_is_refused_in_one_line(self, text: str) -> None:
        with pytest.raises(SettingsError) as refused:
            parse_link(text)
        assert "\n" not in str(refused.value)

    def test_the_error_shows_how_to_write_it(self) -> None:
        with pytest.raises(SettingsError, match="3mbit/20ms"):
            parse_link("3 megabits")

    @pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
    def test_no_field_takes_nonsense(self, bad: float) -> None:
        for rates in ((bad, 1e6, 1.0), (1e6, bad, 1.0), (1e6, 1e6, bad or -0.1)):
            with pytest.raises(SettingsError):
                Link(*rates)

    @given(
        up=st.floats(1e3, 1e12),
        down=st.floats(1e3, 1e12),
        rtt_ms=st.floats(0, 60_000),
        same=st.booleans(),
    )
    def test_a_link_reads_as_it_was_written(
        self, up: float, down: float, rtt_ms: float, same: bool
    ) -> None:
        link = Link(up, up if same else down, rtt_ms)
        read = parse_link(str(link))
        # A unit's factor may cost one rounding.
        assert read.uplink_bps == pytest.approx(link.uplink_bps, rel=1e-15)
        assert read.downlink_bps == pytest.approx(link.downlink_bps, rel=1e-15)
        assert read.rtt_ms == link.rtt_ms

    @pytest.mark.parametrize("text", ["3mbit/20ms", "500kbit", "3mbit:16mbit/7.5ms", "2kbit"])
    def test_what_users_write_is_kept(self, text: str) -> None:
        assert str(parse_link(text)) == text


class TestTokenBucket:
    def test_what_fits_into_the_burst_leaves_at_once(self) -> None:
        assert TokenBucket(8e6, BURST).departure_s(5.0, 1500) == 5.0

    def test_the_rest_leaves_at_the_rate(self) -> None:
        bucket = TokenBucket(8e6, BURST)  # 1 byte per microsecond
        assert bucket.departure_s(5.0, 101_500) == pytest.approx(5.1)

    def test_messages_leave_one_after_the_other(self) -> None:
        bucket = TokenBucket(8e6, 0)
        departures = [bucket.departure_s(0.0, 1000) for _ in range(3)]
        assert departures == pytest.approx([0.001, 0.002, 0.003])

    def test_a_pause_earns_a_burst_and_no_more(self) -> None:
        bucket = TokenBucket(8e6, BURST)
        bucket.departure_s(0.0, 1500)
        assert bucket.departure_s(1000.0, 2500) == pytest.approx(1000.001)

    def test_a_short_pause_earns_what_it_is_worth(self) -> None:
        bucket = TokenBucket(8e6, BURST)
        bucket.departure_s(0.0, 1500)
        assert bucket.departure_s(0.0005, 1500) == pytest.approx(0.0015)

    @given(
        rate_bps=st.integers(1_000, 10**9),
        burst_bytes=st.integers(0, 10_000),
        messages=st.lists(
            st.tuples(st.integers(0, 10**7), st.integers(0, 10**6)), min_size=1, max_size=30
        ),
    )
    def test_it_is_the_bucket_of_the_textbook(
        self, rate_bps: int, burst_bytes: int, messages: list[tuple[int, int]]
    ) -> None:
        """Compared with exact fractions: gaps in microseconds, sizes in bytes."""
        bucket, rate = TokenBucket(rate_bps, burst_bytes), Fraction(rate_bps, 8)
        now = idle_since = Fraction(0)
        tokens = Fraction(burst_bytes)
        for gap_us, size_bytes in messages:
            now += Fraction(gap_us, 10**6)
            start = max(now, idle_since)  # the message before must have left
            tokens = min(Fraction(burst_bytes), tokens + (start - idle_since) * rate)
            wait = max(Fraction(0), size_bytes - tokens) / rate
            tokens = max(Fraction(0), tokens - size_bytes)
            idle_since = start + wait
            departure_s = bucket.departure_s(float(now), size_bytes)
            assert departure_s == pytest.approx(float(idle_since), rel=1e-9, abs=1e-6)

    @given(
        messages=st.lists(
            st.tuples(st.floats(0, 10), st.integers(0, 100_000)), min_size=1, max_size=30
        )
    )
    def test_no_interval_carries_more_than_rate_and_burst(
        self, messages: list[tuple[float, int]]
    ) -> None:
        bucket, bytes_per_s = TokenBucket(1e6, BURST), 1e6 / 8
        now_s, sent = 0.0, []
        for gap_s, size_bytes in messages:
            now_s += gap_s
            sent.append((now_s, bucket.departure_s(now_s, size_bytes), size_bytes))

        departures = [departure_s for _, departure_s, _ in sent]
        assert departures == sorted(departures)
        assert all(departure_s >= at_s for at_s, departure_s, _ in sent)
        for first in range(len(sent)):
            for last in range(first, len(sent)):
                carried = sum(size_bytes for _, _, size_bytes in sent[first : last + 1])
                begin_s = max(sent[first][0], sent[first - 1][1] if first else 0.0)
                interval_s = sent[last][1] - begin_s
                assert carried <= interval_s * bytes_per_s + BURST + 1e-3


class TestShaper:
    def test_half_the_round_trip_is_added_each_way(self) -> None:
        shaper = Shaper(parse_link("8mbit:80mbit/20ms"))
        assert shaper.uplink_arrival_s(1.0, 101_500) == pytest.approx(1.0 + 0.1 + 0.01)
        assert shaper.downlink_arrival_s(1.0, 101_500) == pytest.approx(1.0 + 0.01 + 0.01)

    def test_the_directions_do_not_share_the_link(self) -> None:
        shaper = Shaper(parse_link("8mbit"))
        shaper.uplink_arrival_s(0.0, 10**6)
        assert shaper.downlink_arrival_s(0.0, 1000) == 0.0
