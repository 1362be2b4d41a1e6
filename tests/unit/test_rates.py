"""Curves of bytes against accuracy: compared as the field does, plotted the same every time."""

from pathlib import Path

import pytest

from bench.rate.rates import bd_rate, bytes_at, frontier
from common.errors import SettingsError
from search.reports.plot import Series, check_format, plot

ANCHOR = [(1000.0, 10.0), (2000.0, 15.0), (4000.0, 19.0), (8000.0, 22.0), (16000.0, 24.0)]


def test_half_the_bytes_are_minus_fifty_percent() -> None:
    halved = [(size / 2, accuracy) for size, accuracy in ANCHOR]
    assert bd_rate(ANCHOR, halved) == pytest.approx(-50, abs=0.1)
    assert bd_rate(halved, ANCHOR) == pytest.approx(100, abs=0.1)
    assert bd_rate(ANCHOR, ANCHOR) == pytest.approx(0, abs=1e-9)


def test_noise_below_the_frontier_does_not_count() -> None:
    noisy = [*ANCHOR, (5000.0, 12.0), (16000.0, 20.0)]
    assert frontier(noisy) == ANCHOR
    assert bd_rate(noisy, ANCHOR) == pytest.approx(0, abs=1e-9)


def test_curves_without_a_common_accuracy_are_not_compared() -> None:
    assert bd_rate(ANCHOR, [(10.0, 30.0), (20.0, 40.0)]) is None
    assert bd_rate(ANCHOR, [(10.0, 15.0)]) is None


def test_bytes_at_an_accuracy() -> None:
    assert bytes_at(ANCHOR, 15.0) == pytest.approx(2000)
    assert bytes_at(ANCHOR, 17.0) == pytest.approx((2000 * 4000) ** 0.5)
    assert bytes_at(ANCHOR, 9.9) is None
    assert bytes_at(ANCHOR, 24.1) is None


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
def test_a_plot_is_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "new" / f"plot{ending}"
    check_format(path)
    plot([Series("JPEG", tuple(ANCHOR))], path, metric="AP", reference=25.0)
    assert path.stat().st_size > 2000
    if ending == ".svg":
        first = path.read_bytes()
        plot([Series("JPEG", tuple(ANCHOR))], path, metric="AP", reference=25.0)
        assert path.read_bytes() == first


@pytest.mark.parametrize("name", ["plot", "plot.jpg", "plot.svg.txt"])
def test_a_plot_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="svg"):
        check_format(Path(name))
