"""The store's open file: one connection that writes, by turns, and short ones that read.

SQLite's write-ahead log lets a reader see one state of the file while a writer goes on, and neither
waits for the other.
"""

import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cloud.store.database import open_database
from common.errors import StoreError
from common.tables.store_file import connect_to_read


class StoreConnection:
    """Connections to the store's file; may be used from several threads at once.

    Args:
        path: The file; None makes a temporary one, which goes when it is closed.

    Attributes:
        closed: Whether it is closed.

    Raises:
        StoreError: If the file cannot be created, or is none of a store.
    """

    def __init__(self, path: Path | None) -> None:
        self._lock = threading.Lock()
        self._scratch = None if path is not None else _scratch_folder()
        self._path = _file_of(path, self._scratch)
        self.closed = False
        try:
            self._database = open_database(self._path)
            if self._scratch is not None:
                self._database.execute("PRAGMA synchronous = OFF")  # it is not to outlive a crash
        except BaseException:
            self._remove_scratch()
            raise

    def close(self) -> None:
        """Let the file go."""
        self.closed = True
        with self._lock:
            self._database.close()
        self._remove_scratch()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, to read from beside the writer.

        Raises:
            StoreError: If the store is closed, or the file cannot be read.
        """
        try:
            with closing(self.reader()) as database:
                database.execute("BEGIN")
                yield database
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: cannot be read: {error}") from error
        except (ValueError, TypeError, OverflowError) as error:  # words where numbers should be
            why = " ".join(str(error).split())[:200]
            raise StoreError(f"{self._path}: damaged: {why}: move it away") from error

    def reader(self) -> sqlite3.Connection:
        """Open a connection to read from; the caller closes it.

        Raises:
            StoreError: If the store is closed.
        """
        if self.closed:
            raise StoreError(f"{self._path}: cannot be read: the store is closed")
        return connect_to_read(self._path, at_rest=False)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction of the one connection that writes.

        Raises:
            sqlite3.Error: If it fails.
        """
        with self._lock, self._database:
            yield self._database

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction for a caller outside the store.

        Raises:
            StoreError: If it fails.
        """
        try:
            with self.transaction() as database:
                yield database
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: cannot be written: {error}") from error

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.cleanup()


def _scratch_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for a store that is not to be kept.

    Raises:
        StoreError: If there is nowhere to put it.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="splitpoint-store-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StoreError(
            f"no temporary folder can be written ({error.strerror}): give --store FILE"
        ) from error


def _file_of(path: Path | None, scratch: "tempfile.TemporaryDirectory[str] | None") -> Path:
    """The file itself, where a link leads to it.

    Raises:
        StoreError: If it leads nowhere.
    """
    if path is None:
        return Path(scratch.name) / "store.sqlite" if scratch is not None else Path()
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # links in a circle
        raise StoreError(f"{path}: cannot be opened: {error}: give another --store") from error
