"""The cache: found again by content, made again when damaged, never half written."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from common.errors import SettingsError
from common.manifest import CodecSpec
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
