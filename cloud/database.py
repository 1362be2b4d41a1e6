"""Opening the store's file: created, checked, brought up to date, or begun anew.

What is in it can be lost: it is history, and a file that cannot be read is moved aside. Only one
that a newer version has written is refused, because that one is of use to somebody.
"""

import logging
import sqlite3
from pathlib import Path

from common.errors import StoreError
from common.store_file import MIGRATIONS, SCHEMA, schema_of

_LOG = logging.getLogger("splitpoint.cloud")


def open_database(path: Path | None) -> sqlite3.Connection:
    """A connection that threads may share, by turns; the file is created if there is none.

    Args:
        path: The file; None keeps everything in memory.

    Raises:
        StoreError: If the file was written by a newer version, or cannot be created.
    """
    if path is None:
        database = sqlite3.connect(":memory:", check_same_thread=False)
        _migrate(database, ":memory:")
        return database
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return _connect(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot be created: {error.strerror}") from error
    except sqlite3.OperationalError as error:
        raise StoreError(f"{path}: cannot be opened: {error}") from error
    except sqlite3.DatabaseError as error:
        aside = _moved_aside(path)
        _LOG.warning("%s is no store any more (%s): moved to %s, begun anew", path, error, aside)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        _check(database)
        _migrate(database, str(path))
    except BaseException:
        database.close()
        raise
    return database


def _check(database: sqlite3.Connection) -> None:
    (state,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if state != "ok":
        raise sqlite3.DatabaseError(state)


def _migrate(database: sqlite3.Connection, name: str) -> None:
    version = schema_of(database)
    if version > SCHEMA:
        raise StoreError(
            f"{name}: written by a newer version (schema {version}, known are up to {SCHEMA}): "
            "upgrade, or give another --store"
        )
    for number, script in enumerate(MIGRATIONS[version:], version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


def _moved_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.replace(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
