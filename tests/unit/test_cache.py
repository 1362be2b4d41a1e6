"""The cache: found again by content, made again when damaged, never half written."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.codec.spec import CodecSpec
from common.errors import SettingsError
from search.cache import Cache, digest


class Counted:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def arrays(self) -> dict[str, np.ndarray]:
        self.calls += 1
        return {"a": np.arange(6).reshape(2, 3), "b": np.array([0.5], np.float32)}

    def json(self) -> dict[str, float]:
        self.calls += 1
        return {"x": 0.1}


def test_what_was_worked_out_once_is_found_again(tmp_path: Path) -> None:
    made = Counted()
    for _ in range(3):
        cache = Cache(tmp_path / "cache")
        found = cache.arrays("stage", ["in", 1], made.arrays)
        np.testing.assert_array_equal(found["a"], np.arange(6).reshape(2, 3))
        assert found["b"].dtype == np.float32
    assert made.calls == 1
    cache.arrays("stage", ["in", 2], made.arrays)
    cache.arrays("other", ["in", 1], made.arrays)
    assert made.calls == 3
    for _ in range(2):
        assert cache.json("stage", ["in", 1], made.json) == {"x": 0.1}
    assert made.calls == 4


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no more", b"{"])
def test_damaged_artefacts_are_made_again(tmp_path: Path, damage: bytes) -> None:
    cache, made = Cache(tmp_path), Counted()
    cache.arrays("stage", [], made.arrays)
    cache.json("stage", [], made.json)
    for path in tmp_path.iterdir():
        path.write_bytes(damage)
    assert set(cache.arrays("stage", [], made.arrays)) == {"a", "b"}
    assert cache.json("stage", [], made.json) == {"x": 0.1}
    assert made.calls == 4
    cache.arrays("stage", [], made.arrays)
    assert made.calls == 4


def test_a_stage_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails() -> dict[str, np.ndarray]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Cache(tmp_path).arrays("stage", [], fails)
    assert list(tmp_path.iterdir()) == []


def test_without_a_folder_nothing_is_kept() -> None:
    made = Counted()
    Cache().arrays("stage", [], made.arrays)
    Cache().arrays("stage", [], made.arrays)
    assert made.calls == 2


def test_a_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot hold what a search works out"):
        Cache(tmp_path / "file" / "cache")


@dataclass(frozen=True)
class Pair:
    left: object
    right: object


def test_digests_tell_values_apart() -> None:
    values = [
        None,
        "",
        "1",
        1,
        1.0,
        True,
        b"1",
        [1],
        [[1]],
        [1, 1],
        ["11"],
        ["1", "1"],
        {"1": 1},
        np.ones(1),
        np.ones(1, np.float32),
        np.ones((1, 1)),
        Pair(1, 2),
        Pair(2, 1),
        CodecSpec(name="png"),
        Path("1x"),
    ]
    digests = [digest(value) for value in values]
    assert len(set(digests)) == len(digests)
    assert digests == [digest(value) for value in values]
    assert digest(1, 2) != digest([1, 2])


def test_what_has_no_content_has_no_digest() -> None:
    with pytest.raises(TypeError, match="object has no digest"):
        digest(object())


def test_a_result_of_other_code_is_not_taken_for_this_one(tmp_path: Path) -> None:
    before = Cache(tmp_path).arrays("rounded", ["x"], lambda: {"v": np.array([1])})
    after = Cache(tmp_path).arrays("rounded", ["x"], lambda: {"v": np.array([2])})
    assert [*before["v"], *after["v"]] == [1, 2]
    assert Cache(tmp_path).json("rounded", ["x"], lambda: 1) == 1
    assert Cache(tmp_path).json("rounded", ["x"], lambda: sum([1, 1])) == 2


def ten_kb() -> dict[str, np.ndarray]:
    return {"a": np.zeros(10_000, np.uint8)}


def filled(folder: Path, number: int) -> list[Path]:
    """Artefacts of 10 kB and a little, the first of them used the longest ago."""
    paths: list[Path] = []
    for index in range(number):
        others = set(folder.iterdir())
        Cache(folder).arrays("stage", [index], ten_kb)
        (path,) = set(folder.iterdir()) - others
        os.utime(path, (index, index))
        paths.append(path)
    return paths


def exist(paths: list[Path]) -> list[bool]:
    return [path.exists() for path in paths]


def test_what_was_not_used_for_the_longest_time_goes_first(tmp_path: Path) -> None:
    paths = filled(tmp_path, 3)
    cache = Cache(tmp_path, limit_bytes=35_000)
    cache.arrays("stage", [0], ten_kb)
    assert exist(paths) == [True, True, True]
    cache.arrays("stage", [3], ten_kb)
    assert exist(paths) == [True, False, True]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_was_just_made_stays_and_what_is_too_large_is_not_kept(tmp_path: Path) -> None:
    paths = filled(tmp_path, 2)
    Cache(tmp_path, limit_bytes=10_500).arrays("stage", [2], ten_kb)
    assert exist(paths) == [False, False]
    (left,) = tmp_path.iterdir()
    Cache(tmp_path, limit_bytes=5_000).arrays("stage", [3], ten_kb)
    assert list(tmp_path.iterdir()) == [left]


def test_nothing_but_artefacts_is_counted_or_removed(tmp_path: Path) -> None:
    for name in ("stage-1.npz", "notes.json", f"stage-{'0' * 32}.txt", ".x.part", ".splitpoint-.p"):
        (tmp_path / name).write_bytes(bytes(100_000))
        os.utime(tmp_path / name, (0, 0))
    (tmp_path / f"stage-{'0' * 32}.npz").mkdir()
    (tmp_path / f"stage-{'1' * 32}.npz").symlink_to(tmp_path / "notes.json")
    before = set(tmp_path.iterdir())
    filled(tmp_path, 2)
    Cache(tmp_path, limit_bytes=15_000).arrays("stage", [2], ten_kb)
    assert before < set(tmp_path.iterdir())
    assert len(set(tmp_path.iterdir()) - before) == 1


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    old, new = tmp_path / ".splitpoint-aaaa_1.part", tmp_path / ".splitpoint-bbbb_2.part"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    Cache(tmp_path).arrays("stage", [], ten_kb)
    assert exist([old, new]) == [False, True]


def test_two_processes_may_share_a_folder_that_is_too_small(tmp_path: Path) -> None:
    """Each evicts what the other one reads: both get every result all the same."""
    code = (
        "import sys, pathlib, numpy as np\n"
        "from search.cache import Cache\n"
        "cache = Cache(pathlib.Path(sys.argv[1]), limit_bytes=30_000)\n"
        "def make(): return {'a': np.full(10_000, turn % 7, np.uint8)}\n"
        "for turn in range(150):\n"
        "    assert cache.arrays('stage', [turn % 7], make)['a'][0] == turn % 7\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(2)]  # noqa: S603 - our own code
    assert [process.wait() for process in processes] == [0, 0]
    # Two that are written at once may each count the other's as not there yet.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 45_000


def test_the_limit_is_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = filled(tmp_path, 2)
    monkeypatch.setenv("SPLITPOINT_CACHE_LIMIT", "25kB")
    Cache(tmp_path).arrays("stage", [2], ten_kb)
    assert exist(paths) == [False, True]
    monkeypatch.setenv("SPLITPOINT_CACHE_LIMIT", "much")
    with pytest.raises(SettingsError, match="SPLITPOINT_CACHE_LIMIT: 'much' is not a size"):
        Cache(tmp_path)
