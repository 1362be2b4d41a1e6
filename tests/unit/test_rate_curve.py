"""The curve of bytes and error, and the few trials by which a point of it is found."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.refine.format_search import first_adapted
from search.refine.refine import cheaper, cheapest
from search.wire.rate_curve import RatePoint, lower_hull


def point(sent: float, error: float) -> RatePoint:
    return RatePoint(1.0, 0.5, np.inf, (), sent, error)


class TestCurve:
    @given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=20))
    def test_the_hull_holds_the_best_point_for_every_lambda(
        self, drawn: list[tuple[int, int]]
    ) -> None:
        points = [point(float(sent), float(error)) for sent, error in drawn]
        hull = lower_hull(points)
        assert all(p in points for p in hull)
        for one, other in pairwise(hull):
            assert one.payload_bytes < other.payload_bytes
            assert one.error > other.error
        for price in (0.01, 0.3, 1.0, 7.0, 100.0):
            best = min(p.payload_bytes + price * p.error for p in points)
            assert min(p.payload_bytes + price * p.error for p in hull) == pytest.approx(best)

    @given(size=st.integers(0, 40), first=st.integers(0, 40))
    def test_bisection_finds_the_first_good_option(self, size: int, first: int) -> None:
        options = list(range(size))
        found = cheapest(options, lambda option: option >= first, trials=7)
        assert found == (first if first < size else None)

    def test_bisection_asks_no_more_than_it_may(self) -> None:
        asked: list[int] = []

        def is_good(option: int) -> bool:
            asked.append(option)
            return True

        assert cheapest(range(100), is_good, trials=3) == 12
        assert len(asked) == 3

    @pytest.mark.parametrize(
        ("good", "start", "trials", "found", "asked"),
        [
            (range(20), 19, 3, 16, [19, 18, 16]),
            (range(17, 20), 19, 9, 18, [19, 18, 16]),
            ([18], 19, 9, 18, [19, 18, 16]),  # the dearest was bad by bad luck
            ([], 19, 9, None, [19, 18, 16, 12, 4]),
            (range(20), 19, 0, None, []),
            (range(20), 5, 1, 5, [5]),
            (range(3, 20), 5, 9, 4, [5, 4, 2]),
            (range(7, 20), 5, 9, 8, [5, 6, 8]),
            ([], 16, 9, None, [16, 17, 19]),
            ([], -1, 9, None, []),
        ],
    )
    def test_going_down_ends_at_a_bad_one_and_going_up_at_a_good_one(
        self,
        good: Sequence[int],
        start: int,
        trials: int,
        found: int | None,
        asked: list[int],
    ) -> None:
        seen: list[int] = []

        def is_good(option: int) -> bool:
            seen.append(option)
            return option in good

        assert cheaper(range(20), is_good, start=start, trials=trials) == found
        assert seen == asked

    @pytest.mark.parametrize(
        ("accurate_from", "first"),
        [(3, 1), (2, 0), (1, 0), (0, -1), (4, 3)],
    )
    def test_the_first_tail_is_adapted_where_it_may_halve_the_loss(
        self, accurate_from: int, first: int
    ) -> None:
        assert first_adapted([9.0, 7.5, 5.0, 4.0], accurate_from) == first
