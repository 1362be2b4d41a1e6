"""Places to write to: whether a result can go there, found out before it is worked out."""

import tempfile
import zipfile
from pathlib import Path

from common.bundle.bundle import MANIFEST, may_replace
from common.errors import BundleError, SettingsError


def require_bundle_place(out: Path) -> None:
    """Require a place where a bundle can be written: nothing, an empty folder, or an older bundle.

    Args:
        out: A folder, or a zip file if its name ends so.

    Raises:
        BundleError: If something else is there.
        SettingsError: If nothing can be written there.
    """
    zipped = out.suffix.lower() == ".zip"
    free = not (out.exists() or out.is_symlink())
    if not free and not (_is_zipped_bundle(out) if zipped else may_replace(out)):
        raise BundleError(f"{out} exists and is no bundle: choose another place")
    _require_writable(out.parent)


def require_folder(out: Path) -> None:
    """Require a folder that files can be written into, or a place where it can be made.

    Raises:
        SettingsError: If there is none.
    """
    if out.exists() and not out.is_dir():
        raise SettingsError(f"{out} is a file: give a folder")
    _require_writable(out)


def require_file_place(out: Path) -> None:
    """Require a place where a file can be written; an older file there is replaced.

    Raises:
        SettingsError: If there is none.
    """
    if out.is_dir():
        raise SettingsError(f"{out} is a folder: give the name of a file")
    _require_writable(out.parent)


def _require_writable(folder: Path) -> None:
    """Try to write into a folder, or into the one that it would be made in; leaves no trace."""
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise SettingsError(
            f"{folder}: nothing can be written there: {existing}: {error.strerror}"
        ) from error


def _is_zipped_bundle(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return MANIFEST in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False
