"""`splitpoint propose` and `search --tables`: what is said, and every mistake in one line."""

import signal
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from common.errors import SettingsError
from common.tables.rows import to_json
from search.proposal.propose import propose
from splitpoint.cli import main
from splitpoint.durations import parse_duration, parse_percent
from tests import tiny
from tests.unit.test_proposal import Searching, row


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A proposal that can be made."""
    tiny.build(tmp_path / "current")
    (tmp_path / "tables.json").write_text(to_json([row("head to cut", 61.0)]))
    return [
        *("propose", "--bundle", str(tmp_path / "current")),
        *("--tables", str(tmp_path / "tables.json")),
        *("--calibration", str(tmp_path), "--out", str(tmp_path / "new"), "--no-cache"),
    ]


def run(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def finds(monkeypatch: pytest.MonkeyPatch) -> Searching:
    """The search that is asked in place of a real one."""
    search = Searching(1.0)
    monkeypatch.setattr("search.proposal.propose.propose", partial(propose, search=search))
    return search


def test_a_proposal_says_what_it_wrote(
    arguments: list[str], finds: Searching, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--threshold", "10%") == 0
    out = capsys.readouterr().out
    assert "head to cut: 1.0 ms assumed, 61.0 ms served" in out
    assert f"wrote {tmp_path / 'new'}" in out


def test_a_bundle_that_is_still_the_best_is_no_failure(
    arguments: list[str], finds: Searching, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finds.latency_ms = 1e4
    assert run(*arguments) == 0
    out = capsys.readouterr().out
    assert "is still the best" in out
    assert "its plan 'cloud-only-png' is faster now than its first, 'split-4'" in out
    assert not (tmp_path / "new").exists()


def test_deploying_says_what_to_restart(
    arguments: list[str], finds: Searching, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments, "--auto") == 0
    out = capsys.readouterr().out
    assert f"splitpoint cloud --bundle {tmp_path / 'current'}" in out
    assert "current.previous" in out


def test_every_repeats_until_it_is_ended(
    arguments: list[str],
    finds: Searching,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pauses: list[float] = []

    def repeat(make: object, every_s: float, failed: object) -> NoReturn:
        assert callable(make)
        assert callable(failed)
        make()
        pauses.append(every_s)
        failed(SettingsError("not\nnow"))
        raise SystemExit(0)

    handled: list[int] = []
    monkeypatch.setattr("search.proposal.propose.repeat", repeat)
    monkeypatch.setattr("signal.signal", lambda number, _handler: handled.append(number))
    assert run(*arguments, "--every", "24h") == 0
    assert pauses == [86_400.0]
    assert handled == [signal.SIGTERM] * 3  # the command line's, its own, and the one of before
    assert "error: not now; again in 24h" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--bundle", "none"], 65, "no such bundle"),
        (["--tables", "none"], 65, "none"),
        (["--device", "camera"], 64, "they know test"),
        (["--threshold", "0.05"], 64, "write it as 5%"),
        (["--every", "daily"], 64, "24h"),
        (["--link", "fast"], 64, "3mbit/20ms"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: list[str],
    more: list[str],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(*arguments, *more) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_searching_with_tables_knows_their_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tables.json").write_text(to_json([row("head to cut", 61.0)]))
    common = ["search", "--model", "yolov3-tiny", "--link", "3mbit", "--calibration", str(tmp_path)]
    common += ["--out", str(tmp_path / "out"), "--tables", str(tmp_path / "tables.json")]
    assert run(*common, "--device", "camera") == 64
    assert "unknown device 'camera': the tables know test; profiles are" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("7d", 604_800)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "5", "-1h", "1y", "999d", "h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SettingsError, match="24h"):
        parse_duration(text)


def test_percentages() -> None:
    assert parse_percent("5%") == 0.05
    for text in ("5", "", "101%", "-1%"):
        with pytest.raises(SettingsError, match="5%"):
            parse_percent(text)
