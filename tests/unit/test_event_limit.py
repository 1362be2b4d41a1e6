"""Log lines that could come with every frame: the first of a kind, then one a period."""

from common.http.log_limits import EventLimit


def test_the_first_of_a_kind_is_logged_and_then_one_a_period() -> None:
    now_s = 0.0
    limit = EventLimit(60.0, lambda: now_s)
    assert limit.due("a") == 1
    assert limit.due("b") == 1
    assert [limit.due("a") for _ in range(5)] == [0] * 5
    now_s = 61.0
    assert limit.due("a") == 6, "those that were not told of count"
    assert limit.due("a") == 0


def test_kinds_without_end_share_a_line() -> None:
    limit = EventLimit(60.0, lambda: 0.0)
    lines = sum(bool(limit.due(str(number))) for number in range(10_000))
    assert lines < 1000
