"""How long strategies of a cell are measured."""

import pytest

from bench.latency.cell import StrategyRun


def strategy_run(settings: str, latency_ms: float, frames: int) -> StrategyRun:
    made = StrategyRun({"some": settings}, lambda _: {})
    for _ in range(frames):
        made.keep({"latency_ms": latency_ms})
    return made


@pytest.mark.parametrize(
    ("settings", "latency_ms", "frames", "enough"),
    [
        ("A", 500.0, 4, False),  # a few are measured of everyone
        ("A", 500.0, 10, True),  # far from the fastest
        ("A", 120.0, 10, False),  # close to it
        ("B", 500.0, 10, False),  # the fastest of another setting does not count
        ("AB", 500.0, 10, False),  # close in one of its settings
        ("B", 3000.0, 5, True),  # it took its time
    ],
)
def test_what_is_close_to_the_fastest_is_measured_longer(
    settings: str, latency_ms: float, frames: int, enough: bool
) -> None:
    mine = strategy_run(settings, latency_ms, frames)
    others = [mine, strategy_run("A", 100.0, 10), strategy_run("B", 400.0, 10)]
    others.append(strategy_run("AB", 50.0, 10))
    others[-1].accurate = False  # nobody needs to be close to it

    assert mine.has_enough(others, budget_s=8.0) is enough


def test_a_frame_that_failed_is_kept_as_an_error_and_takes_no_time() -> None:
    mine = strategy_run("A", 100.0, 2)

    mine.keep({"error": "the cloud went away"})

    assert mine.errors == ["the cloud went away"]
    assert mine.median_ms() == 100.0
