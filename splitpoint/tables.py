"""Latency tables on the command line: written to a file, shown on a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from common.errors import StoreError
from common.tables.rows import LatencyRow, merged, read_json, to_json
from common.tables.store_file import is_store

if TYPE_CHECKING:
    from cloud.store.store import Store


def check_target(path: Path) -> None:
    """Require, before anything is measured, that rows can be written to a file.

    Raises:
        StoreError: If the folder is missing, or there is a file that is neither table nor store,
            or a store of a newer version.
    """
    if not path.parent.is_dir():
        raise StoreError(f"{path}: cannot be written: no folder {path.parent}")
    if not path.exists():
        return
    if _is_json(path):
        read_json(path)
    elif path.is_dir() or (path.stat().st_size > 0 and not is_store(path)):
        raise StoreError(
            f"{path}: exists, and is no store of a cloud: choose another file; one that ends in "
            ".json is written as JSON"
        )
    else:
        _open_store(path).close()


def keep(rows: Sequence[LatencyRow], path: Path) -> None:
    """Merge rows into a file; its other rows are kept.

    Args:
        rows: The measured rows.
        path: Written as JSON if it ends in .json; otherwise a store, such as the cloud's.

    Raises:
        StoreError: If it cannot be written, or is neither table nor store.
    """
    check_target(path)
    if _is_json(path):
        known = read_json(path) if path.exists() else []
        _replace(path, to_json(merged(known, rows)))
        return
    store = _open_store(path)
    try:
        store.upsert_profiles(rows)
    finally:
        store.close()


def as_table(rows: Sequence[LatencyRow], title: str) -> Table:
    """Rows as a table for a terminal, times in ms."""
    table = Table(title=title, title_justify="left")
    for column in ("side", "segment", "bits"):
        table.add_column(column, overflow="fold")
    for column in ("runs", "median ms", "p90 ms", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.side,
            row.segment,
            row.bits,
            str(row.n),
            f"{row.median_ms:.2f}",
            f"{row.p90_ms:.2f}",
            f"{row.low_ms:.2f} to {row.high_ms:.2f}",
        )
    return table


def _open_store(path: Path) -> "Store":
    from cloud.store.store import Store  # an edge that writes JSON has no use for it

    return Store(path)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written: {error.strerror}") from error
