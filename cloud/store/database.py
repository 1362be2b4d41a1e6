"""Opening the store's file: created, checked, brought up to date, or begun anew.

    nothing, or an empty file            -> a new store
    a store                              -> brought up to date
    a store, damaged                     -> moved aside, begun anew: it can be collected again
    a newer store, or anything else      -> refused and left as it is: it is of use to somebody

What a file is, its first bytes say, and then its application id and tables, read before anything is
written. A link stands for the file that it leads to.
"""

import logging
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

from common.errors import StoreError
from common.tables.store_file import (
    MIGRATIONS,
    SCHEMA,
    connect_to_read,
    is_ours,
    is_store,
    schema_of,
)

_LOG = logging.getLogger("splitpoint.cloud")

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_ADVICE = "give another --store"
_BESIDE = ("-wal", "-shm")
"""SQLite's log of what is not in the file yet, and the log's index."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that threads may share, by turns; the file is created if there is none.

    Raises:
        StoreError: If the file was written by a newer version or another program, is no file, or
            cannot be created.
    """
    try:
        _check_file(path)
        if not path.parent.is_dir():
            raise StoreError(f"{path}: there is no folder {path.parent}: make it, or {_ADVICE}")
        return _connect(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be created: {error.strerror}: {_ADVICE}") from error
    except sqlite3.Error as error:
        if not _is_damage(error):
            raise StoreError(f"{path}: cannot be opened: {error}: {_ADVICE}") from error
        aside = _moved_aside(path)
        _LOG.warning("%s is damaged (%s): moved to %s, begun anew", path, error, aside)
        return _connect(path)


def _check_file(path: Path) -> None:
    """Require a file that is a store, or nothing at all, without writing or waiting for anything.

    Raises:
        StoreError: If it is anything else.
        OSError: If it cannot be looked at.
        sqlite3.Error: If it is damaged.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"
        raise StoreError(f"{path}: is {what}, expected a file: {_ADVICE}")
    if found.st_size == 0:
        return
    if not is_store(path):
        raise StoreError(f"{path}: exists and is no SQLite file, so it is left alone: {_ADVICE}")
    with closing(connect_to_read(path)) as database:
        if not is_ours(database):
            raise StoreError(
                f"{path}: an SQLite file of another program, so it is left alone: {_ADVICE}"
            )
        if schema_of(database) > SCHEMA:
            raise StoreError(
                f"{path}: written by a newer version (schema {schema_of(database)}, known are up "
                f"to {SCHEMA}): upgrade, or {_ADVICE}"
            )


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        _check(database)
        _migrate(database, path)
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        error = sqlite3.DatabaseError(state)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    version = schema_of(database)
    lost = 0
    if version == 2:
        (lost,) = database.execute("SELECT COUNT(*) FROM profiles").fetchone()
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")
    if lost:
        _LOG.warning(
            "%s: %d rows of profiles are dropped, as they do not say of which network they are: "
            "run `splitpoint profile` again; served frames are kept",
            path,
            lost,
        )


def _is_damage(error: sqlite3.Error) -> bool:
    """Whether the file itself is at fault, and not a lock, the disk or a right that is missing."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGED


def _moved_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.replace(aside)
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.replace(aside.with_name(aside.name + suffix))
    return aside
