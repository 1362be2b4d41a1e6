"""Opening a store: what is used, what is begun anew, and what is left alone."""

import logging
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cloud.store.samples import Sample, SampleSource
from cloud.store.store import Store
from common.errors import StoreError
from common.tables.store_file import APPLICATION_ID, MIGRATIONS, SCHEMA

SOURCE = SampleSource("edge7", "box", "onnxruntime x1")
PLAN = bytes(range(32))


def filled(path: Path, samples: int = 1) -> Path:
    """A store that a cloud has left."""
    store = Store(path)
    for k in range(samples):
        store.add(Sample(SOURCE, PLAN.hex(), 1000.0 + k, 100, {"total": 10.0}))
    store.close()
    return path


def executed(path: Path, *statements: str) -> None:
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement)
    database.close()


def medians(path: Path) -> list[float]:
    store = Store(path)
    found = [row.median_ms for row in store.table()]
    store.close()
    return found


def scrambled(path: Path) -> None:
    filled(path, 200)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))


def cut_off(path: Path) -> None:
    path.write_bytes(filled(path, 200).read_bytes()[:6000])


def magic_alone(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)


@pytest.mark.parametrize("damage", [scrambled, cut_off, magic_alone])
def test_a_damaged_store_is_moved_aside(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.sqlite"
    damage(path)
    before = path.read_bytes()
    assert medians(path) == []
    assert (tmp_path / "store.sqlite.broken-1").read_bytes() == before
    assert "damaged" in caplog.text
    filled(path)
    assert medians(path) == [10.0]


def a_text(path: Path) -> None:
    path.write_text("notes, and not a store\n" * 100)


def almost_empty(path: Path) -> None:
    path.write_bytes(b"\n")


def of_another_program(path: Path) -> None:
    executed(path, "CREATE TABLE poems (line TEXT)")


def of_another_program_that_counts_versions(path: Path) -> None:
    executed(path, "CREATE TABLE poems (line TEXT)", "PRAGMA user_version = 2")


def of_another_program_with_an_id(path: Path) -> None:
    executed(
        path,
        *("CREATE TABLE samples (a)", "CREATE TABLE hours (b)"),
        *("PRAGMA user_version = 3", "PRAGMA application_id = 7"),
    )


def with_an_endless_view(path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    executed(filled(path), "DROP TABLE samples", f"CREATE VIEW samples AS {endless}")


def newer(path: Path) -> None:
    executed(filled(path), f"PRAGMA user_version = {SCHEMA + 1}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (a_text, "no SQLite file"),
        (almost_empty, "no SQLite file"),
        (of_another_program, "another program"),
        (of_another_program_that_counts_versions, "another program"),
        (of_another_program_with_an_id, "another program"),
        (with_an_endless_view, "another program"),
        (newer, "newer version .* upgrade, or give another --store"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_store_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], None], message: str, linked: bool
) -> None:
    real = path = tmp_path / "file"
    make(real)
    if linked:
        path = tmp_path / "link"
        path.symlink_to(real)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(StoreError, match=message) as refused:
        Store(path)
    assert "\n" not in str(refused.value)
    assert "give another --store" in str(refused.value)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_cloud_does_not_take_a_file_of_notes_for_its_store(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    a_text(notes)
    command = [sys.executable, "-m", "splitpoint.cli", "cloud", "--bundle", str(tmp_path)]
    ports = ["--grpc-port", "0", "--rest-port", "0"]
    ended = subprocess.run(  # noqa: S603 - our own command
        [*command, *ports, "--store", str(notes)], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 65
    (line,) = ended.stderr.splitlines()
    assert "no SQLite file, so it is left alone: give another --store" in line
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def a_folder(path: Path) -> Path:
    path.mkdir()
    return path


def a_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def a_device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def a_circle(path: Path) -> Path:
    path.symlink_to(path)
    return path


def below_a_file(path: Path) -> Path:
    path.write_text("")
    return path / "store.sqlite"


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_device, a_circle, below_a_file])
def test_a_place_that_holds_no_file_is_refused(
    tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    path = make(tmp_path / "there")
    with pytest.raises(StoreError, match="give another --store"):
        Store(path)
    assert [each.name for each in tmp_path.iterdir()] == ["there"]


def test_a_store_with_words_for_numbers_is_told_in_one_line(tmp_path: Path) -> None:
    path = filled(tmp_path / "store.sqlite", 2)
    executed(path, "UPDATE samples SET at_s = 'yesterday', total_ms = 'long' WHERE id = 1")
    with pytest.raises(StoreError, match="damaged") as refused:
        medians(path)
    assert "\n" not in str(refused.value)


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    path.touch()
    assert medians(filled(path)) == [10.0]


def test_a_store_whose_first_start_was_cut_short_is_used(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    executed(path, "PRAGMA journal_mode = WAL", "VACUUM")
    assert path.stat().st_size > 0
    assert medians(filled(path)) == [10.0]


def test_a_link_stands_for_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "store.sqlite"
    link.symlink_to(tmp_path / "disk" / "real.sqlite")
    filled(link)
    assert medians(tmp_path / "disk" / "real.sqlite") == [10.0]
    scrambled(tmp_path / "disk" / "real.sqlite")
    assert medians(link) == []
    assert link.is_symlink()
    assert (tmp_path / "disk" / "real.sqlite.broken-1").exists()


def old_store(path: Path, version: int) -> None:
    """A file as an earlier version left it."""
    with sqlite3.connect(path) as database:
        for number, script in enumerate(MIGRATIONS[:version], 1):
            database.executescript(script)
            database.execute(f"PRAGMA user_version = {number}")
        link = "link" if version == 1 else "uplink"
        database.execute(
            f"INSERT INTO samples (at_s, edge, device, runtime, plan, uplink_bytes, {link}_ms,"  # noqa: S608
            " head_ms) VALUES (1000, 'edge7', 'box', 'onnxruntime x1', ?, 100, 40, 9)",
            (PLAN.hex(),),
        )
        columns = "hour, edge, device, runtime, plan, stage, n, median_ms, p90_ms"
        if version > 1:
            columns = columns.replace("plan", "plan, threads")
        threads = "" if version == 1 else ", 0"
        database.executemany(
            f"INSERT INTO hours ({columns}) "  # noqa: S608
            f"VALUES (3, 'edge7', 'box', 'onnxruntime x1', 'p'{threads}, ?, 5, 1, 2)",
            [(link,), ("head",)],
        )
        if version > 1:
            database.execute(
                "INSERT INTO profiles VALUES ('box', 'r', 1, 'edge', 'head to cut', '8', 9, 1, 1,"
                " 1, 1, 'profiled', 7)"
            )
            database.execute("INSERT INTO about VALUES ('model', 'tiny')")
    database.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_store_of_an_earlier_version_is_brought_up_to_date(
    tmp_path: Path, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.sqlite"
    old_store(path, version)
    with caplog.at_level(logging.WARNING):
        store = Store(path)
    store.add(Sample(SOURCE, PLAN.hex(), 1000.0, 100, {"head": 2.5, "total": 5.0}))
    store.flush()
    assert {row.stage: row.median_ms for row in store.table()} == {
        "head": 5.75,
        "uplink": 40.0,
        "total": 5.0,
    }
    assert {row[3] for row in store.hours()} == {"uplink", "head"}
    assert store.latency_rows() == []  # of which network its profile is, nobody knows
    assert ("1 rows of profiles are dropped" in caplog.text) == (version == 2)
    store.close()
    assert not list(tmp_path.glob("*.broken*"))
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    database.close()
    Store(path).close()


def test_a_store_without_a_file_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store = Store()
    store.add(Sample(SOURCE, PLAN.hex(), 1000.0, 100, {"total": 10.0}))
    store.flush()
    assert [row.median_ms for row in store.table()] == [10.0]
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_for_temporary_files_a_store_needs_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(StoreError, match="give --store FILE"):
        Store()


def test_a_folder_that_does_not_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no folder .*nowhere: make it"):
        Store(tmp_path / "nowhere" / "store.sqlite")
    assert not (tmp_path / "nowhere").exists()
